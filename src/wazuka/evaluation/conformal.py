"""Sets of classes that hold the true one as often as promised, from however few labels; or: how many more it takes.

Split conformal prediction: Vovk, Gammerman and Shafer 2005; scores LAC (Sadinle, Lei and Wasserman 2019), APS (Romano,
Sesia and Candes 2020, arXiv:2006.02544) and RAPS (Angelopoulos et al. 2021, arXiv:2009.14193). Without labels to spare:
cross-conformal sets, of which CV+ is one form (Vovk 2015; Barber et al. 2021, arXiv:1905.02928; Romano et al. 2020).

What is promised, and to whom. If n labeled images and a new one are exchangeable, and the scores come from a
classifier that did not see those n labels, the set holds the new one's class with probability 1 - alpha at least, and
1 - alpha + 1/(n + 1) at most where scores don't tie. The rank ceil((n + 1) (1 - alpha)) is what pays for n being
small; the plain quantile, interpolated or not, that some toolkits take covers less. Where a fixed number of images of
each class was labeled, labeled and unlabeled images are exchangeable only within their class: `by_class=True` then (a
threshold for each class, the "Mondrian" variant), which needs `labels_needed(alpha)` labels *of each class*, and
promises its coverage to each class. Nothing is promised about images from elsewhere.

Scores of a *transductive* classifier, which learns from unlabeled images too, keep the promise if the images whose
labels are held out are given to it as unlabeled ones: then it treats them and the pool alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wazuka.evaluation.arrays import Floats, Integers, as_floats, as_integers
from wazuka.evaluation.intervals import Estimate

Members = NDArray[np.bool_]


# Scores: how badly each class would fit; (N, C) probabilities -> (N, C), high is bad


def lac_scores(probs: Any) -> Floats:
    """1 - p: the smallest sets on average; a hard image may get an empty one. (N, C) -> (N, C) in [0, 1]."""
    return 1 - as_floats(probs)


def aps_scores(probs: Any, draws: Any | None = None) -> Floats:
    """Probability of all likelier classes, and of this one: sets grow with difficulty. (N, C) -> (N, C) in [0, 1].

    draws  (N,)  uniform in [0, 1), fresh for each image: counts only that share of the class's own probability,
                 without which sets are too large; None: all of it, and the likeliest class is in every set that
                 holds any. Take them for all images, those with labels and the others, or for none.

    Equally likely classes are drawn as one, so that the order of the classes decides nothing.
    """
    probs = as_floats(probs)
    order = np.argsort(-probs, axis=1, kind="stable")
    ordered = np.take_along_axis(probs, order, axis=1)
    through = np.cumsum(ordered, axis=1)
    ends = np.pad(np.diff(ordered, axis=1) != 0, ((0, 0), (0, 1)), constant_values=True)
    places = np.arange(probs.shape[1])
    last = np.minimum.accumulate(np.where(ends, places, probs.shape[1])[:, ::-1], axis=1)[:, ::-1]  # of equals
    starts = np.pad(ends[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    above = np.take_along_axis(np.pad(through, ((0, 0), (1, 0))), first, axis=1)
    share = np.ones(len(probs)) if draws is None else as_floats(draws)
    scores = above + share[:, None] * (np.take_along_axis(through, last, axis=1) - above)
    result = np.empty_like(scores)
    np.put_along_axis(result, order, scores, axis=1)
    return result


def raps_scores(probs: Any, draws: Any | None = None, penalty: float = 0.1, free: int = 1) -> Floats:
    """APS, and `penalty` for each rank beyond `free`: cuts the long tails of large sets. (N, C) -> (N, C)."""
    probs = as_floats(probs)
    ascending = np.sort(probs, axis=1)
    likelier = [len(row) - np.searchsorted(row, own, side="right") for row, own in zip(ascending, probs, strict=True)]
    rank = np.reshape(likelier, probs.shape) + 1
    return aps_scores(probs, draws) + penalty * np.maximum(0, rank - free)


# How many labels it takes


def conformal_rank(n: int, alpha: float) -> int:
    """Which of n scores in ascending order, counted from 1, is the threshold; above n: none is high enough."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha, the share of sets that may miss the truth, must lie in (0, 1), got {alpha}")
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)  # 25 * (1 - 0.44) rounds to above 14


def labels_needed(alpha: float) -> int:
    """The fewest labels (of each class, where thresholds are by class) with which sets can leave out any class: 9 for
    90 %, 19 for 95 %.
    """
    conformal_rank(0, alpha)
    return math.ceil(1 / alpha - 1 - 1e-9)


def conformal_threshold(scores: Any, alpha: float) -> float:
    """The ceil((n + 1) (1 - alpha))-th smallest of n scores: a new one stays at or below it with probability
    1 - alpha. Infinite where n is below `labels_needed(alpha)`; never interpolated. (n,) -> float
    """
    scores = np.sort(as_floats(scores))
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    rank = conformal_rank(len(scores), alpha)
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf


def realized_coverage(n: int, alpha: float, level: float = 0.95) -> Estimate:
    """The share of new images that sets from one draw of n labels hold: on average, and in `level` of all draws.

    It is Beta(r, n + 1 - r) at rank r (Vovk 2012), whatever the classifier, where scores don't tie: a promise of 90 %
    is one of the average over draws of labels, and says little of a single draw where n is small.
    """
    from scipy.stats import beta

    rank = conformal_rank(n, alpha)
    if rank > n:
        return Estimate(1.0, 1.0, 1.0, level, "beta")
    low, high = beta.ppf([0.5 - level / 2, 0.5 + level / 2], rank, n + 1 - rank)
    return Estimate(rank / (n + 1), float(low), float(high), level, "beta")


# The promise


@dataclass(frozen=True)
class Promise:
    """What sets from these labels are good for.

    alpha     share of sets that may miss the truth, in (0, 1)
    by_class  whether it holds within each class, or for images whose classes come as the labeled ones do
    labels    how many there were: of each class, or in all (one number)
    floor     the least share of sets that hold the truth, as proven; 1 - alpha, less for cross-conformal sets
    """

    alpha: float
    by_class: bool
    labels: tuple[int, ...]
    floor: float

    @property
    def missing(self) -> tuple[int, ...]:
        """How many labels more it takes: of each class, or in all (one number)."""
        return tuple(max(0, labels_needed(self.alpha) - count) for count in self.labels)

    @property
    def possible(self) -> bool:
        """Whether there are labels enough; else sets hold all classes (of those classes that lack labels)."""
        return not any(self.missing)

    def told(self, classes: Sequence[str]) -> str:
        """One sentence for the user; classes: C names."""
        if self.possible:
            whose = "photos of every class" if self.by_class else "photos that come like the labeled ones"
            return f"Of the {whose}, at least {percent(self.floor)} have their true class in their set."
        needed = labels_needed(self.alpha)
        if self.by_class:
            short = [f"{count} more of {name}" for count, name in zip(self.missing, classes, strict=True) if count]
            lacking = f"{needed} labels of each class: {', '.join(short)}"
        else:
            lacking = f"{needed} labels: {self.missing[0]} more"
        return f"Sets that hold the true class {percent(1 - self.alpha)} of the time need {lacking}."


@dataclass(frozen=True)
class Thresholds:
    """A class is in the set of an image if its score is at most its threshold; values (C,), infinite: always."""

    values: Floats
    promise: Promise

    def sets(self, scores: Any) -> Members:
        """(M, C) scores of new images, made as the labeled ones' were -> (M, C) bool."""
        return as_floats(scores) <= self.values


def split_thresholds(scores: Any, labels: Any, alpha: float, *, by_class: bool) -> Thresholds:
    """Thresholds from labels that the classifier did not learn from; coverage 1 - alpha.

    scores    (n, C)  of all classes, from one classifier
    labels    (n,)    true classes in [0, C)
    by_class  True where a fixed number of images of each class was labeled; needs `labels_needed` of each
    """
    scores, labels = as_floats(scores), as_integers(labels)
    check(scores, labels)
    own, count = scores[np.arange(len(labels)), labels], scores.shape[1]
    if by_class:
        values = [conformal_threshold(own[labels == label], alpha) for label in range(count)]
    else:
        values = [conformal_threshold(own, alpha)] * count
    return Thresholds(np.asarray(values), Promise(alpha, by_class, counted(labels, count, by_class), 1 - alpha))


def cross_sets(
    held_out: Any, labels: Any, folds: Any, images: Sequence[Any], alpha: float, *, by_class: bool
) -> tuple[Members, Promise]:
    """Sets from K classifiers, each of which learned from all labels but those of its fold: no label is lost.

    held_out  (n, C)       scores of labeled images, each from the classifier of its own fold, which did not see it
    labels    (n,)         true classes in [0, C)
    folds     (n,)         whose turn it was to be held out, in [0, K)
    images    K of (M, C)  scores of the new images from each of the K classifiers
    returns   (M, C) bool, and what is promised

    A class stays if fewer than (1 - alpha) (n + 1) labeled images have a score below the one that *their* fold's
    classifier gives the new image (Romano et al. 2020, CV+). One classifier in all K places makes it split conformal.
    In practice about 1 - alpha of the sets hold the truth; proven is `cross_floor`, which may be far less.
    """
    held_out, labels, folds = as_floats(held_out), as_integers(labels), as_integers(folds)
    check(held_out, labels)
    if folds.shape != labels.shape or (len(folds) and not 0 <= folds.min() <= folds.max() < len(images)):
        raise ValueError(f"folds must be (N,) in [0, {len(images)}), got {folds.shape}")
    count = held_out.shape[1]
    own = held_out[np.arange(len(labels)), labels]
    below = np.zeros(np.shape(images[0]), dtype=np.int64)
    for fold, raw in enumerate(images):
        scores = as_floats(raw)
        if scores.shape != below.shape or scores.shape[1] != count or np.isnan(scores).any():
            raise ValueError(f"images must be (M, {count}) from each fold and without NaN, got {scores.shape}")
        for label in range(count):
            rows = (folds == fold) & (labels == label) if by_class else folds == fold
            below[:, label] += np.searchsorted(np.sort(own[rows]), scores[:, label], side="left")
    numbers = counted(labels, count, by_class)
    ranks = np.resize([conformal_rank(n, alpha) for n in numbers], count)
    return below < ranks, Promise(alpha, by_class, numbers, cross_floor(labels, folds, count, alpha, by_class))


def cross_floor(labels: Integers, folds: Integers, classes: int, alpha: float, by_class: bool) -> float:
    """The least coverage proven for cross-conformal sets with n labels in K folds (of the worst class).

    Twice a weighted mean of p-values is one (Vovk and Wang 2020): 1 - 2 alpha - 2 (1 - alpha) (K - 1) / (n + K), for
    folds of any sizes. If all folds are alike, also 1 - 2 alpha - (1 - K/n) / (K + 1) (Barber et al. 2021, Theorem 4);
    by class this holds where each fold has as many of every class, for then folds can be exchanged, classes and all.
    For K = n it is 1 - 2 alpha.
    """
    table = np.zeros((int(folds.max(initial=0)) + 1, classes), dtype=np.int64)
    np.add.at(table, (folds, labels), 1)
    columns = table if by_class else table.sum(axis=1, keepdims=True)
    alike = (columns == columns[:1]).all()
    floors = []
    for column in columns.T:
        n, k = int(column.sum()), int((column > 0).sum())
        if n < labels_needed(alpha):  # all images get this class: no set misses it
            floors.append(1.0)
            continue
        losses = [2 * (1 - alpha) * (k - 1) / (n + k)] + [(1 - k / n) / (k + 1)] * bool(alike)
        floors.append(max(0.0, 1 - 2 * alpha - min(losses)) if k > 1 else 1 - alpha)
    return min(floors)


def check(scores: Floats, labels: Integers) -> None:
    """Raise a ValueError of one sentence where the answer would be nonsense."""
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores must be (N, C) and labels (N,), got {scores.shape} and {labels.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    if len(labels) and (labels.min() < 0 or labels.max() >= scores.shape[1]):
        raise ValueError(f"labels must lie in [0, {scores.shape[1]}), got {labels.min()} to {labels.max()}")


def counted(labels: Integers, classes: int, by_class: bool) -> tuple[int, ...]:
    """How many labels there are: of each class, or in all."""
    return tuple(np.bincount(labels, minlength=classes).tolist()) if by_class else (len(labels),)


def percent(share: float, *, up: bool = False) -> str:
    """0.9 -> "90 %", 0.8756 -> "87.5 %": rounded to the side on which a promise holds, down or up."""
    thousandths = math.ceil(share * 1000 - 1e-9) if up else math.floor(share * 1000 + 1e-9)
    return f"{thousandths / 10:g} %"
