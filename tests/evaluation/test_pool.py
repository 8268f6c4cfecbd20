"""The estimate for unlabeled images: its limits, and that it covers what it should."""

import numpy as np
import pytest

from wazuka.evaluation.pool import ALONE, CONFIDENCE, LABELS, pool_accuracy, weighted_accuracy


def answers(labels, sure, classes=3):
    """Probabilities that name these labels with that confidence."""
    probs = np.full((len(labels), classes), (1 - sure) / (classes - 1))
    probs[np.arange(len(labels)), labels] = sure
    return probs


def test_without_labels_confidence_is_all_and_the_interval_wide():
    told = pool_accuracy(answers(np.arange(90) % 3, 0.8), None, None)
    assert told.value == pytest.approx((0.5 + ALONE * 0.8) / (1 + ALONE))
    assert told.high - told.low > 0.6
    assert told.low <= told.value <= told.high


def test_labels_and_confidence_are_counted_together():
    labels = np.arange(30) % 3
    guesses = labels.copy()
    guesses[:6] = (labels[:6] + 1) % 3
    told = pool_accuracy(answers(np.arange(90) % 3, 0.7), answers(guesses, 0.9), labels)
    right = 0.5 + CONFIDENCE * 0.7 + LABELS * 30 * 0.8
    assert told.value == pytest.approx(right / (1 + CONFIDENCE + LABELS * 30))


def test_more_labels_narrow_it():
    pool = answers(np.arange(90) % 3, 0.8)
    few, many = (pool_accuracy(pool, answers(np.arange(n) % 3, 0.9), np.arange(n) % 3) for n in (12, 120))
    assert many.high - many.low < few.high - few.low
    assert many.value > few.value


def test_classes_weigh_as_in_the_pool():
    """Half of the labels are of a class that is always missed but makes a tenth of the pool."""
    labels = np.array([0] * 10 + [1] * 10)
    held_out = answers(np.zeros(20, int), 0.9, classes=2)
    pool = answers(np.array([0] * 90 + [1] * 10), 0.9, classes=2)
    share, effective = weighted_accuracy(pool, held_out, labels)
    assert share == pytest.approx(0.9)
    assert effective == pytest.approx(20**2 / (10 * 1.8**2 + 10 * 0.2**2))
    even = answers(np.array([0] * 50 + [1] * 50), 0.9, classes=2)
    assert weighted_accuracy(even, held_out, labels) == (pytest.approx(0.5), pytest.approx(20))


def test_a_pool_of_none_of_the_held_out_classes():
    assert weighted_accuracy(answers(np.zeros(5, int), 0.9), answers(np.ones(2, int), 0.9), np.ones(2, int)) == (0, 0)


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.97])
def test_it_covers_the_truth_of_a_calibrated_classifier(truth):
    generator, inside = np.random.default_rng(0), 0
    for _ in range(300):
        pool = answers(generator.integers(0, 3, 400), truth + generator.normal(0, 0.03))
        labels = generator.integers(0, 3, 24)
        guesses = np.where(generator.random(24) < truth, labels, (labels + 1) % 3)
        told = pool_accuracy(pool.clip(0, 1), answers(guesses, 0.9), labels)
        inside += told.low <= truth <= told.high
    assert inside / 300 > 0.9
