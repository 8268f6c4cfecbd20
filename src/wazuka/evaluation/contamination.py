"""Are there photos of something else among the unlabeled ones, and how many?

The labeled photos say what oddness a photo of the known classes has: each is scored by what knows the others
(leave-one-out). Let t be the r-th largest of these n scores. If labeled and unlabeled photos of the known classes are
drawn alike, the share of the latter that lies above t follows Beta(r, n + 1 - r), whatever the scores' distribution
(Wilks 1941: coverage of an order statistic), and the number of m such photos BetaBinomial(m, r, n + 1 - r). Where more
of the unlabeled photos lie above t than that allows, some are others: the fewest with which so many are still likely.

The law is exact for independent scores. Leave-one-out scores share the photos they are measured from, and know one
label fewer than the others do: simulated (10 and 20 classes of 4 labels, 2 and 64 features), the 95 % bound held in 94
to 99 % of draws; in 87 to 90 % where the classes had other shares among the labels than in the pool, for a class of
many kinds that is frequent there and rare here looks odd. With one label a class scores are distances between classes,
and others are hardly ever found.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wazuka.evaluation.arrays import as_floats


@dataclass(frozen=True)
class Contamination:
    """Shares in [0, 1] of M unlabeled photos.

    threshold   photos that score above it are set aside
    flagged     share above it
    by_chance   share of photos of known classes above it: its mean, and what it stays below with the certainty `level`
    share       of photos of something else, estimated
    at_least    that they are, with the certainty `level`; 0: there may be none
    """

    threshold: float
    n_labels: int
    n_unlabeled: int
    flagged: float
    by_chance: tuple[float, float]
    share: float
    at_least: float
    level: float

    @property
    def found(self) -> bool:
        """Whether there are others at all, with the certainty `level`."""
        return self.at_least > 0

    def odd(self, scores: Any) -> NDArray[np.bool_]:
        """(M,) scores -> (M,) bool, those to set aside; none where none were found."""
        return (as_floats(scores) > self.threshold) & self.found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "threshold": None if math.isinf(self.threshold) else self.threshold}

    def told(self) -> str:
        """One sentence for the user."""
        if not self.found:
            return "No sign was found of photos that show none of the classes."
        return (
            f"About {100 * self.share:.0f} % of the unlabeled photos, at least {100 * self.at_least:.0f} %, seem to "
            f"show none of the classes: {100 * self.flagged:.0f} % of them are odder than all but "
            f"{100 * self.by_chance[0]:.0f} % of photos of the classes would be."
        )


def contamination(left_out: Any, scores: Any, false_alarm: float = 0.05, level: float = 0.95) -> Contamination:
    """From oddness, high for odd photos.

    left_out     (n,)  of labeled photos, each scored by what knows the others
    scores       (M,)  of unlabeled photos
    false_alarm        share of photos of known classes that may be set aside, on average; r = it * (n + 1), at least 1
    level              certainty of the lower bound, in (0, 1)

    With fewer than two labels, or no unlabeled photo, nothing is found. Ties count as not odd.
    """
    from scipy.stats import beta

    known, asked = np.sort(as_floats(left_out))[::-1], as_floats(scores)
    if not 0 < false_alarm < 1 or not 0 < level < 1:
        raise ValueError(f"false_alarm and level must lie in (0, 1), got {false_alarm} and {level}")
    if np.isnan(known).any() or np.isnan(asked).any():
        raise ValueError("scores hold NaN")
    n, total = len(known), len(asked)
    if n < 2 or total == 0 or math.isinf(known[0]):
        return Contamination(math.inf, n, total, 0.0, (0.0, 1.0), 0.0, 0.0, level)
    rank = max(1, math.floor(false_alarm * (n + 1) + 1e-9))
    threshold = float(known[rank - 1])
    above = int((asked > threshold).sum())
    expected, most = rank / (n + 1), float(beta(rank, n + 1 - rank).ppf(level))
    share = max(0.0, (above / total - expected) / (1 - expected))
    fewest = fewest_others(above, total, rank, n, level)
    return Contamination(threshold, n, total, above / total, (expected, most), share, fewest / total, level)


def fewest_others(above: int, total: int, rank: int, n: int, level: float) -> int:
    """How many of `total` photos must be of something else where `above` of them lie above the `rank`-th largest score
    of n photos of the classes: the fewest with which so many have a probability above 1 - level.
    """
    from scipy.stats import betabinom

    def likely(others: int) -> bool:  # others may all lie above
        known = total - others
        return known == 0 or bool(betabinom(known, rank, n + 1 - rank).sf(above - others - 1) > 1 - level)

    if likely(0):
        return 0
    unlikely, enough = 0, above
    while enough - unlikely > 1:
        middle = (unlikely + enough) // 2
        unlikely, enough = (unlikely, middle) if likely(middle) else (middle, enough)
    return enough
