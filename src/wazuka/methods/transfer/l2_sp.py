"""L2-SP: fine-tune, and pull the weights to where they started from instead of to zero.

Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML,
arXiv:1802.01483; holyseven/TransferLearningClassification (model/network_base.py, run_classification/train.sh).
The defaults are the script's for Stanford Dogs. Where the two disagree: the paper's penalty holds all weights, the
code's the kernels alone (its mode 1; biases, gains and shifts go free); `everything` is its mode 101.
Differs from them: batch norm keeps its running statistics (`tuning.norms="train"` is the code's way), and the encoder
learns ten times slower than the head, for at the head's 0.01, which is the code's for both, a network whose norms look
at no batch comes apart. As in the code, the penalty is part of the loss, so its gradient passes through the momentum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.schedules import staircase
from wazuka.nets import Backbone
from wazuka.parts.anchor import Anchor
from wazuka.parts.tuning import Tuned, Tuning


def half_square_distance(weights: Sequence[Tensor], starts: Sequence[Tensor]) -> Tensor:
    """|w - w0|^2 / 2, summed over all numbers of all tensors (the penalty, without its alpha).

    weights  of any shapes
    starts   of the same shapes; no gradient flows into them
    returns  ()
    """
    squares = [(w - start.detach()).square().sum() for w, start in zip(weights, starts, strict=True)]
    return torch.stack(squares).sum() / 2


@dataclass(frozen=True, kw_only=True)
class L2SPSettings:
    """optimizer: its learning rate is that of the encoder's top layers. It must not decay: that pulls to zero too."""

    labeled_batch: int = 64
    view: Literal["plain", "weak", "strong"] = "weak"
    start_weight: float = 0.1  # alpha: of the pull on the encoder to where it started
    head_weight: float = 0.01  # beta: of the pull on the head to zero
    everything: bool = False   # biases, gains and shifts are pulled too
    tuning: Tuning = field(default_factory=Tuning)
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.001, nesterov=False, schedule=staircase(5 / 9))  # 5,000 of 9,000 steps
    )

    def __post_init__(self) -> None:
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if not (self.start_weight >= 0 and self.head_weight >= 0):
            raise ValueError(
                f"start_weight and head_weight must not be negative, got {self.start_weight} and {self.head_weight}"
            )
        if self.optimizer.weight_decay != 0:
            raise ValueError(
                "optimizer.weight_decay must be 0, for L2-SP takes its place; "
                f"start_weight and head_weight say how strongly, got {self.optimizer.weight_decay}"
            )


class L2SP(Method):
    """Cross-entropy on the labeled images, and two pulls: the encoder to its start, the head to zero.

    net      pre-trained; it is tuned in place, and pulled to the weights it has now
    classes  C
    """

    def __init__(self, net: Backbone, classes: int, settings: L2SPSettings | None = None):
        super().__init__()
        self.settings = settings or L2SPSettings()
        self.net = Tuned(net, classes, self.settings.tuning)
        self.start = Anchor(self._pulled(self.net.encoder_parameters()))

    def _pulled(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        return [p for p in parameters if self.settings.everything or p.ndim > 1]

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def players(self) -> dict[Player, Optimizer]:
        return {self: self.net.optimizer(self.settings.optimizer)}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        self.net.wake(progress)
        supervised = F.cross_entropy(self.net(batch.images), batch.labels)
        distance = half_square_distance(self._pulled(self.net.encoder_parameters()), self.start())
        head = self._pulled(self.net.head_parameters())
        size = half_square_distance(head, [torch.zeros_like(p) for p in head])
        total = supervised + s.start_weight * distance + s.head_weight * size
        return total, as_tensor_parts(supervised=supervised, distance=distance, head=size)

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)
