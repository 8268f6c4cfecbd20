from itertools import permutations

import numpy as np
import pytest

from wazuka.explain.permutation import (
    balanced_accuracy,
    column_similarity,
    holm,
    least_p_value,
    p_value,
    predictions,
    similarity,
    stratified_folds,
)


def nearest_mean(features, labels, folds):
    """The same in the features' own space, photo by photo; lengths of means without their noise."""
    guesses = []
    for x, fold in zip(features, folds, strict=True):
        scores = []
        for name in range(labels.max() + 1):
            known = features[(labels == name) & (folds != fold)]
            pairs = [a @ b for a, b in permutations(known, 2)]
            scores.append(x @ known.mean(axis=0) - np.mean(pairs) / 2)
        guesses.append(int(np.argmax(scores)))
    return guesses


def case(counts, seed, dimensions=6, lead=0.0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    features = generator.normal(size=(len(labels), dimensions)) + lead * np.eye(len(counts), dimensions)[labels]
    return features, labels, stratified_folds(labels, generator), generator


@pytest.mark.parametrize("counts", [(3, 3), (4, 9, 5), (16, 7)])
def test_it_is_the_nearest_mean_that_never_saw_the_photos_fold(counts):
    features, labels, folds, generator = case(counts, 0)
    orders = np.stack([np.arange(len(labels)), generator.permutation(len(labels))])
    found = predictions(features @ features.T, labels, folds, orders)
    assert found.tolist() == [nearest_mean(features, labels[order], folds[order]) for order in orders]


def test_many_orders_give_what_each_gives_alone(monkeypatch):
    features, labels, folds, generator = case((5, 6, 7), 1)
    orders = np.stack([generator.permutation(18) for _ in range(20)])
    gram = similarity(features)
    together = predictions(gram, labels, folds, orders)
    monkeypatch.setattr("wazuka.explain.permutation.CHUNK", 1)
    assert (predictions(gram, labels, folds, orders) == together).all()


def test_luck_gets_what_chance_says_also_where_classes_are_of_unlike_sizes():
    features, labels, folds, generator = case((4, 12, 24), 2, dimensions=200)
    orders = np.stack([generator.permutation(40) for _ in range(2000)])
    guesses = predictions(similarity(features), labels, folds, orders)
    shares = balanced_accuracy(guesses, labels[orders])
    assert shares.mean() == pytest.approx(1 / 3, abs=0.015)
    often = np.bincount(guesses.ravel(), minlength=3) / guesses.size
    assert (often > 0.2).all()  # the small class is not further away than the others


def test_folds_are_dealt_out_evenly():
    labels = np.repeat([0, 1], [4, 11])
    folds = stratified_folds(labels, np.random.default_rng(0))
    assert sorted(np.bincount(folds[labels == 0])) == [1, 1, 1, 1]
    assert sorted(np.bincount(folds[labels == 1])) == [2, 3, 3, 3]
    assert stratified_folds(np.repeat([0, 1], 30), np.random.default_rng(0)).max() == 4


def test_accuracy_is_balanced():
    labels = np.array([[0, 0, 0, 1], [1, 0, 0, 0]])
    assert balanced_accuracy(np.zeros((2, 4), dtype=int), labels).tolist() == [0.5, 0.5]
    assert balanced_accuracy(np.array([[0, 1, 1, 1], [0, 0, 0, 0]]), labels).tolist() == pytest.approx([2 / 3, 0.5])


def test_p_values_are_valid_where_there_is_nothing():
    p_values = []
    for seed in range(250):
        features, labels, folds, generator = case(((5, 5), (4, 4, 4), (3, 8, 5))[seed % 3], seed)
        orders = np.stack([np.arange(len(labels)), *(generator.permutation(len(labels)) for _ in range(79))])
        shares = balanced_accuracy(predictions(similarity(features), labels, folds, orders), labels[orders])
        p_values.append(p_value(shares[0], shares[1:]))
    for level in (0.05, 0.1, 0.25, 0.5):
        above_by_luck = 2.6 * (level * (1 - level) / 250) ** 0.5
        assert np.mean(np.array(p_values) <= level) <= level + above_by_luck
    assert np.mean(np.array(p_values) <= 0.5) > 0.25  # and not valid merely because nothing is ever found


def test_a_lead_is_found():
    features, labels, folds, generator = case((6, 6, 6), 0, lead=4.0)
    orders = np.stack([np.arange(18), *(generator.permutation(18) for _ in range(199))])
    shares = balanced_accuracy(predictions(similarity(features), labels, folds, orders), labels[orders])
    assert p_value(shares[0], shares[1:]) == 1 / 200


def test_the_true_order_counts_among_those_by_luck():
    assert p_value(0.9, np.array([0.1, 0.9, 0.95])) == 3 / 4
    assert p_value(1.0, np.zeros(99)) == 1 / 100
    assert p_value(0.0, np.zeros(99)) == 1


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Wikipedia's example
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_the_least_p_value_counts_the_ways_to_divide():
    for labels in ((0, 0, 0, 1, 1, 1), (0, 0, 1, 1, 2, 2), (0, 0, 1, 1, 1, 1)):
        divisions = {frozenset(frozenset(np.flatnonzero(np.equal(p, c))) for c in set(p)) for p in permutations(labels)}
        assert least_p_value(np.bincount(labels).tolist()) == pytest.approx(1 / len(divisions))


def test_similarity_sees_neither_place_nor_size_and_bears_photos_that_are_all_alike():
    features = np.random.default_rng(0).normal(size=(12, 40))
    np.testing.assert_allclose(similarity(3 * features + 5), similarity(features), atol=1e-9)
    assert similarity(np.full((4, 3), 0.1)).tolist() == np.zeros((4, 4)).tolist()
    assert np.linalg.eigvalsh(similarity(features)).min() > -1e-9


def test_common_directions_count_less():
    generator = np.random.default_rng(0)
    labels, features = np.arange(60) % 2, generator.normal(size=(60, 30))
    features[:, 0] += 25 * generator.normal(size=60)  # light, which has nothing to do with the class
    features[:, 1:] += 0.45 * (2 * labels[:, None] - 1)
    folds, true = stratified_folds(labels, generator), np.arange(60)[None]
    plain = features - features.mean(axis=0)
    found = [balanced_accuracy(predictions(g, labels, folds, true), labels[None])[0]
             for g in (plain @ plain.T, similarity(features))]  # fmt: skip
    assert found[1] > found[0] + 0.1


def test_an_ordered_column_is_compared_by_rank():
    values = np.array([1.0, 2.0, 2.0, 1e9, np.nan, np.nan])
    found = column_similarity(values, 2, ordered=True)
    np.testing.assert_allclose(found, column_similarity(np.exp(np.minimum(values, 9)), 2, ordered=True))
    assert found[1, 2] == 1
    assert found[0, 1] == pytest.approx(np.exp(-0.5 * (1.5 / 4 * 2) ** 2))
    assert found[4, 5] == 1
    assert (found[:4, 4:] == 0).all()
    assert (found == found.T).all()


def test_categories_are_alike_or_not():
    found = column_similarity(np.array([0.0, 1.0, 0.0, np.nan, np.nan]), 2, ordered=False)
    assert found.tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
