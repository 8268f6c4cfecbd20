"""Setting odd photos aside: from which score on, and how many photos of the known kind go with them by mistake?

A Detector's score is high for odd images. The labeled photos are known not to be odd; what each of them scores with a
detector fitted on the others (leave-one-out) says what scores of known photos look like, and conformal prediction
turns n of them into a threshold above which a known photo lies with probability `false_alarm` at most: inductive
conformal anomaly detection (Laxhammar and Falkman 2015; Bates et al. 2023, arXiv:2104.08279, "Testing for outliers
with conformal p-values"). With n labels no rate below 1/(n + 1) can be promised.

The promise is proven for scores that treat labeled photos and new ones alike, and for those that one more neighbor
can only lower: distances to the k-th nearest neighbor, where leave-one-out scores lie above what full conformal
prediction would compare with. For other detectors it is what jackknifes usually are: near the rate, without proof. It
is a mean over draws of labels, for photos whose classes come as the labeled ones do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wazuka.contract import Detector, Observation
from wazuka.evaluation.arrays import Floats, as_floats
from wazuka.evaluation.conformal import conformal_threshold, labels_needed, percent


@dataclass(frozen=True)
class Aside:
    """Photos that score above the threshold are set aside; infinite: none, there are too few labels for the rate.

    false_alarm  largest share of known photos set aside, in (0, 1)
    labels       leave-one-out scores that say so
    """

    threshold: float
    false_alarm: float
    labels: int

    @property
    def missing(self) -> int:
        """How many labels more it takes."""
        return max(0, labels_needed(self.false_alarm) - self.labels)

    @property
    def possible(self) -> bool:
        """Whether there are labels enough for this rate."""
        return self.missing == 0

    def odd(self, scores: Any) -> NDArray[np.bool_]:
        """(M,) scores of new photos -> (M,) bool."""
        return as_floats(scores) > self.threshold

    def told(self) -> str:
        """One sentence for the user."""
        rate = percent(self.false_alarm, up=True)
        if self.possible:
            return f"At most {rate} of the photos of known classes are set aside by mistake ({self.labels} labels)."
        least = percent(1 / (self.labels + 1), up=True)
        return (
            f"With {self.labels} labels no rate of false alarms below {least} can be promised; "
            f"{rate} take {self.missing} more."
        )


def aside_threshold(left_out: Any, false_alarm: float) -> Aside:
    """The threshold that known photos pass with probability `false_alarm` at most; (n,) leave-one-out scores."""
    scores = as_floats(left_out)
    return Aside(conformal_threshold(scores, false_alarm), false_alarm, len(scores))


def oddness_p_values(left_out: Any, scores: Any) -> Floats:
    """How many of the known photos, and the new one itself, score as high; (n,), (M,) -> (M,) in [1/(n + 1), 1].

    For a photo of the known kind it is at most p with probability p at most: false discovery rates can be held with
    it. Set aside at rate a are exactly those with a p-value of a or less.
    """
    known = np.sort(as_floats(left_out))
    above = len(known) - np.searchsorted(known, as_floats(scores), side="left")
    return (above + 1) / (len(known) + 1)


def left_out_scores(blank: Callable[[], Detector], known: Observation) -> Floats:
    """What each known image scores with a detector that was fitted on the others; n fits; -> (n,).

    blank  makes an unfitted detector
    known  n labeled images; for inner layers as well, if the detector wants them

    A detector that is fitted on unlabeled images as well keeps those in `blank`'s fit; `KNN.left_out` is this at once.
    """
    import torch

    everyone = torch.arange(len(known), device=known.logits.device)

    def score(image: int) -> float:
        rest = known.of(everyone != image)
        return float(blank().fit(lambda: [rest]).score(known.of(everyone == image))[0])

    return np.asarray([score(image) if len(known) > 1 else math.inf for image in range(len(known))])
