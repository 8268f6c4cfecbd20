"""Fine-tuning: train a pre-trained network on the labels, under a new head.

Kolesnikov et al. 2020, "Big Transfer (BiT)", ECCV, arXiv:1912.11370: the head of zeros, `bit_steps` and
`bit_hyperrule` (functional/schedules.py). Howard & Ruder 2018, "Universal Language Model Fine-tuning" (ULMFiT), ACL,
arXiv:1801.06146: rates that fall from layer to layer, gradual unfreezing, `slanted_triangle`. Kumar et al. 2022,
"Fine-Tuning can Distort Pretrained Features" (LP-FT), ICLR, arXiv:2202.10054: `start_head`. The rest of the defaults
are the plain baseline's in thuml/Batch-Spectral-Shrinkage (BSS.py, method "l2"). What is tuned, how fast and from when
on is `Tuning` in parts/tuning.py.
Differs from them: batch norm keeps its running statistics, which batches of few labels would spoil
(`tuning.norms="train"` is the papers' way); one learning-rate schedule spans the run, where ULMFiT's code starts one
with each layer that is unfrozen; weight decay reaches kernels only.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.schedules import staircase
from wazuka.nets import Backbone
from wazuka.parts.tuning import Tuned, Tuning


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings:
    """optimizer: its learning rate is that of the encoder's top layers."""

    labeled_batch: int = 48       # BSS.py
    view: Literal["plain", "weak", "strong"] = "weak"
    label_smoothing: float = 0.0  # share of each label that is spread over all classes
    tuning: Tuning = field(default_factory=Tuning)
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.001, nesterov=False, weight_decay=5e-4, schedule=staircase(2 / 3))
    )  # BSS.py; its learning rate is 0.01 for the head and a tenth of that for the encoder

    def __post_init__(self) -> None:
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")


class FineTune(Method):
    """Cross-entropy on the labeled images.

    net      pre-trained; it is tuned in place
    classes  C
    """

    def __init__(self, net: Backbone, classes: int, settings: FineTuneSettings | None = None):
        super().__init__()
        self.settings = settings or FineTuneSettings()
        self.net = Tuned(net, classes, self.settings.tuning)

    def start_head(self, weight: Tensor, bias: Tensor) -> None:
        """LP-FT's second stage: begin from a linear probe on the features, weight (C, D) and bias (C,)."""
        self.net.start_head(weight, bias)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def players(self) -> dict[Player, Optimizer]:
        return {self: self.net.optimizer(self.settings.optimizer)}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        self.net.wake(progress)
        logits = self.net(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.settings.label_smoothing)
        return loss, as_tensor_parts(supervised=loss)

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)
