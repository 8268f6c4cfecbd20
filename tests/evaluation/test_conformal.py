import math

import numpy as np
import pytest
from scipy.stats import beta, kstest

from wazuka.evaluation.conformal import (
    aps_scores,
    conformal_rank,
    conformal_threshold,
    cross_floor,
    cross_sets,
    labels_needed,
    lac_scores,
    percent,
    raps_scores,
    realized_coverage,
    split_thresholds,
)


def probabilities(n: int, classes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.7), n)


def answers(n: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right as often as they say, for classes that are not equally hard; and labels."""
    probs, generator = probabilities(n, classes, seed), np.random.default_rng(seed + 1)
    labels = (probs.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return probs, np.minimum(labels, classes - 1)


def test_scores_by_hand():
    probs = np.array([[0.5, 0.2, 0.3]])
    np.testing.assert_allclose(lac_scores(probs), [[0.5, 0.8, 0.7]])
    np.testing.assert_allclose(aps_scores(probs), [[0.5, 1.0, 0.8]])
    np.testing.assert_allclose(aps_scores(probs, [0.0]), [[0.0, 0.8, 0.5]])
    np.testing.assert_allclose(aps_scores(probs, [0.5]), [[0.25, 0.9, 0.65]])
    np.testing.assert_allclose(raps_scores(probs, penalty=0.1, free=1), [[0.5, 1.2, 0.9]])
    np.testing.assert_allclose(raps_scores(probs, [0.5], penalty=0, free=0), aps_scores(probs, [0.5]))


def test_aps_does_not_depend_on_the_order_of_classes_not_even_where_they_tie():
    probs, draws = np.round(probabilities(200, 5), 1), np.random.default_rng(1).random(200)
    order = np.random.default_rng(2).permutation(5)
    np.testing.assert_allclose(aps_scores(probs, draws)[:, order], aps_scores(probs[:, order], draws))
    np.testing.assert_allclose(raps_scores(probs, draws)[:, order], raps_scores(probs[:, order], draws))
    np.testing.assert_allclose(aps_scores([[0.25] * 4]), [[1.0] * 4])
    expected = [
        [sum(q for q in row if q > p) + u * sum(q for q in row if q == p) for p in row]
        for row, u in zip(probs, draws, strict=True)
    ]
    np.testing.assert_allclose(aps_scores(probs, draws), expected)


def test_randomized_aps_of_the_true_class_is_uniform_if_probabilities_are_true():
    probs, labels = answers(20_000)
    draws = np.random.default_rng(9).random(20_000)
    assert kstest(aps_scores(probs, draws)[np.arange(20_000), labels], "uniform").pvalue > 0.01


def test_how_many_labels_it_takes():
    assert [labels_needed(alpha) for alpha in (0.1, 0.05, 0.2, 0.01, 0.5, 0.15)] == [9, 19, 4, 99, 1, 6]
    for alpha in np.linspace(0.01, 0.99, 99):
        needed = labels_needed(alpha)
        assert conformal_threshold(np.arange(needed), alpha) < math.inf
        if needed > 0:
            assert conformal_threshold(np.arange(needed - 1), alpha) == math.inf


def test_threshold_is_one_of_the_scores():
    scores = np.random.default_rng(0).permutation(9) ** 2.0
    assert conformal_threshold(scores, 0.1) == 64  # the largest
    assert conformal_threshold(scores[:8], 0.1) == math.inf
    assert conformal_threshold(scores, 0.2) == 49
    assert conformal_threshold([], 0.1) == math.inf
    assert conformal_rank(99, 0.05) == 95
    assert conformal_rank(24, 0.44) == 14  # 25 * 0.56 rounds to above 14
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="alpha"):
            conformal_threshold(scores, alpha)
        with pytest.raises(ValueError, match="alpha"):
            labels_needed(alpha)
    with pytest.raises(ValueError, match="NaN"):
        conformal_threshold([1.0, math.nan], 0.5)


@pytest.mark.parametrize(("n", "alpha"), [(9, 0.1), (19, 0.1), (30, 0.1), (40, 0.05), (12, 0.2)])
def test_coverage_over_draws_of_labels_is_beta_distributed(n, alpha):
    """Scores are uniform, so that a threshold is its own coverage: exact, and no classifier can change it."""
    draws = np.random.default_rng(n).random((4000, n))
    coverage = np.array([conformal_threshold(scores, alpha) for scores in draws])
    rank = conformal_rank(n, alpha)
    assert kstest(coverage, beta(rank, n + 1 - rank).cdf).pvalue > 1e-3
    error = 4 * coverage.std() / math.sqrt(len(coverage))
    assert 1 - alpha - error < coverage.mean() < 1 - alpha + 1 / (n + 1) + error
    told = realized_coverage(n, alpha, level=0.8)
    assert told.value == pytest.approx(coverage.mean(), abs=error)
    assert ((coverage > told.low) & (coverage < told.high)).mean() == pytest.approx(0.8, abs=0.03)


def test_with_too_few_labels_every_class_is_in_every_set():
    probs, labels = answers(8)
    thresholds = split_thresholds(lac_scores(probs), labels, 0.1, by_class=False)
    assert not thresholds.promise.possible
    assert thresholds.promise.missing == (1,)
    assert thresholds.sets(lac_scores(probabilities(20))).all()
    assert thresholds.promise.told("abc") == "Sets that hold the true class 90 % of the time need 9 labels: 1 more."
    assert realized_coverage(8, 0.1).low == 1


def test_a_score_that_ties_with_the_threshold_is_in():
    thresholds = split_thresholds(np.full((9, 2), 0.5), np.arange(9) % 2, 0.1, by_class=False)
    assert thresholds.sets([[0.5, 0.6]]).tolist() == [[True, False]]


def test_split_sets_cover_as_promised():
    probs, labels = answers(40_000, seed=3)
    scores, generator, covered, sizes = lac_scores(probs), np.random.default_rng(4), [], []
    for _ in range(400):
        rows = generator.integers(0, len(labels), 129)
        known, new = rows[:29], rows[29:]
        sets = split_thresholds(scores[known], labels[known], 0.1, by_class=False).sets(scores[new])
        covered.append(sets[np.arange(100), labels[new]].mean())
        sizes.append(sets.sum(axis=1).mean())
    assert 0.89 < np.mean(covered) < 0.9 + 1 / 30 + 0.01
    assert 1 < np.mean(sizes) < 2.6


def test_by_class_each_class_is_covered_and_otherwise_not():
    """The scores of one class are all higher: one threshold for all must fail it."""
    generator, n = np.random.default_rng(5), 19
    covered = {True: np.zeros(2), False: np.zeros(2)}
    labels = np.repeat([0, 1], [9 * n, n])
    for _ in range(300):
        scores = generator.random((10 * n, 2)) + np.array([0.0, 1.0])
        new = generator.random((50, 2)) + np.array([0.0, 1.0])
        for by_class in covered:
            covered[by_class] += split_thresholds(scores, labels, 0.1, by_class=by_class).sets(new).mean(axis=0) / 300
    assert covered[True] == pytest.approx([0.9 + 0.1 * 9 / 171 / 10, 18 / 20], abs=0.02)
    assert covered[False][0] > 0.98
    assert covered[False][1] < 0.1


def test_a_class_that_lacks_labels_is_in_every_set_and_named():
    probs, _ = answers(30)
    labels = np.repeat([0, 1, 2], [12, 5, 13])
    thresholds = split_thresholds(lac_scores(probs), labels, 0.1, by_class=True)
    sets = thresholds.sets(lac_scores(probabilities(200)))
    assert sets[:, 1].all()
    assert not sets[:, 0].all()
    assert thresholds.promise.missing == (0, 4, 0)
    assert thresholds.promise.told(["cat", "dog", "cow"]) == (
        "Sets that hold the true class 90 % of the time need 9 labels of each class: 4 more of dog."
    )
    enough = split_thresholds(lac_scores(probs), labels, 0.2, by_class=True).promise
    assert enough.told("abc") == "Of the photos of every class, at least 80 % have their true class in their set."


# Cross-conformal


def test_one_classifier_in_all_folds_is_split_conformal():
    probs, labels = answers(50, seed=6)
    held_out, images = np.round(aps_scores(probs), 1), np.round(aps_scores(probabilities(300, seed=7)), 1)  # ties
    folds = np.arange(50) % 5
    for by_class, alpha in ((False, 0.1), (True, 0.2), (True, 0.02)):
        sets, _ = cross_sets(held_out, labels, folds, [images] * 5, alpha, by_class=by_class)
        np.testing.assert_array_equal(sets, split_thresholds(held_out, labels, alpha, by_class=by_class).sets(images))


def test_cross_sets_by_the_papers_sum():
    generator = np.random.default_rng(8)
    held_out, labels, folds = generator.random((30, 2)), np.arange(30) % 2, np.arange(30) % 4
    images = generator.random((4, 25, 2))
    sets, _ = cross_sets(held_out, labels, folds, list(images), 0.15, by_class=False)
    for image in range(25):
        for label in range(2):
            below = sum(held_out[i, labels[i]] < images[folds[i], image, label] for i in range(30))
            assert sets[image, label] == (below < 0.85 * 31)


def nearest_mean_scores(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.abs(new[:, None] - np.array([x[y == label].mean() for label in (0, 1)]))


def test_cross_sets_cover_above_their_floor_and_near_what_was_asked():
    generator, shots, covered, floors = np.random.default_rng(9), 12, [], set()
    for _ in range(150):
        y = np.repeat([0, 1], shots)
        x = generator.normal(y * 2.0, 1)
        truth = np.repeat([0, 1], 50)
        new = generator.normal(truth * 2.0, 1)
        folds = np.tile(np.arange(4), 6)
        held_out, images = np.empty((24, 2)), []
        for fold in range(4):
            rest = folds != fold
            held_out[~rest] = nearest_mean_scores(x[rest], y[rest], x[~rest])
            images.append(nearest_mean_scores(x[rest], y[rest], new))
        sets, promise = cross_sets(held_out, y, folds, images, 0.2, by_class=True)
        own = sets[np.arange(100), truth].reshape(2, 50).mean(axis=1)
        covered.append(own)
        floors.add(promise.floor)
    assert list(floors) == [pytest.approx(1 - 0.4 - (1 - 4 / 12) / 5)]
    assert (np.mean(covered, axis=0) > 0.79).all()
    assert (np.mean(covered, axis=0) < 0.9).all()


def test_what_is_proven_of_cross_sets():
    labels = np.repeat([0, 1], 10)
    leave_one_out = np.tile(np.arange(10), 2)
    assert cross_floor(labels, leave_one_out, 2, 0.1, True) == pytest.approx(0.8)  # jackknife+: 1 - 2 alpha
    assert cross_floor(labels, np.arange(20), 2, 0.1, False) == pytest.approx(0.8)
    assert cross_floor(labels, np.arange(20), 2, 0.1, True) == 0  # folds that lack a class can't be exchanged
    assert cross_floor(labels, np.zeros(20, int), 2, 0.1, True) == pytest.approx(0.9)  # one fold is a split
    halves = cross_floor(labels, np.arange(20) % 2, 2, 0.1, False)
    assert halves == pytest.approx(0.8 - min(2 * 0.9 / 22, (1 - 2 / 20) / 3))
    uneven = cross_floor(labels, (np.arange(20) < 7).astype(int), 2, 0.1, False)
    assert uneven == pytest.approx(0.8 - 2 * 0.9 / 22)
    assert cross_floor(labels[[0, 10]], np.array([0, 1]), 2, 0.1, True) == 1  # all classes in all sets
    sets, promise = cross_sets(np.ones((2, 2)), labels[[0, 10]], [0, 1], [np.ones((5, 2))] * 2, 0.1, by_class=True)
    assert sets.all()
    assert not promise.possible


def test_nonsense_is_refused():
    probs, labels = answers(20)
    for scores, names, words in (
        (probs, labels[:3], r"\(N, C\)"), (probs * np.nan, labels, "NaN"), (probs, labels + 5, "lie in"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            split_thresholds(scores, names, 0.1, by_class=True)
        with pytest.raises(ValueError, match=words):
            cross_sets(scores, names, np.zeros(20, int), [probs], 0.1, by_class=True)
    with pytest.raises(ValueError, match="folds"):
        cross_sets(probs, labels, np.arange(20), [probs] * 2, 0.1, by_class=True)
    with pytest.raises(ValueError, match="each fold"):
        cross_sets(probs, labels, np.arange(20) % 2, [probs, probs[:3]], 0.1, by_class=True)


def test_a_promise_is_never_rounded_up():
    assert percent(0.9) == "90 %"
    assert percent(0.87569) == "87.5 %"
    assert percent(0.87561, up=True) == "87.6 %"
    assert percent(0.05, up=True) == "5 %"
