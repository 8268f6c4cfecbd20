"""Does a table of numbers tell the classes apart, or would luck? A cross-validated accuracy and its permutation test.

The classifier takes the nearest class mean in the space of a kernel: nothing to choose, right for 3 labels a class as
for 30, and cheap, for leaving photos out and moving labels about are sums over one matrix of similarities. That matrix
never sees a label, so a test may make it from all photos.

The test is exact: labels and folds are moved about together, so that under the null (photos and labels have nothing to
do with each other) the true order is one like the others. Its p-value counts it among them (Phipson and Smyth 2010,
Eq. 2): never 0, and at most a with probability at most a. Holm 1979 corrects for several tests, whatever their
dependence; of the columns of one table the largest accuracy is held against luck's largest (Westfall and Young 1993).
"""

import math

import numpy as np
from scipy.sparse import csr_array

from wazuka.evaluation.arrays import Floats, Integers

FOLDS = 5
LEAST = 3         # labels of a class: with one left out, two must stay, for a mean and its noise
SHRINKAGE = 2.0   # of the features' covariance towards a sphere, as a multiple of their mean variance
CHUNK = 2**20     # numbers held at once: as many as stay near the processor


def similarity(features: Floats) -> Floats:
    """Inner products of features in a space where their common directions count less; (N, D) -> (N, N).

    Centered, scaled to length 1, then whitened with a strongly shrunk covariance: G (G + s I)^-1, for inner products G
    and s twice their mean on the diagonal. Chosen between one and three times on seven sets at 4 and 16 labels a class,
    where both were within 3 points of plain inner products, or better: by 7 and 12 on magnetic tiles with 16 labels.
    """
    centered = features - features.mean(axis=0)
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    scaled = centered / np.where(lengths > 1e-9 * (1 + abs(features).max()), lengths, np.inf)
    gram = scaled @ scaled.T
    shrinkage = SHRINKAGE * np.trace(gram) / len(gram)
    if shrinkage == 0:  # all photos alike
        return gram
    whitened: Floats = np.linalg.solve(gram + shrinkage * np.eye(len(gram)), gram)
    return (whitened + whitened.T) / 2


def column_similarity(values: Floats, classes: int, ordered: bool) -> Floats:
    """How alike the entries of one column are, in [0, 1]; (N,) -> (N, N).

    Of an ordered column: a bell over the difference in rank, so that units and outliers don't matter, as wide as a
    class's share (sd 1 / C of all ranks): narrower ones find classes that lie in several places, but miss more of those
    that lie in one (with 4 labels of 3 classes: 42 % against 90 % found at half the width). Else 1 where equal, 0 where
    not. A missing entry (NaN) is like other missing ones, and like nothing else.
    """
    missing = np.isnan(values)
    both_known = ~missing[:, None] & ~missing
    if ordered:
        ranks = np.zeros(len(values))
        _, tie, counts = np.unique(values[~missing], return_inverse=True, return_counts=True)
        ranks[~missing] = (np.cumsum(counts) - (counts - 1) / 2)[tie]  # equal ones share their mean rank
        alike = np.exp(-0.5 * ((ranks[:, None] - ranks) * classes / max(1, len(tie))) ** 2)
    else:
        alike = (values[:, None] == values).astype(np.float64)
    return np.where(both_known, alike, (missing[:, None] & missing).astype(np.float64))


def stratified_folds(labels: Integers, generator: np.random.Generator) -> Integers:
    """Deal each class's photos out to the folds, as evenly as can be; (N,) -> (N,) in [0, at most FOLDS)."""
    count = min(FOLDS, int(np.bincount(labels).min()))
    folds = np.zeros(len(labels), dtype=np.int64)
    for name in range(labels.max() + 1):
        rows = np.flatnonzero(labels == name)
        folds[generator.permutation(rows)] = np.arange(len(rows)) % count
    return folds


def predictions(gram: Floats, labels: Integers, folds: Integers, orders: Integers) -> Integers:
    """Each photo's class as its nearest class mean says that was learned without its fold.

    gram     (N, N)  similarities
    labels   (N,)    in [0, C), with LEAST photos of each class
    folds    (N,)    of each label, from `stratified_folds`
    orders   (B, N)  permutations: in row b photo i has the label and the fold of photo orders[b, i]
    returns  (B, N)  classes; of equally near ones the first
    """
    size = max(1, CHUNK // ((labels.max() + 1) * (folds.max() + 1) * len(labels)))
    parts = [_predictions(gram, labels, folds, orders[start : start + size]) for start in range(0, len(orders), size)]
    return np.concatenate(parts)


def _predictions(gram: Floats, labels: Integers, folds: Integers, orders: Integers) -> Integers:
    classes, parts = int(labels.max()) + 1, int(folds.max()) + 1
    draws, count = orders.shape
    label, fold = labels[orders], folds[orders]                                    # (B, N)
    cell = (np.arange(draws)[:, None] * classes + label) * parts + fold
    members = csr_array(
        (np.ones(cell.size, dtype=np.float32), (cell.ravel(), np.tile(np.arange(count), draws))),
        shape=(draws * classes * parts, count),
    )
    sums = (members @ gram.astype(np.float32)).reshape(draws, classes, parts, count)
    sums = sums.sum(axis=2, keepdims=True) - sums                                  # over the class without the fold
    sizes = np.bincount(labels * parts + folds, minlength=classes * parts).reshape(classes, parts)
    sizes = (sizes.sum(axis=1, keepdims=True) - sizes).astype(np.float32)          # (C, F)

    # A mean of n photos is longer than the class's true mean, by noise that shrinks with n: pairs of different photos
    # have no such noise, and without them a class with fewer labels would seem further away than it is.
    own = np.take_along_axis(sums, label[:, None, None, :], axis=1)[:, 0] - np.diag(gram).astype(np.float32)
    own = np.where(fold[:, None, :] != np.arange(parts)[:, None], own, 0)          # (B, F, N)
    of_class = (label[:, :, None] == np.arange(classes)).astype(np.float32)
    lengths = (own @ of_class).transpose(0, 2, 1) / (sizes * (sizes - 1))          # (B, C, F)

    near = sums / sizes[:, :, None] - lengths[..., None] / 2
    return np.take_along_axis(near, fold[:, None, None, :], axis=2)[:, :, 0].argmax(axis=1)


def balanced_accuracy(guesses: Integers, labels: Integers) -> Floats:
    """Mean over classes of the share named right, in [0, 1]; (..., B, N), (B, N) -> (..., B).

    Each row of labels is another order of the same labels, in [0, C).
    """
    counts = np.bincount(labels[0])
    weight = 1 / (len(counts) * counts)
    shares: Floats = ((guesses == labels) * weight[labels]).sum(axis=-1)
    return shares


def p_value(observed: float, by_luck: Floats) -> float:
    """How often luck does as well; by_luck (B,), of B orders drawn at random -> in [1 / (B + 1), 1]."""
    return float((1 + (by_luck >= observed - 1e-9).sum()) / (1 + len(by_luck)))


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values: held to a level, they give a false alarm or more with at most that probability."""
    order = np.argsort(p_values, kind="stable")
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = most
    return adjusted


def least_p_value(counts: list[int]) -> float:
    """The least p-value that labels of these counts could ever give: one over the ways to divide the photos.

    Names that only change places between classes of one size divide them alike.
    """
    ways = math.lgamma(sum(counts) + 1) - math.fsum(math.lgamma(count + 1) for count in counts)
    same = math.fsum(math.lgamma(counts.count(size) + 1) for size in set(counts))
    return math.exp(same - ways)
