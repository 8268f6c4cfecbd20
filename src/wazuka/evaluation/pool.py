"""How often are the answers for unlabeled images right? An estimate from the labels alone, with an interval.

Two witnesses. The classifier's own confidence, averaged over the pool: it knows the pool, but may be too sure. And the
labels that siblings of the classifier named without having seen them: honest, but few, answered by siblings that knew
less, and perhaps of other shares than the pool. Labels are weighted to the shares of the classes among the answers
(importance weights; their effective number is Kish's), and both are counted as images in a Beta distribution.

How much each counts was measured, not derived: CONFIDENCE and LABELS make a 90 % interval hold the truth in at least
88 % of draws on other sets than those of our tables (docs/decisions.md); recipes/honest_number.py checks it on these.
"""

from typing import Any

import numpy as np

from wazuka.evaluation.arrays import Floats, as_floats, as_integers
from wazuka.evaluation.intervals import Estimate

CONFIDENCE = 10.0  # images that the mean confidence counts as, beside labels
ALONE = 1.5        # images that it counts as without any
LABELS = 0.35      # images that a label counts as


def pool_accuracy(probs: Any, held_out: Any | None, labels: Any | None, level: float = 0.9) -> Estimate:
    """The share of right answers among unlabeled images; value, low and high are of a Beta distribution.

    probs     (M, C)  calibrated probabilities of the unlabeled images
    held_out  (n, C)  probabilities of labeled images from classifiers that had not seen their label; None: none
    labels    (n,)    these labels
    level             of the interval, in (0, 1)
    """
    from scipy.stats import beta

    probs = as_floats(probs)
    confidence = float(probs.max(axis=1).mean())
    weight = ALONE if held_out is None else CONFIDENCE
    right, wrong = 0.5 + weight * confidence, 0.5 + weight * (1 - confidence)
    if held_out is not None:
        share, effective = weighted_accuracy(probs, as_floats(held_out), as_integers(labels))
        right, wrong = right + LABELS * effective * share, wrong + LABELS * effective * (1 - share)
    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], right, wrong)
    return Estimate(right / (right + wrong), float(low), float(high), level, "beta")


def weighted_accuracy(probs: Floats, held_out: Floats, labels: Any) -> tuple[float, float]:
    """(accuracy of the held-out answers, each class weighing as much as among the pool's answers; effective number of
    labels, at most n).
    """
    count = probs.shape[1]
    shares = np.bincount(probs.argmax(axis=1), minlength=count) / len(probs)
    known = np.bincount(labels, minlength=count) / len(labels)
    weights = (shares / np.maximum(known, 1e-12))[labels]
    if weights.sum() == 0:  # the pool's answers are all of classes without a held-out label
        return 0.0, 0.0
    right = held_out.argmax(axis=1) == labels
    return float((weights * right).sum() / weights.sum()), float(weights.sum() ** 2 / (weights**2).sum())
