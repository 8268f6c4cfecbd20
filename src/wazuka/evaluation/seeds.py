"""One seed is an anecdote: what several runs of a method say together, and whether two methods differ."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wazuka.evaluation.arrays import Floats, as_floats
from wazuka.evaluation.intervals import Estimate, normal_quantile


@dataclass(frozen=True)
class Summary:
    """A method over seeds. The interval is Student's t for the mean; one seed has no sd and no interval (NaN).

    worst   the least value where higher is better, else the largest
    sd      sample standard deviation, divisor n - 1
    """

    values: tuple[float, ...]
    median: float
    mean: Estimate
    sd: float
    worst: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        sd = self.sd if math.isfinite(self.sd) else None
        return {**asdict(self), "values": list(self.values), "mean": self.mean.to_dict(), "sd": sd}


@dataclass(frozen=True)
class Comparison:
    """Method A against method B on the same seeds or the same images.

    difference  A minus B, with its interval
    p_value     how often a difference this large or larger arises where there is none, in [0, 1]
    test        "paired t" or "McNemar exact"
    n           pairs
    """

    difference: Estimate
    p_value: float
    test: str
    n: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        p_value = self.p_value if math.isfinite(self.p_value) else None
        return {"difference": self.difference.to_dict(), "p_value": p_value, "test": self.test, "n": self.n}


def summarize(values: Any, *, higher_is_better: bool = True, level: float = 0.95) -> Summary:
    """Median, mean with t-interval, spread and worst of one number over seeds; (S,) -> Summary."""
    values = as_floats(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be (S,) with at least one seed, got {tuple(values.shape)}")
    return Summary(
        values=tuple(values.tolist()),
        median=float(np.median(values)),
        mean=t_interval(values, level),
        sd=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        worst=float(values.min() if higher_is_better else values.max()),
    )


def t_interval(values: Floats, level: float = 0.95) -> Estimate:
    """Mean with Student's t interval; (S,), one value has none."""
    from scipy.stats import t

    normal_quantile(level)  # refuses a level outside (0, 1)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(mean, math.nan, math.nan, level, "t")
    reach = float(t.ppf(0.5 + level / 2, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - reach, mean + reach, level, "t")


def paired_t(a: Any, b: Any, level: float = 0.95) -> Comparison:
    """Does A beat B over seeds? The same seeds (labels drawn, start) for both, in the same order; (S,), (S,).

    Pairing removes what the seeds share, above all the luck of which images were labeled.
    """
    from scipy.stats import t

    a, b = as_floats(a), as_floats(b)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"a paired comparison needs the same two or more seeds for both, got {a.shape} and {b.shape}")
    differences = a - b
    difference = t_interval(differences, level)
    error = float(differences.std(ddof=1)) / math.sqrt(len(a))
    if error == 0:  # every seed differs by the same amount
        p_value = 1.0 if difference.value == 0 else 0.0
    else:
        p_value = float(2 * t.sf(abs(difference.value) / error, len(a) - 1))
    return Comparison(difference, p_value, "paired t", len(a))


def mcnemar(a_correct: Any, b_correct: Any, level: float = 0.95) -> Comparison:
    """Does A beat B on these images? Two trained classifiers, one test set; (N,) bool, (N,) bool.

    The exact binomial test on the images that only one of them names right (McNemar 1947); the interval of the
    difference of accuracies is Agresti and Min's (2005): half an image is added to each of the four cells. It speaks
    of these two classifiers; whether the *methods* differ is for several seeds to say (`paired_t`).
    """
    from scipy.stats import binom

    a, b = as_floats(a_correct) > 0.5, as_floats(b_correct) > 0.5
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"both need answers on the same images, got {a.shape} and {b.shape}")
    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    p_value = min(1.0, float(2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
    gained, lost, total = only_a + 0.5, only_b + 0.5, n + 2
    center = (gained - lost) / total
    reach = normal_quantile(level) * math.sqrt((gained + lost) / total - center**2) / math.sqrt(total)
    low, high = max(-1.0, center - reach), min(1.0, center + reach)
    return Comparison(Estimate((only_a - only_b) / n, low, high, level, "agresti-min"), p_value, "McNemar exact", n)
