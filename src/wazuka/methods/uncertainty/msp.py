"""MSP, the maximum softmax probability: an image is odd that no class is sure of.

Hendrycks and Gimpel 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
Networks", arXiv:1610.02136 (ICLR); hendrycks/error-detection. It costs nothing and belongs into every table.
Differs from it: one minus that probability, summed from the other classes' in float64, for 1 - 0.99999999 is 0 in
float32 and a tie in every ranking.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.functional.doubt import doubt


class MSP(Detector):
    """One minus the largest probability, in [0, 1 - 1/C]; nothing to fit."""

    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "MSP":
        """Looks at nothing."""
        return self

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; high means odd."""
        return doubt(observation.logits, 1.0).float()
