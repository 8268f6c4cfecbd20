"""ADDA: learn on the source, then train a second encoder until a critic takes target images for source images.

Tzeng, Hoffman, Saenko & Darrell 2017, arXiv:1702.05464; erictzeng/adda (tools/train.py, tools/train_adda.py,
adda/adversary.py, adda/models/lenet.py, scripts/svhn-mnist.sh). Equation numbers are the paper's.
Where the two disagree: the paper's discriminator sees features, and the classifier stays as the source taught it;
the code's sees logits, and the target's copy of the classifier adapts too. `discriminator_input` offers both.
Differs from them: both stages are one run; in the first the target encoder follows the source encoder step by step, so
that the change of stage is no event and a resumed run has nothing to remember. Batch norm, which the paper's networks
lack, uses the running statistics in the frozen source encoder and the target batch's in the target encoder.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.nets import Backbone


def domain_loss(source: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of telling the domains apart, source = 0 and target = 1 (Eq. 9, second line).

    source   (N, 2)  the discriminator's logits
    target   (M, 2)
    returns  ()      nats, mean over all N + M rows; with the arguments swapped, the loss under inverted labels
                     (third line)
    """
    domains = torch.cat([source.new_zeros(len(source)), target.new_ones(len(target))]).long()
    return F.cross_entropy(torch.cat([source, target]), domains)


@dataclass(frozen=True, kw_only=True)
class ADDASettings:
    """Defaults are the authors' for SVHN to MNIST (scripts/svhn-mnist.sh): 10,000 steps a stage, 20,000 in all.

    source_share         of the run: the first stage. 0: the network comes trained; 1: source only, the floor
    head_start           share of the run, after the first stage, in which the discriminator learns alone: a stabilizer
                         that the authors recommend (erictzeng/adda, issue 2), not part of the published runs
    discriminator_input  "features" (the paper: the classifier is shared and frozen) or "logits" (the released code:
                         the target has a classifier of its own)
    leak                 slope of the discriminator's ReLUs below 0; the code's default of 0.1 its script turns off
    """

    batch: int = 128           # of each domain
    view: str = "plain"
    source_share: float = 0.5
    head_start: float = 0.0
    discriminator_input: Literal["features", "logits"] = "features"
    hidden: tuple[int, ...] = (500, 500)  # Sec. 5.1
    leak: float = 0.0
    source_optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(algorithm="adam", lr=1e-3, weight_decay=2.5e-5)  # l2_regularizer, lenet.py
    )
    target_optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(algorithm="adam", lr=2e-4, momentum=0.5)  # Sec. 5.1; no decay in this stage
    )
    discriminator_optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(algorithm="adam", lr=2e-4, momentum=0.5)
    )

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.hidden, default=1) < 1:
            raise ValueError(f"batch and every hidden layer must be at least 1, got {self.batch} and {self.hidden}")
        if min(self.source_share, self.head_start) < 0 or self.source_share + self.head_start > 1:
            raise ValueError(
                "source_share and head_start are shares of the run, not negative and at most 1 together, "
                f"got {self.source_share} and {self.head_start}"
            )
        if self.discriminator_input not in ("features", "logits"):
            raise ValueError(f'discriminator_input must be "features" or "logits", got {self.discriminator_input!r}')
        if not 0 <= self.leak < 1:
            raise ValueError(f"leak must lie in [0, 1), got {self.leak}")


def discriminator(inputs: int, hidden: tuple[int, ...], leak: float) -> nn.Sequential:
    """(N, inputs) -> (N, 2) logits, source and target; Xavier-uniform weights, zero biases, as slim's layers have."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), (*hidden, 2), strict=True):
        layers += [nn.Linear(before, after), nn.LeakyReLU(leak)]
        nn.init.xavier_uniform_(layers[-2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


class ADDA(Method):
    """Two encoders and a critic. `source` is the network of the first stage, and so the source-only baseline.

    net      the network both encoders start from
    classes  C
    """

    def __init__(self, net: Backbone, classes: int, settings: ADDASettings | None = None):
        super().__init__()
        self.source, self.target, self.settings = net, copy.deepcopy(net), settings or ADDASettings()
        self._sees_features = self.settings.discriminator_input == "features"
        if self._sees_features:
            self.target.head = nn.Identity()  # the classifier is the source's, also for the target
        inputs = net.feature_size if self._sees_features else classes
        self.discriminator = discriminator(inputs, self.settings.hidden, self.settings.leak)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (
            Stream(pool="source", batch=s.batch, views={"source": s.view}, labels="labels"),
            Stream(pool="target", batch=s.batch, views={"target": s.view}),
        )

    def players(self) -> dict[Player, Optimizer]:
        s = self.settings
        learner: dict[Player, Optimizer] = {self.source: s.source_optimizer} if s.source_share > 0 else {}
        return learner | {self.target: s.target_optimizer, self.discriminator: s.discriminator_optimizer}

    def moves(self, batch: Batch, progress: float) -> Iterator[tuple[Player, Tensor, Parts]]:
        s = self.settings
        if progress < s.source_share:
            supervised = F.cross_entropy(self.source(batch.source), batch.labels)  # Eq. 9, first line
            yield self.source, supervised, as_tensor_parts(supervised=supervised)
            # A target encoder that started anywhere else would permute the classes: nothing ties them to the source's.
            self.target.load_state_dict(self.source.state_dict(), strict=False)  # all but a head that it lacks
            return

        self.source.eval()  # frozen: batch-norm statistics and dropout must not move either
        with torch.no_grad():
            source = self._seen(self.source, batch.source)
        target = self._seen(self.target, batch.target)
        real = self._critic(source)
        # Both losses are taken at the same parameters, as in the released code's one session call: the encoder may step
        # first, because the discriminator's loss needs only the features from before that step.
        if progress >= s.source_share + s.head_start:
            mapping = domain_loss(source=self._critic(target), target=real.detach())  # inverted labels
            yield self.target, mapping, as_tensor_parts(mapping=mapping)
        fake = self._critic(target.detach())
        loss = domain_loss(real, fake)
        told_apart = torch.cat([real[:, 0] > real[:, 1], fake[:, 1] > fake[:, 0]]).float().mean()
        yield self.discriminator, loss, as_tensor_parts(discriminator=loss, told_apart=told_apart)

    def _seen(self, net: Backbone, images: Tensor) -> Tensor:
        return net.features(images) if self._sees_features else net(images)

    def _critic(self, seen: Tensor) -> Tensor:
        return self.discriminator(seen).float()

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1], of the target -> (N, classes) probabilities."""
        logits = self.source.head(self.target(images)) if self._sees_features else self.target(images)
        return logits.float().softmax(dim=1)
