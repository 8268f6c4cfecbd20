"""Abstaining: from which confidence on are errors as rare as the user asks, and how sure can one be of that?

`threshold_for_risk` names the lowest threshold such that, in `level` of all draws of labels, at most `max_error` of
the answers above it are wrong. Geifman and El-Yaniv 2017, arXiv:1705.08500 (SGR), try log2(n) thresholds with exact
binomial limits and split the error probability among them. Here they are tried in a fixed order, as in Learn then Test
(Angelopoulos et al. 2021, arXiv:2110.01052): from the surest labeled images down, each at the *whole* error
probability, until the first that can't be shown. It is the tighter of the two where labels are few: for 5 % at 90 %,
SGR with 100 labels wants 83 flawless images, this wants 45.

Why no correction is needed. Given the confidence t of one labeled image, the k labeled images above t are k fresh
draws of what the classifier accepts above t, so that their errors are binomial with the very risk that is promised.
Going down, let t be the first threshold tried at which the promise is false. A mistake is made only if t is reached
and passes its test, which happens with probability 1 - level at most. (t depends on where labeled images lie; but
between two places at which the risk crosses max_error its mean there is max_error, so that where they lie tells
nothing of errors. It holds for any risk, also one that rises with confidence.)

What must hold: the labeled images are drawn at random from the images that the promise is made for, and their answers
come from the classifier that answers those, which did not learn from their labels. Cross-fitted answers come from its
siblings that knew fewer labels: usually worse ones, which errs on the safe side, yet that is no proof.

The risk-coverage curve, AURC and E-AURC (Geifman, Uziel and El-Yaniv 2019) are in `wazuka.evaluation.detection`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wazuka.evaluation.arrays import Floats, as_floats
from wazuka.evaluation.conformal import percent

START = 1 / 4  # the first threshold tried keeps this share of the labels: fewer are often too few for a first error
BETS = (1.0, 0.75, 0.5)  # shares of the largest stake, mixed: without errors the largest is best, with some a smaller


@dataclass(frozen=True)
class Abstention:
    """Which answers to keep.

    threshold     keep answers whose confidence is *above* it; -inf: all; None: it can't be shown for any
    kept, errors  labeled images above it, and how many of them are wrong; without a threshold: at the first one tried
    limit         upper limit of the share of errors above it, at `level`; at most max_error if there is a threshold
    labels        how many there were
    needed        how many it takes above a threshold if none is wrong
    reason        one sentence for the user
    """

    threshold: float | None
    kept: int
    errors: int
    limit: float
    max_error: float
    level: float
    labels: int
    needed: int
    reason: str

    def keeps(self, confidence: Any) -> Any:
        """(M,) confidences of new answers -> (M,) bool."""
        return as_floats(confidence) > (math.inf if self.threshold is None else self.threshold)


def threshold_for_risk(
    confidence: Any, correct: Any, max_error: float, level: float = 0.9, weights: Any | None = None
) -> Abstention:
    """The lowest confidence above which at most `max_error` of the answers are wrong; in `level` of draws that is so.

    confidence  (N,)  of labeled images; any number that is high where the classifier is sure
    correct     (N,)  bool: whether the answer was right
    max_error         share of wrong answers among those kept, in (0, 1)
    weights     (N,)  where classes were labeled evenly but are not even in the pool: how common the image's class is
                      there, relative to how common among the labels. None: the labels are drawn like the pool.
                      Then each threshold's test is a bet against max_error (Waudby-Smith and Ramdas 2024) that is
                      valid for any number of labels of each class, at any one threshold fixed beforehand and for
                      *known* shares of the classes; that it is so for the threshold chosen is shown by simulation
                      alone. It takes more labels: the more, the rarer the commonest class among them.
    """
    confidence, wrong = as_floats(confidence), 1 - as_floats(correct)
    check(confidence, wrong, max_error, level)
    weights = None if weights is None else as_floats(weights)
    if weights is not None and (weights.shape != wrong.shape or not (weights > 0).all() or weights.max() == math.inf):
        raise ValueError("weights must be one positive number for each image")
    n, needed = len(wrong), flawless_needed(max_error, level, weights)
    if n < needed:
        reason = (
            f"That at most {percent(max_error)} of answers are wrong can't be shown with {n} labels: "
            f"even without an error it takes {needed}."
        )
        return Abstention(None, 0, 0, 1.0, max_error, level, n, needed, reason)
    order = np.argsort(-confidence, kind="stable")
    confidence, wrong = confidence[order], wrong[order]
    ends = np.append(np.flatnonzero(np.diff(confidence)), n - 1)  # equally sure images are kept or left together
    stakes = None if weights is None else weights[order] / weights.max()
    tried = ends[ends + 1 >= max(needed, math.ceil(START * n))]
    passed = shown(wrong, stakes, max_error, level)[tried]
    until = len(tried) if passed.all() else int(passed.argmin())
    kept = int(tried[max(until - 1, 0)]) + 1
    errors = round(float(wrong[:kept].sum()))
    limit = risk_limit(wrong[:kept], level, None if stakes is None else stakes[:kept])
    if until == 0:
        reason = (
            f"Of the {kept} labeled images with the surest answers {errors} are wrong, so that errors may be as common "
            f"as {percent(limit, up=True)} even there: at most {percent(max_error)} can't be shown."
        )
        return Abstention(None, kept, errors, limit, max_error, level, n, needed, reason)
    threshold = float(confidence[kept]) if kept < n else -math.inf
    whose = "all answers" if kept == n else f"the answers surer than {threshold:.4g}"
    reason = (
        f"Of {whose} at most {percent(max_error)} are wrong, with {percent(level)} certainty: "
        f"of the {kept} labeled images (out of {n}) that they name, {errors}."
    )
    return Abstention(threshold, kept, errors, limit, max_error, level, n, needed, reason)


def shown(wrong: Floats, stakes: Floats | None, max_error: float, level: float) -> NDArray[np.bool_]:
    """Whether the first k images have so few errors that their risk must be below `max_error`, for k = 1..n.

    wrong   (n,)  0 or 1
    stakes  (n,)  weights, relative to the largest there is; None: all alike
    """
    from scipy.stats import binom

    if stakes is None:
        return np.asarray(binom.cdf(wrong.cumsum(), np.arange(len(wrong)) + 1, max_error) <= 1 - level)
    return log_wealth(wrong, stakes, max_error) >= -math.log(1 - level)


def risk_limit(wrong: Floats, level: float, stakes: Floats | None) -> float:
    """The least risk that so few errors show not to be passed; (k,), (k,) as in `shown` -> in [0, 1].

    Without weights Clopper and Pearson's upper limit (1934), one-sided: the risk at which so few errors have
    probability 1 - level. With weights: the one against which the bets earn 1 / (1 - level), which they do with
    probability 1 - level at most where it is the true one (Ville).
    """
    from scipy.optimize import brentq
    from scipy.stats import beta

    errors, k = round(float(wrong.sum())), len(wrong)
    if errors == k:
        return 1.0
    if stakes is None:
        return float(beta.ppf(level, errors + 1, k - errors))

    def earned(risk: float) -> float:
        return float(log_wealth(wrong, stakes, risk)[-1]) + math.log(1 - level)

    return float(brentq(earned, 0.0, 1 - 1e-12)) if earned(1 - 1e-12) > 0 else 1.0


def log_wealth(wrong: Floats, stakes: Floats, risk: float) -> Floats:
    """Logarithm of what a bet of 1 that the risk is *below* `risk` has become after each image; (n,), (n,) -> (n,).

    Each image pays 1 + b s r / (1 - r) if right and 1 - b s if wrong: where the weighted risk is r or more, the
    product has mean 1 or less, also where images are of several classes with risks of their own (the geometric mean
    of their means is no larger than the arithmetic). Mean over the shares b in BETS.
    """
    bets = np.asarray(BETS)[:, None] * stakes
    with np.errstate(divide="ignore"):
        gains = np.where(wrong > 0.5, np.log1p(-bets), np.log1p(bets * risk / (1 - risk)))
    return np.asarray(np.logaddexp.reduce(gains.cumsum(axis=1), axis=0) - math.log(len(BETS)))


def flawless_needed(max_error: float, level: float, weights: Floats | None = None) -> int:
    """How many answers without an error show that at most `max_error` are wrong: 45 for 5 % at 90 %, 29 for 10 % at
    95 %; with weights, that many images whose classes are mixed as theirs.
    """
    if weights is None or len(weights) == 0:
        return math.ceil(math.log(1 - level) / math.log1p(-max_error) - 1e-9)
    stakes = weights / weights.max()
    growth = np.log1p(np.asarray(BETS)[:, None] * stakes * max_error / (1 - max_error)).mean(axis=1)
    enough, short = 1, 0
    while np.logaddexp.reduce(enough * growth) - math.log(len(BETS)) < -math.log(1 - level):
        enough, short = 2 * enough, enough
    while enough - short > 1:
        middle = (enough + short) // 2
        earned = np.logaddexp.reduce(middle * growth) - math.log(len(BETS))
        enough, short = (enough, middle) if earned < -math.log(1 - level) else (middle, short)
    return enough


def check(confidence: Floats, wrong: Floats, max_error: float, level: float) -> None:
    """Raise a ValueError of one sentence where the answer would be nonsense."""
    if confidence.ndim != 1 or confidence.shape != wrong.shape:
        raise ValueError(f"need confidence and correct of the same images, got {confidence.shape} and {wrong.shape}")
    if np.isnan(confidence).any() or not np.isin(wrong, (0, 1)).all():
        raise ValueError("confidence must not hold NaN, and correct must be true or false")
    if not 0 < max_error < 1 or not 0 < level < 1:
        raise ValueError(f"max_error and level must lie in (0, 1), got {max_error} and {level}")
