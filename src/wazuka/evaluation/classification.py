"""How good a classifier's answers are, and how far its probabilities can be taken at their word.

Definitions: accuracy, balanced accuracy, recall and precision as scikit-learn has them; Brier 1950 (the sum over
classes, range [0, 2]); expected calibration error with 15 equal bins as Guo et al. 2017, arXiv:1706.04599; its
equal-mass variant counts every group, where a widely copied code drops the surest one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wazuka.evaluation.arrays import Floats, Integers, as_floats, as_integers
from wazuka.evaluation.intervals import Estimate, bca, bootstrap_draws, mean_of_shares, wilson

__all__ = ["Bin", "Estimate", "Evaluation", "evaluate", "wilson"]

BINS = 15  # Guo et al. 2017
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # what a float32 softmax that gave 0 can't tell from 0


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in (low, high]; confidence is their mean, NaN where there are none."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True)
class Evaluation:
    """What was measured on n images. Shares lie in [0, 1]; per-class tuples and arrays follow `classes`.

    nll                nats, mean over images
    brier              sum over classes, mean over images, range [0, 2]
    ece, ace           top-label calibration error, 15 equal-width bins (low, high] / 15 groups of equal size
    ece_if_calibrated  the ECE that a perfectly calibrated classifier, as sure as this one, stays below in 95 % of
                       test sets of this size: a measured ECE below it says nothing against the probabilities
    support            images of each class
    recall, precision  NaN where no image has that class / got that answer
    confusion          (C, C) counts, rows true, columns predicted
    reliability        the 15 bins
    """

    classes: tuple[str, ...]
    n: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    nll: Estimate
    brier: Estimate
    ece: Estimate
    ace: Estimate
    ece_if_calibrated: float
    support: tuple[int, ...]
    recall: tuple[Estimate, ...]
    precision: tuple[Estimate, ...]
    confusion: Integers
    reliability: tuple[Bin, ...]

    @property
    def correct(self) -> int:
        """How many of the n images were named right."""
        return int(np.trace(self.confusion))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: plain numbers, lists and dicts; NaN becomes None."""
        whole = ("accuracy", "balanced_accuracy", "nll", "brier", "ece", "ace")
        return {
            "classes": list(self.classes),
            "n": self.n,
            **{name: getattr(self, name).to_dict() for name in whole},
            "ece_if_calibrated": self.ece_if_calibrated,
            "support": list(self.support),
            "recall": [share.to_dict() for share in self.recall],
            "precision": [share.to_dict() for share in self.precision],
            "confusion": self.confusion.tolist(),
            "reliability": [
                {
                    "low": one.low,
                    "high": one.high,
                    "count": one.count,
                    "confidence": one.confidence if one.count else None,
                    "accuracy": one.accuracy.to_dict(),
                }
                for one in self.reliability
            ],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Evaluation":
        """What `to_dict` wrote, so that a report can be drawn again from a run's files."""
        whole = ("accuracy", "balanced_accuracy", "nll", "brier", "ece", "ace")
        return cls(
            classes=tuple(saved["classes"]),
            n=saved["n"],
            **{name: Estimate.from_dict(saved[name]) for name in whole},
            ece_if_calibrated=saved["ece_if_calibrated"],
            support=tuple(saved["support"]),
            recall=tuple(Estimate.from_dict(share) for share in saved["recall"]),
            precision=tuple(Estimate.from_dict(share) for share in saved["precision"]),
            confusion=np.asarray(saved["confusion"], dtype=np.int64),
            reliability=tuple(
                Bin(
                    low=one["low"],
                    high=one["high"],
                    count=one["count"],
                    confidence=one["confidence"] if one["count"] else math.nan,
                    accuracy=Estimate.from_dict(one["accuracy"]),
                )
                for one in saved["reliability"]
            ),
        )


def evaluate(
    probs: Any,
    labels: Any,
    classes: Sequence[str],
    log_probs: Any | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Everything there is to say about a classifier's answers on labeled images.

    probs      (N, C)  probabilities, rows sum to 1; array or tensor
    labels     (N,)    true classes in [0, C)
    classes    C names
    log_probs  (N, C)  where at hand (log_softmax), NLL is taken from them: a probability that rounded to 0 has lost
                       its logarithm. Without them such a 0 counts as the least float32, 1.2e-38.
    draws      bootstrap samples behind the intervals of NLL, Brier, ECE and ACE
    """
    probs, labels, classes = as_floats(probs), as_integers(labels), tuple(classes)
    check(probs, labels, len(classes))
    n = len(labels)
    guesses, confidence = probs.argmax(axis=1), probs.max(axis=1)
    order = np.argsort(confidence, kind="stable")  # so that rows in ascending order are sorted by confidence
    gaps = (guesses == labels)[order] - confidence[order]
    bins, ties = bin_of(confidence[order]), np.unique(confidence[order], return_inverse=True)[1]
    logs = np.log(np.maximum(probs, LEAST_PROBABILITY)) if log_probs is None else as_floats(log_probs)
    nlls, briers = nll_each(logs, labels)[order], brier_each(probs, labels)[order]

    generator = np.random.default_rng(seed)
    samples = bootstrap_draws(
        lambda rows: (
            nlls[rows].mean(),
            briers[rows].mean(),
            calibration_error(gaps[rows], bins[rows]),
            calibration_error(leveled(gaps[rows], ties[rows]), groups_of(n)),
        ),
        n,
        draws,
        generator,
    )
    by_chance = np.asarray(
        [
            (calibration_error(gap, bins), calibration_error(leveled(gap, ties), groups_of(n)))
            for gap in calibrated_gaps(confidence[order], draws, generator)
        ]
    )
    ace = calibration_error(leveled(gaps, ties), groups_of(n))

    confusion = np.bincount(labels * len(classes) + guesses, minlength=len(classes) ** 2)
    confusion = confusion.reshape(len(classes), len(classes))
    recall = tuple(wilson(int(c), int(t), level) for c, t in zip(np.diag(confusion), confusion.sum(1), strict=True))
    precision = tuple(wilson(int(c), int(t), level) for c, t in zip(np.diag(confusion), confusion.sum(0), strict=True))
    return Evaluation(
        classes=classes,
        n=n,
        accuracy=wilson(int(np.trace(confusion)), n, level),
        balanced_accuracy=mean_of_shares(recall, level),
        nll=bca(float(nlls.mean()), samples[:, 0], nlls, level),
        brier=bca(float(briers.mean()), samples[:, 1], briers, level),
        ece=calibration_interval(calibration_error(gaps, bins), samples[:, 2], by_chance[:, 0], level),
        ace=calibration_interval(ace, samples[:, 3], by_chance[:, 1], level),
        ece_if_calibrated=float(np.quantile(by_chance[:, 0], 0.95)),
        support=tuple(int(count) for count in confusion.sum(axis=1)),
        recall=recall,
        precision=precision,
        confusion=confusion,
        reliability=reliability_bins(confidence, guesses == labels, level),
    )


def check(probs: Floats, labels: Integers, classes: int) -> None:
    """Raise a ValueError of one sentence where `evaluate` would answer nonsense."""
    if probs.ndim != 2 or labels.ndim != 1 or len(probs) != len(labels) or probs.shape[1] != classes:
        raise ValueError(
            f"probs must be (N, {classes}) and labels (N,), got {tuple(probs.shape)} and {tuple(labels.shape)}"
        )
    if len(labels) == 0:
        raise ValueError("there is no image to evaluate on")
    if not np.isfinite(probs).all() or (probs < 0).any() or (abs(probs.sum(axis=1) - 1) > 1e-2).any():
        raise ValueError("probs must be probabilities: finite, not negative, each row summing to 1 (not logits)")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), got {labels.min()} to {labels.max()}")


def nll_each(log_probs: Floats, labels: Integers) -> Floats:
    """Negative log-likelihood of each image, nats; (N, C) log-probabilities, (N,) -> (N,)."""
    return -np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]


def brier_each(probs: Floats, labels: Integers) -> Floats:
    """Squared distance to the one-hot truth, summed over classes, in [0, 2]; (N, C), (N,) -> (N,)."""
    truth = np.eye(probs.shape[1])[labels]
    return ((probs - truth) ** 2).sum(axis=1)


def bin_of(confidence: Floats) -> Integers:
    """Which of the 15 bins ((m - 1) / 15, m / 15] each confidence lies in, from 0; (N,) -> (N,).

    Against the edges, not ceil(15 c): 15 * 0.2 rounds to just above 3.
    """
    edges = np.arange(1, BINS) / BINS
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def groups_of(n: int) -> Integers:
    """n images, sorted by confidence, into 15 consecutive groups whose sizes differ by one at most; -> (n,)."""
    return np.arange(n) * min(BINS, n) // n


def calibration_error(gaps: Floats, bins: Integers) -> float:
    """Sum over bins of (their share of images) * |accuracy - mean confidence|.

    gaps  (N,)  correct (0 or 1) minus confidence, of each image
    bins  (N,)  its bin; the share cancels against the mean, so that an empty bin needs no care
    """
    return float(abs(np.bincount(bins, gaps)).sum() / len(gaps))


def leveled(gaps: Floats, ties: Integers) -> Floats:
    """Give equally sure images their mean gap, so that the order of files can't decide which group gets the errors
    (a float32 softmax is often exactly 1); gaps (N,), ties (N,) number of the confidence each has -> (N,).
    """
    counts = np.bincount(ties)
    return (np.bincount(ties, gaps) / np.maximum(counts, 1))[ties]


def calibrated_gaps(confidence: Floats, draws: int, generator: np.random.Generator) -> Iterator[Floats]:
    """The gaps of `draws` classifiers with these confidences that are right exactly that often; each (N,).

    On finitely many images luck alone opens gaps (Broecker and Smith 2007 draw them as consistency bars).
    """
    for _ in range(draws):
        yield (generator.random(len(confidence)) < confidence) - confidence


def calibration_interval(value: float, samples: Floats, by_chance: Floats, level: float) -> Estimate:
    """Interval of a calibration error, which luck can only raise, and resampling raises once more.

    The percentile interval of a calibrated classifier never holds its true 0, so: the pivotal interval (twice the
    value minus the percentiles), whose low end is 0 where luck alone explains the value. In simulations (n of 100 to
    2000, true error 0 to 0.1) it held the truth in 84 to 99 % of trials; the percentile interval in 0 to 91 %.
    """
    low, high = 2 * value - np.quantile(samples, [0.5 + level / 2, 0.5 - level / 2])
    explained = value <= np.quantile(by_chance, 0.5 + level / 2)
    return Estimate(value, 0.0 if explained else max(0.0, float(low)), max(value, float(high)), level, "bootstrap")


def reliability_bins(confidence: Floats, correct: Any, level: float) -> tuple[Bin, ...]:
    """What the calibration plot shows: in each of the 15 bins how sure, and how often right; (N,), (N,) bool."""
    index, hits = bin_of(confidence), np.asarray(correct, dtype=np.int64)
    counts = np.bincount(index, minlength=BINS)
    sums = np.bincount(index, confidence, minlength=BINS)
    right = np.bincount(index, hits, minlength=BINS).astype(np.int64)
    return tuple(
        Bin(
            low=m / BINS,
            high=(m + 1) / BINS,
            count=int(counts[m]),
            confidence=float(sums[m] / counts[m]) if counts[m] else math.nan,
            accuracy=wilson(int(right[m]), int(counts[m]), level),
        )
        for m in range(BINS)
    )
