"""Pi-model: two random views of an image shall get the same answer.

Laine & Aila 2017, "Temporal Ensembling for Semi-Supervised Learning", ICLR, arXiv:1610.02242, Algorithm 1; as
google-research/remixmatch has it (pi_model.py), whose numbers for CIFAR-10 are the defaults.
Where they disagree, Google's code is followed: the first view's answer is a fixed target (the paper's gradient flows
into both, see `two_sided`); the weight rises linearly (there: as exp(-5 (1 - t)^2) over 80 of 300 epochs, to 100 times
the share of the images that are labeled); the labeled and the two unlabeled batches pass by themselves (there: one
batch of both, twice), and only the first moves batch norm's statistics.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.consistency import squared_consistency
from wazuka.functional.schedules import linear_ramp
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics


def two_sided_consistency(first: Tensor, second: Tensor) -> Tensor:
    """The squared difference of probabilities, both of which move (Algorithm 1).

    first    (N, C)  logits
    second   (N, C)  logits of the other pass
    returns  (N,)    mean over classes, in [0, 2 / C]; as `squared_consistency`, and with the gradient of both sides
    """
    return (first.softmax(dim=1) - second.softmax(dim=1)).square().mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class PiModelSettings:
    """Sources: pi_model.py and mixmatch's runs/table5.sh (SVHN: consistency_weight 5, weight decay 0.2)."""

    labeled_batch: int = 64
    unlabeled_ratio: int = 1          # unlabeled images per labeled one
    view: Literal["weak", "strong"] = "weak"
    consistency_weight: float = 20.0
    ramp: float = 0.4                 # share of the run in which that weight rises
    two_sided: bool = False           # the paper's gradient, into both views
    averaging: float = 0.999          # decay of the weights used to answer
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02))

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_ratio) < 1:
            raise ValueError("labeled_batch and unlabeled_ratio must be at least 1")
        if self.view not in ("weak", "strong"):
            raise ValueError(f'view must be "weak" or "strong", got {self.view!r}')
        if not self.consistency_weight >= 0:
            raise ValueError(f"consistency_weight must not be negative, got {self.consistency_weight}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share of the run, in [0, 1], got {self.ramp}")


class PiModel(Method):
    """One network and two views of each unlabeled image; answers come from the averaged weights.

    net  images -> (N, classes) logits
    """

    def __init__(self, net: nn.Module, settings: PiModelSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or PiModelSettings()
        self.average = AveragedWeights(net, self.settings.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s, pair = self.settings, {"first": self.settings.view, "second": self.settings.view}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=pair),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        supervised = F.cross_entropy(self.net(batch.images), batch.labels)  # this pass moves batch norm's statistics
        with frozen_statistics(self.net):
            with torch.set_grad_enabled(s.two_sided):  # a target needs no backward pass
                first = self.net(batch.first)
            second = self.net(batch.second)
        losses = two_sided_consistency(first, second) if s.two_sided else squared_consistency(second, target=first)
        consistency = losses.mean()
        total = supervised + s.consistency_weight * linear_ramp(progress, s.ramp) * consistency
        return total, as_tensor_parts(supervised=supervised, consistency=consistency)

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
