"""LoRA: leave the pre-trained weights alone and learn a low-rank change beside them, and a new head.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR, arXiv:2106.09685; huggingface/peft, whose
defaults of rank, alpha and dropout are ours. The adapters are in parts/lora.py. Learning rate and schedule are those of
peft's example for images (examples/image_classification; AdamW, 5e-3, falling to 0).
Differs from the example: every linear and convolutional layer that takes an adapter gets one, where there it is the
queries and values of attention; depthwise convolutions take none and stay frozen. In convolutional networks the gains
and shifts of batch norm may learn beside them (`tuning.norms="frozen"`).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.schedules import falling
from wazuka.nets import Backbone
from wazuka.parts.lora import add_adapters, merge_adapters
from wazuka.parts.tuning import Tuned, Tuning


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """rank: r. alpha: the adapter's output is scaled by alpha / r. dropout: before the adapter, in training."""

    labeled_batch: int = 64
    view: Literal["plain", "weak", "strong"] = "weak"
    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    tuning: Tuning = field(default_factory=lambda: Tuning(head_rate=1.0, norms="frozen_all"))
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adamw", lr=5e-3, schedule=falling))

    def __post_init__(self) -> None:
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "rank must be at least 1, alpha above 0 and dropout in [0, 1), "
                f"got {self.rank}, {self.alpha} and {self.dropout}"
            )


class LoRA(Method):
    """Cross-entropy on the labeled images; only adapters and head learn.

    net      pre-trained; the adapters are put into it
    classes  C
    """

    def __init__(self, net: Backbone, classes: int, settings: LoRASettings | None = None):
        super().__init__()
        self.settings = s = settings or LoRASettings()
        add_adapters(net, s.rank, s.alpha, s.dropout, but=[net.head])
        self.net = Tuned(net, classes, s.tuning)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def players(self) -> dict[Player, Optimizer]:
        return {self: self.net.optimizer(self.settings.optimizer)}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        self.net.wake(progress)
        loss = F.cross_entropy(self.net(batch.images), batch.labels)
        return loss, as_tensor_parts(supervised=loss)

    def merge(self) -> Backbone:
        """Fold the adapters into the network, when training is over; -> that network, which is as it was built."""
        merged = merge_adapters(self.net.net)
        assert isinstance(merged, Backbone)
        return merged

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)
