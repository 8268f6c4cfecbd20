"""Deep ensembles: several networks from different starts; where they disagree, nobody knows.

Lakshminarayanan, Pritzel & Blundell 2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep
Ensembles", NeurIPS, arXiv:1612.01474, Algorithm 1. Probabilities are averaged, never logits; every member has an
optimizer of its own. For regression see `wazuka.functional.gaussians`.
Differs from it: members share out one stream, so that no two see the same image in a step; in M passes of the stream
each sees as many images as a pass of its own would hold, but some twice. Adversarial images are off, as in most of
what followed (among them DUQ's baseline), and don't move batch norm's statistics. Optimizer: that baseline's
(y0ast/deterministic-uncertainty-quantification, train_deep_ensemble.py).
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Observation, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.schedules import staircase
from wazuka.functional.uncertainty import mean_logits
from wazuka.nets import Backbone
from wazuka.parts.batchnorm import frozen_statistics


@torch.no_grad()
def redrawn(net: nn.Module) -> nn.Module:
    """A copy that starts elsewhere: every parameter drawn anew, normal with the mean and spread it has in `net`.

    So any initialization keeps its scale, and what is constant (biases at 0, norms at 1) stays. Buffers are copied.
    """
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        spread = parameter.std(correction=0)
        parameter.copy_(parameter.mean() + spread * torch.randn_like(parameter))
    return other


def adversarial_images(net: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """x + epsilon * sign(gradient of the cross-entropy), not clipped (Sec. 2.3). No gradient flows through.

    images   (N, C, H, W)
    labels   (N,)
    epsilon  in the images' units
    """
    start = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(net(start), labels), start)
    return images + epsilon * slope.sign()


@dataclass(frozen=True, kw_only=True)
class DeepEnsembleSettings:
    """members: M. redraw: the others start anew; False: all from the network that is given, as one does with a
    pretrained one, and differ by what they see and when. adversarial: Algorithm 1's l(x) + l(x').
    """

    labeled_batch: int = 128     # of each member
    members: int = 5             # Algorithm 1
    view: Literal["plain", "weak", "strong"] = "weak"
    redraw: bool = True
    adversarial: bool = False
    epsilon: float = 0.01        # of the adversarial step: 1 % of the range of an image (Algorithm 1)
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            lr=0.05, nesterov=False, weight_decay=5e-4, schedule=staircase(1 / 3, 2 / 3)  # of 75 passes
        )
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.members) < 1:
            raise ValueError(
                f"labeled_batch and members must be at least 1, got {self.labeled_batch} and {self.members}"
            )
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must not be negative, got {self.epsilon}")


class DeepEnsemble(Method):
    """M networks that never meet; the answer is the mean of theirs.

    net  the first member, or what makes one each time it is called: then nothing is redrawn
    """

    def __init__(self, net: Backbone | Callable[[], Backbone], settings: DeepEnsembleSettings | None = None):
        super().__init__()
        self.settings = settings or DeepEnsembleSettings()
        others = range(self.settings.members - 1)
        if not isinstance(net, nn.Module):
            self.members = nn.ModuleList([net(), *(net() for _ in others)])
        else:
            again = redrawn if self.settings.redraw else copy.deepcopy
            self.members = nn.ModuleList([net, *(again(net) for _ in others)])

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        size = s.labeled_batch * s.members
        return (Stream(pool="labeled", batch=size, views={"images": s.view}, labels="labels"),)

    def players(self) -> dict[Player, Optimizer]:
        """Each member: with one optimizer for all, decay and momentum would move those whose turn it isn't."""
        return dict.fromkeys(self.members, self.settings.optimizer)

    def moves(self, batch: Batch, progress: float) -> Iterator[tuple[Player, Tensor, Parts]]:
        s, total = self.settings, torch.zeros((), device=batch.images.device)
        for number, member in enumerate(self.members):
            # every M-th image: so that a member's share is the same however many processes share the batch
            images, labels = batch.images[number :: s.members], batch.labels[number :: s.members]
            loss = F.cross_entropy(member(images), labels)
            total = total + loss.detach() / s.members
            if s.adversarial:
                with frozen_statistics(member):
                    changed = adversarial_images(member, images, labels, s.epsilon)
                    loss = loss + F.cross_entropy(member(changed), labels)
            yield member, loss, as_tensor_parts(supervised=total)  # the last turn's is the mean of all

    def passes(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (M, N, classes) logits of each member."""
        return torch.stack([member(images) for member in self.members])

    def observe(self, images: Tensor, layers: Iterable[str] | None = ()) -> Observation:
        """Logits: of the mean softmax, see `mean_logits`. Features: the members' side by side; so are the inner layers,
        as "0.NAME", "1.NAME" and so on, and `layers` are a single member's names. There is no one head.
        """
        names = None if layers is None else list(layers)
        seen = [cast(Backbone, member).observe(images, names) for member in self.members]
        passes = torch.stack([one.logits for one in seen])
        activations = {
            f"{number}.{name}": value for number, one in enumerate(seen) for name, value in one.activations.items()
        }
        features = torch.cat([one.features for one in seen], dim=1)
        return Observation(mean_logits(passes), features, activations, passes=passes)

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, classes) mean of the members' probabilities."""
        return self.passes(images).softmax(dim=-1).mean(dim=0)
