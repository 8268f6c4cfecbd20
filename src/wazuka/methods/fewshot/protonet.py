"""Prototypical networks: a class is the mean of its few examples, an image belongs to the nearest mean.

Snell, Swersky & Zemel 2017, arXiv:1703.05175; jakesnell/prototypical-networks. Equation numbers are the paper's.
Support and query images pass through the network together, so that in training batch norm sees both (few_shot.py); at
test the code normalizes by the running statistics (utils/model.py), so every query is answered alone: not transductive.
Differs from it: the learning rate, which there halves every 2,000 episodes, here halves after every fifth of the run,
so that a short run has the whole schedule. The cosine distance is the paper's comparison (Sec. 3.2), and not in the
code. With several processes each draws an episode of its own, and a step takes the mean of their gradients.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Episodes, Method, Optimizer, Parts, as_tensor_parts
from wazuka.errors import UserError
from wazuka.functional.prototypes import class_means, cosine_distances, squared_distances
from wazuka.functional.schedules import halving

Distance = Literal["euclidean", "cosine"]


def prototype_logits(features: Tensor, prototypes: Tensor, distance: Distance) -> Tensor:
    """Minus the distance to each prototype; a softmax makes them probabilities (Eq. 2).

    features    (N, D)
    prototypes  (C, D)
    distance    "euclidean": squared, no root and no scale; "cosine": 1 - cos, so that logits lie in [-2, 0]
    returns     (N, C)
    """
    return -(squared_distances if distance == "euclidean" else cosine_distances)(features, prototypes)


def episode_loss(support: Tensor, query: Tensor, way: int, distance: Distance) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the queries against the prototypes of one episode. Gradient flows into both.

    support  (way * shot, D)   class-major: all images of the first class, then all of the second, ...
    query    (way * query, D)  class-major, classes in the same order
    returns  ()                nats, mean over all queries (Alg. 1)
             ()                share of the queries named right; no gradient
    """
    prototypes = support.unflatten(0, (way, -1)).mean(dim=1)  # Eq. 1
    logits = prototype_logits(query, prototypes, distance)
    labels = torch.arange(way, device=query.device).repeat_interleave(len(query) // way)
    return F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).float().mean()


@dataclass(frozen=True, kw_only=True)
class ProtoNetSettings:
    """Defaults are the authors' for Omniglot (run_train.py).

    A higher way than will be tested makes training harder, and better (paper, Sec. 3.1); the shot should be the tested.
    """

    way: int = 60        # classes an episode
    shot: int = 5        # support images a class
    query: int = 5       # query images a class
    view: str = "plain"  # the policy for support and query; the paper augments by rotated *classes* alone
    distance: Distance = "euclidean"
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(algorithm="adam", lr=1e-3, schedule=halving(5))  # no weight decay
    )

    def __post_init__(self) -> None:
        if self.way < 2 or min(self.shot, self.query) < 1:
            raise ValueError(
                f"way must be at least 2, shot and query at least 1, got {self.way}, {self.shot} and {self.query}"
            )
        if self.distance not in ("euclidean", "cosine"):
            raise ValueError(f'distance must be "euclidean" or "cosine", got {self.distance!r}')


class ProtoNet(Method):
    """Learns a network in whose embedding the images of a class lie around one point, also for classes it never saw.

    net  images -> (N, D) embedding, of any D: no head is learned

    After training, in eval mode: `classify` answers one task and forgets it; `fit_prototypes` keeps the classes, with
    which `predict` then answers, and which are saved with the weights.
    """

    prototypes: Tensor  # (C, D); (0, 0) until fit_prototypes, or a loaded state, gives some

    def __init__(self, net: nn.Module, settings: ProtoNetSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or ProtoNetSettings()
        self.register_buffer("prototypes", torch.empty(0, 0))

    def streams(self) -> tuple[Episodes, ...]:
        s = self.settings
        return (Episodes(pool="labeled", way=s.way, shot=s.shot, query=s.query, policy=s.view),)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        features = self.net(torch.cat([batch.support, batch.query]))
        support, query = features.split([len(batch.support), len(batch.query)])
        loss, accuracy = episode_loss(support, query, self.settings.way, self.settings.distance)
        return loss, as_tensor_parts(episode=loss, accuracy=accuracy)

    @torch.no_grad()
    def fit_prototypes(self, support: Tensor, labels: Tensor) -> "ProtoNet":
        """Keep the classes of these images, in place of those before; returns itself.

        support  (N, C, H, W) float in [0, 1]; one image a class is enough, and classes may have different numbers
        labels   (N,) int64: 0, 1, ... without a gap

        Raises UserError for labels that don't fit.
        """
        self.prototypes = self._means(support, labels)
        return self

    def classify(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        """(M, classes) probabilities of the query images in the task that the support images set; nothing is kept."""
        return self._answer(query, self._means(support, labels))

    def predict(self, images: Tensor) -> Tensor:
        if len(self.prototypes) == 0:
            raise UserError(
                "This network knows no classes yet: give it a few labeled images of each with "
                "fit_prototypes(support, labels), or one whole task with classify(support, labels, query)."
            )
        return self._answer(images, self.prototypes)

    def _means(self, support: Tensor, labels: Tensor) -> Tensor:
        if len(labels) == 0 or len(labels) != len(support):
            raise UserError(
                f"Prototypes need images and one label for each, got {len(support)} images and {len(labels)} labels."
            )
        present = labels.unique().tolist()
        if present != list(range(len(present))):
            raise UserError(
                f"The labels of the support images must be 0, 1, ... without a gap, but they are {present}; leave "
                "unlabeled images (-1) out and number the classes anew."
            )
        return class_means(self._embed(support), labels.to(support.device), len(present))

    def _answer(self, images: Tensor, prototypes: Tensor) -> Tensor:
        return prototype_logits(self._embed(images), prototypes, self.settings.distance).softmax(dim=1)

    def _embed(self, images: Tensor) -> Tensor:
        if self.training:  # the answers would depend on which images are asked together, and the asking would teach
            raise UserError("This network is in training mode; call its eval() before asking it.")
        return self.net(images)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if (saved := state_dict.get(f"{prefix}prototypes")) is not None:  # take the shape of what was kept
            self.prototypes = torch.empty_like(saved, device=self.prototypes.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
