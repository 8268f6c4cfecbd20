"""Intervals: a number measured on finitely many images, and how far off it may be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from wazuka.evaluation.arrays import Floats, Integers


@dataclass(frozen=True)
class Estimate:
    """A measured value and the interval that holds the truth in `level` of all repetitions.

    how    the interval's method: "wilson", "bootstrap", "t", ...
    NaN    as a value: nothing was there to measure; as a bound: too little to say
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    how: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, which knows no NaN and no infinity: those become None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        finite = {name: float(number) if math.isfinite(number) else None for name, number in numbers.items()}
        return {**finite, "level": self.level, "how": self.how}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Estimate":
        """What `to_dict` wrote."""
        value, low, high = (math.nan if saved[name] is None else saved[name] for name in ("value", "low", "high"))
        return cls(value, low, high, saved["level"], saved["how"])

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.level:.0%} interval {self.low:.4g} to {self.high:.4g})"


def normal_quantile(level: float) -> float:
    """How many standard deviations a two-sided interval of this level reaches: 1.96 at 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(correct: int, total: int, level: float = 0.95) -> Estimate:
    """Share `correct / total` with Wilson's score interval (Wilson 1927), which never leaves [0, 1] and, unlike
    value +- 1.96 sd, still has a width when all or none are correct. Nothing measured: NaN, from 0 to 1.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct must lie in [0, total], got {correct} of {total}")
    z = normal_quantile(level)
    if total == 0:
        return Estimate(math.nan, 0.0, 1.0, level, "wilson")
    share = correct / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    low = 0.0 if correct == 0 else center - reach  # exactly, where rounding would leave 1e-18
    high = 1.0 if correct == total else center + reach
    return Estimate(share, low, high, level, "wilson")


def mean_of_shares(shares: Sequence[Estimate], level: float = 0.95) -> Estimate:
    """Unweighted mean of independent shares (balanced accuracy is that of the recalls), its interval recovered from
    theirs (MOVER, Zou and Donner 2008): with Wilson's bounds it keeps a width when every share is 1.
    Shares with nothing measured (NaN) are left out.
    """
    known = [share for share in shares if not math.isnan(share.value)]
    if not known:
        return Estimate(math.nan, 0.0, 1.0, level, "mover-wilson")
    value = math.fsum(share.value for share in known) / len(known)
    below = math.sqrt(math.fsum((share.value - share.low) ** 2 for share in known)) / len(known)
    above = math.sqrt(math.fsum((share.high - share.value) ** 2 for share in known)) / len(known)
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), level, "mover-wilson")


def bootstrap_draws(
    statistic: Callable[[Integers], Sequence[float] | Floats], n: int, draws: int, generator: np.random.Generator
) -> Floats:
    """`statistic` of `draws` samples of n rows with replacement -> (draws, statistics).

    The rows come in ascending order, so that a statistic that needs its images sorted sorts them only once.
    """
    results = []
    for _ in range(draws):
        counts = np.bincount(generator.integers(0, n, n), minlength=n)
        results.append(statistic(np.repeat(np.arange(n), counts)))
    return np.asarray(results, dtype=np.float64)


def bca(value: float, draws: Floats, influence: Floats, level: float = 0.95) -> Estimate:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987), for skewed statistics such as the mean NLL.

    draws      (R,)  the statistic on bootstrap samples
    influence  (N,)  how far each image moves the statistic, up to a common factor; for a mean: its value
    """
    normal = NormalDist()
    z = normal_quantile(level)
    spread = influence - influence.mean()
    squares = (spread**2).sum()
    if squares == 0:  # all images alike: every sample gives the same value
        return Estimate(value, value, value, level, "bootstrap")
    acceleration = (spread**3).sum() / (6 * squares**1.5)
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    bias = normal.inv_cdf(min(max(below, 1 / (len(draws) + 1)), 1 - 1 / (len(draws) + 1)))

    def corrected(quantile: float) -> float:
        return normal.cdf(bias + (bias + quantile) / (1 - acceleration * (bias + quantile)))

    low, high = np.quantile(draws, [corrected(-z), corrected(z)])
    return Estimate(value, float(low), float(high), level, "bootstrap")


def percentile(value: float, draws: Floats, level: float = 0.95) -> Estimate:
    """Percentile bootstrap interval; draws (R,)."""
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high), level, "bootstrap")
