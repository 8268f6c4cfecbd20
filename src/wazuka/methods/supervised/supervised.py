"""Supervised learning on the labeled images alone: the floor.

Two floors, told apart by `view`: "weak" augmentation, and "strong", which on small data explains much of what
semi-supervised methods gain and is therefore the honest one to beat (Oliver et al. 2018, arXiv:1804.09170, Sec. 4).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.schedules import cosine_7_16
from wazuka.parts.averaged import AveragedWeights


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings:
    """labeled_batch: images a step. view: the augmentation they get. averaging: decay of the weights used to answer."""

    labeled_batch: int = 64
    view: Literal["weak", "strong"] = "strong"
    averaging: float = 0.999
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.03, weight_decay=5e-4, schedule=cosine_7_16)  # FixMatch's, to compare
    )

    def __post_init__(self) -> None:
        if self.view not in ("weak", "strong"):
            raise ValueError(f'view must be "weak" or "strong", got {self.view!r}')


class Supervised(Method):
    """Cross-entropy on the labeled images; answers come from the averaged weights."""

    def __init__(self, net: nn.Module, settings: SupervisedSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or SupervisedSettings()
        self.average = AveragedWeights(net, self.settings.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        loss = F.cross_entropy(self.net(batch.images), batch.labels)
        return loss, as_tensor_parts(supervised=loss)

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
