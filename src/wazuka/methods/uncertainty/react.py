"""ReAct: the energy, of features cut off where those of known images seldom reach.

Sun, Guo and Li 2021, "ReAct: Out-of-distribution Detection With Rectified Activations", arXiv:2111.12797 (NeurIPS);
deeplearning-wisc/react. Odd images drive a few features far up, which the energy takes for conviction.
The cut is the 90th percentile of all features of all known images together, as np.percentile has it: exact up to
2^23 values, beyond that of evenly spread images (each second one, then each fourth, ...), in one pass.
Differs from it: that there are training images enough is not asked; the authors look at 2,000 and more. For features
without a ReLU (of both signs) the authors promise nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.errors import UserError
from wazuka.parts.fitted import Fitted
from wazuka.parts.last_layer import last_layer

KEPT = 2**23  # values: 32 MiB


def spread_images(batches: Iterable[Tensor], values: int) -> Tensor:
    """Every image while they have no more than so many values, else each second, fourth, ... of them; in one pass.

    batches  of (N, D)
    values   to be kept at most; an image at least
    returns  (n, D)     the same whatever the batches are
    """
    kept: list[Tensor] = []
    stride, start, count = 1, 0, 0
    for features in batches:
        first = -start % stride  # an image is kept whose place in the whole is a multiple of the stride
        start += len(features)
        kept.append(features[first::stride])
        count += len(kept[-1])
        while count > 1 and count * features.shape[1] > values:
            kept, stride = [torch.cat(kept)[::2]], 2 * stride
            count = len(kept[0])
    return torch.cat(kept) if kept else torch.empty(0, 0)


@dataclass(frozen=True, kw_only=True)
class ReActSettings:
    """share: of all features of known images that lie below the cut."""

    share: float = 0.9  # Sec. 4.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")


class ReAct(Fitted, Detector):
    """Free energy of the logits that the cut features make."""

    cut: Tensor     # ()      c
    weight: Tensor  # (C, D)  the last layer's
    bias: Tensor    # (C,)

    def __init__(self, settings: ReActSettings | None = None):
        super().__init__()
        self.settings = settings or ReActSettings()
        for name in ("cut", "weight", "bias"):
            self.register_buffer(name, torch.empty(0))

    @torch.no_grad()
    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "ReAct":
        """One pass."""
        weight = bias = None

        def features() -> Iterable[Tensor]:
            nonlocal weight, bias
            for observation in observations():
                if weight is None:
                    weight, bias = last_layer(observation, "ReAct")
                yield observation.features.float()

        values = spread_images(features(), KEPT).flatten()
        if weight is None or bias is None or not len(values):
            raise UserError("ReAct learns from known images, and there are none.")
        self.cut = values.double().quantile(self.settings.share).float()
        self.weight, self.bias = weight.float(), bias.float()
        return self

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; high means odd."""
        if self.weight.ndim != 2:
            raise ValueError("this ReAct detector is not fitted: call fit, or load a fitted one's state")
        cut = observation.features.float().minimum(self.cut)
        return -(cut @ self.weight.mT + self.bias).logsumexp(dim=1)
