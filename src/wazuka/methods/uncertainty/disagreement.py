"""Disagreement: an image is odd on which the members of an ensemble, or noisy passes, contradict each other.

Smith and Gal 2018, "Understanding Measures of Uncertainty for Adversarial Example Detection", arXiv:1803.08533 (UAI),
Sec. 3; the mutual information is that of Houlsby et al. 2011 (BALD), arXiv:1112.5745. Total uncertainty is the entropy
of the mean answer; what each pass doubts by itself is noise in the data (aleatoric), and the rest, the mutual
information, is what the passes don't know (epistemic). Ambiguous images have much of the former and none of the latter.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.functional.doubt import doubt
from wazuka.functional.uncertainty import mean_log_probs, mutual_information, predictive_entropy

MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "mutual_information": mutual_information,
    "entropy": predictive_entropy,
    "confidence": lambda passes: doubt(mean_log_probs(passes), 1.0),
}


@dataclass(frozen=True, kw_only=True)
class DisagreementSettings:
    """measure: "mutual_information", of pass and class; "entropy", of the mean answer; "confidence", one minus its
    largest probability. The latter two count the images' own ambiguity too.
    """

    measure: Literal["mutual_information", "entropy", "confidence"] = "mutual_information"

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {self.measure!r}")


class Disagreement(Detector):
    """What several passes know together; nothing to fit."""

    def __init__(self, settings: DisagreementSettings | None = None):
        super().__init__()
        self.settings = settings or DisagreementSettings()

    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "Disagreement":
        """Looks at nothing."""
        return self

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; high means odd."""
        if observation.passes is None:
            raise ValueError("disagreement takes several passes, of an ensemble or with dropout, and there was one")
        return MEASURES[self.settings.measure](observation.passes).float()
