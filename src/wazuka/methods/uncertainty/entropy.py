"""Predictive entropy: an image is odd whose probability is spread over many classes.

Shannon 1948, used so by Lakshminarayanan, Pritzel and Blundell 2017, arXiv:1612.01474 (NeurIPS), Sec. 3.5, and by most
work on ensembles since. Where several passes answered, it is the entropy of their mean, the *total* uncertainty.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.functional.uncertainty import predictive_entropy


class Entropy(Detector):
    """Entropy of the predicted probabilities, in nats; nothing to fit."""

    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "Entropy":
        """Looks at nothing."""
        return self

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; high means odd."""
        return predictive_entropy(observation.logits[None])
