"""ViM: an image is odd whose features leave the space that known images fill, and whose logits are low.

Wang, Li, Feng and Zhang 2022, "ViM: Out-Of-Distribution with Virtual-logit Matching", arXiv:2203.10807 (CVPR);
haoqiwang/vim. The length of what lies outside that space, scaled to the size of a largest logit, is the logit of one
more class, "none of these"; the score is that logit less the logsumexp of the others.
As in the authors' code, the space is that of the largest eigenvalues of the second moment around the origin
o = -pinv(W) b (not around the mean), of 1000 dimensions where features have 2048 and more, 512 from 768 on, and else
half of them. Differs from it: never more than two thirds of the dimensions in which the known images vary at all. With
40 images in 1280 dimensions nothing of them would lie outside, and the scale, which divides by that, be infinite.
Where the mean largest logit is not positive (a constant in all logits, which no probability tells), the scale is that
of the largest over the mean logit: theirs would turn the score's sign.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.errors import UserError
from wazuka.parts.fitted import Fitted
from wazuka.parts.last_layer import last_layer

VARIES = 1e-10  # of the largest eigenvalue: below it, a direction is float32's rounding


def authors_dimensions(features: int) -> int:
    """How many of so many dimensions span the principal space; benchmark.py."""
    return 1000 if features >= 2048 else 512 if features >= 768 else features // 2


@dataclass(frozen=True, kw_only=True)
class ViMSettings:
    """dimensions: of the principal space; None: the authors' rule."""

    dimensions: int | None = None

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 0:
            raise ValueError(f"dimensions must not be negative, got {self.dimensions}")


class ViM(Fitted, Detector):
    """Virtual logit less the logsumexp of the real ones."""

    origin: Tensor    # (D,)    where all logits are 0, as nearly as can be
    residual: Tensor  # (D, R)  orthonormal, the directions outside the principal space
    scale: Tensor     # ()      alpha

    def __init__(self, settings: ViMSettings | None = None):
        super().__init__()
        self.settings = settings or ViMSettings()
        for name in ("origin", "residual", "scale"):
            self.register_buffer(name, torch.empty(0))

    @torch.no_grad()
    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "ViM":
        """Two passes: the space, then the scale."""
        origin = None
        moment, largest, above, n = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0
        for observation in observations():
            if origin is None:
                weight, bias = last_layer(observation, "ViM")
                origin = -torch.linalg.pinv(weight) @ bias
            x, logits = observation.features.double() - origin, observation.logits.double()
            moment, n = x.mT @ x + moment, n + len(x)
            largest, above = logits.amax(dim=1).sum() + largest, (logits.amax(1) - logits.mean(1)).sum() + above
        if origin is None or n == 0:
            raise UserError("ViM learns from known images, and there are none.")
        values, vectors = torch.linalg.eigh(moment)  # ascending
        self.origin = origin.float()
        self.residual = vectors[:, : len(values) - self._dimensions(values)].float().contiguous()
        lengths = sum((self._length(observation.features).double().sum() for observation in observations()),
                      start=torch.zeros((), dtype=torch.float64))  # fmt: skip
        matched = largest if largest > 0 else above
        self.scale = (matched / lengths if lengths > 0 else torch.zeros_like(matched)).float()
        return self

    def _dimensions(self, values: Tensor) -> int:
        """Of the principal space; values (D,) of the second moment say in how many dimensions images vary."""
        features, varied = len(values), int((values > VARIES * values[-1]).sum())
        if self.settings.dimensions is None:
            return min(authors_dimensions(features), varied * 2 // 3)
        if varied <= self.settings.dimensions < features:
            raise UserError(f"ViM keeps {self.settings.dimensions} dimensions, and the known images vary in {varied}: "
                            "nothing is left to measure the rest by. Keep fewer, or give more images.")  # fmt: skip
        return min(self.settings.dimensions, features)

    def _length(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) of what lies outside the principal space."""
        return ((features.float() - self.origin) @ self.residual).norm(dim=1)

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; high means odd."""
        if self.residual.ndim != 2:
            raise ValueError("this ViM detector is not fitted: call fit, or load a fitted one's state")
        return self.scale * self._length(observation.features) - observation.logits.float().logsumexp(dim=1)
