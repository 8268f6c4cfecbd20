"""MaxLogit: an image is odd that speaks for no class in particular, whatever it says against the others.

Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt and Song 2022, "Scaling Out-of-Distribution Detection for
Real-World Settings", arXiv:1911.11132 (ICML); hendrycks/anomaly-seg. Where classes are many and alike, the softmax
doubts between two of them and takes a known image for odd; their logits are high all the same.
A constant added to all logits changes it and no probability: not for networks whose training leaves that free.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation


class MaxLogit(Detector):
    """Minus the largest logit; nothing to fit."""

    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "MaxLogit":
        """Looks at nothing."""
        return self

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; high means odd."""
        return -observation.logits.float().amax(dim=1)
