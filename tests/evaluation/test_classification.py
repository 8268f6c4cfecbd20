import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from wazuka.evaluation import Estimate, Evaluation, evaluate, wilson
from wazuka.evaluation.classification import BINS, bin_of, brier_each, calibration_error, groups_of
from wazuka.evaluation.intervals import bca, mean_of_shares, percentile

CLASSES = ("ant", "bee", "cat", "dog")


def answers(n=400, classes=4, seed=0, sharpness=2.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes)) * sharpness + 2.0 * np.eye(classes)[labels]
    probs = np.exp(logits - logits.max(1, keepdims=True))
    return probs / probs.sum(1, keepdims=True), labels


@pytest.fixture(scope="module")
def evaluation():
    return evaluate(*answers(), CLASSES)


def test_agrees_with_scikit_learn_and_torchmetrics(evaluation):
    probs, labels = answers()
    guesses = probs.argmax(1)
    assert evaluation.accuracy.value == metrics.accuracy_score(labels, guesses)
    assert evaluation.balanced_accuracy.value == pytest.approx(metrics.balanced_accuracy_score(labels, guesses))
    assert evaluation.nll.value == pytest.approx(metrics.log_loss(labels, probs))
    np.testing.assert_array_equal(evaluation.confusion, metrics.confusion_matrix(labels, guesses))
    recall = metrics.recall_score(labels, guesses, average=None)
    precision = metrics.precision_score(labels, guesses, average=None)
    np.testing.assert_allclose([share.value for share in evaluation.recall], recall)
    np.testing.assert_allclose([share.value for share in evaluation.precision], precision)
    expected = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), 4, n_bins=15)
    assert evaluation.ece.value == pytest.approx(float(expected), abs=1e-6)
    one_column = sum(metrics.brier_score_loss(labels == k, probs[:, k]) for k in range(4))
    assert evaluation.brier.value == pytest.approx(one_column)
    assert evaluation.correct == (guesses == labels).sum()


def test_wilson_published_example_and_edges():
    newcombe = wilson(81, 263)  # Newcombe 1998, table I, method 3
    assert (round(newcombe.low, 4), round(newcombe.high, 4)) == (0.2553, 0.3662)
    none, every = wilson(0, 10), wilson(10, 10)
    assert none.low == 0
    assert every.high == 1
    assert none.high == pytest.approx(1 - every.low) == pytest.approx(0.2775, abs=1e-4)
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0, 1)
    assert wilson(5, 10, level=0.8).low > wilson(5, 10).low
    with pytest.raises(ValueError, match="correct"):
        wilson(11, 10)
    with pytest.raises(ValueError, match="level"):
        wilson(1, 10, level=95)


def test_brier_identities():
    labels = np.array([0, 1])
    assert brier_each(np.eye(3)[labels], labels) == pytest.approx(0)
    assert brier_each(np.full((2, 3), 1 / 3), labels) == pytest.approx(1 - 1 / 3)
    assert brier_each(np.eye(3)[[1, 2]], labels) == pytest.approx(2)


def test_bins_are_open_at_the_left_and_closed_at_the_right():
    for m in range(1, BINS + 1):
        assert bin_of(np.array([m / BINS])) == m - 1
        if m < BINS:
            assert bin_of(np.array([np.nextafter(m / BINS, 1)])) == m


def test_calibration_error_identities():
    sure = np.ones(20)
    right = np.arange(20) < 13
    assert calibration_error(right - sure, bin_of(sure)) == pytest.approx(1 - 13 / 20)
    eighty = np.full(10, 0.8)
    assert calibration_error((np.arange(10) < 8) - eighty, bin_of(eighty)) == pytest.approx(0)
    probs, labels = answers()
    correct, confidence = probs.argmax(1) == labels, probs.max(1)
    one_bin = calibration_error(correct - confidence, np.zeros(len(labels), int))
    assert one_bin == pytest.approx(abs(correct.mean() - confidence.mean()))


def test_order_of_images_and_of_classes_changes_nothing(evaluation):
    probs, labels = answers()
    shuffle, rename = np.random.default_rng(1).permutation(len(labels)), np.array([2, 0, 3, 1])
    again = evaluate(probs[shuffle][:, np.argsort(rename)], rename[labels[shuffle]], CLASSES)
    for name in ("accuracy", "balanced_accuracy", "nll", "brier", "ece", "ace"):
        assert getattr(again, name).value == pytest.approx(getattr(evaluation, name).value), name
    np.testing.assert_array_equal(again.confusion[np.ix_(rename, rename)], evaluation.confusion)


def test_calibration_error_counts_every_bin_in_a_loop_over_bins(evaluation):
    probs, labels = answers()
    right, confidence = probs.argmax(1) == labels, probs.max(1)
    gaps = []
    for m in range(BINS):
        inside = (confidence > m / BINS) & (confidence <= (m + 1) / BINS)
        if inside.any():
            gaps.append(inside.mean() * abs(right[inside].mean() - confidence[inside].mean()))
    assert evaluation.ece.value == pytest.approx(sum(gaps))
    assert gaps[-1] > 0.01  # the surest bin, which must not be missing
    order = np.argsort(confidence)
    groups = np.array_split(order, BINS)
    adaptive = sum(len(rows) / len(labels) * abs(right[rows].mean() - confidence[rows].mean()) for rows in groups)
    assert evaluation.ace.value == pytest.approx(adaptive, abs=2e-3)  # where groups begin may differ by an image


def test_brier_and_nll_by_their_definitions(evaluation):
    probs, labels = answers()
    assert evaluation.brier.value == pytest.approx(((probs - np.eye(4)[labels]) ** 2).sum(axis=1).mean())
    assert evaluation.nll.value == pytest.approx(-np.log(probs[np.arange(400), labels]).mean())


def test_equal_mass_groups_include_the_surest_images():
    assert np.bincount(groups_of(1797)).tolist().count(120) == 12
    assert np.bincount(groups_of(1797)).sum() == 1797
    assert (np.diff(groups_of(1797)) >= 0).all()
    assert groups_of(4).tolist() == [0, 1, 2, 3]
    labels = np.arange(150) % 2  # all calibrated but the surest tenth, which is sure and always wrong
    probs = np.tile([0.5, 0.5], (150, 1))
    probs[:15] = np.eye(2)[1 - labels[:15]]
    labels[15:] = np.arange(135) % 2
    surest = evaluate(probs, labels, "ab")
    assert surest.ace.value == pytest.approx(0.1, abs=0.004)
    assert surest.ace.value == pytest.approx(surest.ece.value, abs=0.001)
    shuffle = np.argsort(labels, kind="stable")  # groups of equals: the order of files changes nothing
    assert evaluate(probs[shuffle], labels[shuffle], "ab").ace.value == pytest.approx(surest.ace.value)


def test_nll_comes_from_log_probabilities_where_given():
    logits = torch.tensor([[0.0, 200.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1])
    logs = logits.log_softmax(1)
    exact = evaluate(logs.exp(), labels, "ab", logs).nll.value
    assert exact == pytest.approx((200 + math.log1p(math.exp(-1))) / 2, rel=1e-6)
    rounded = evaluate(logs.exp(), labels, "ab").nll.value  # the logarithm is lost: a finite stand-in
    assert 40 < rounded < exact


def test_reliability_bins_hold_every_image(evaluation):
    probs, _ = answers()
    assert sum(one.count for one in evaluation.reliability) == 400
    filled = [one for one in evaluation.reliability if one.count]
    assert all(one.low < one.confidence <= one.high + 1e-12 for one in filled)
    gap = sum(one.count * abs(one.accuracy.value - one.confidence) for one in filled) / 400
    assert gap == pytest.approx(evaluation.ece.value)
    assert sum(one.count * one.confidence for one in filled) == pytest.approx(probs.max(1).sum())


def test_a_class_without_test_images_has_no_recall_and_leaves_the_mean():
    probs = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
    result = evaluate(probs, [0, 1, 0], "abc")
    assert math.isnan(result.recall[2].value)
    assert (result.recall[2].low, result.recall[2].high) == (0, 1)
    assert result.balanced_accuracy.value == pytest.approx((0.5 + 1) / 2)
    assert result.support == (2, 1, 0)


def test_flawless_answers_still_carry_doubt():
    result = evaluate(np.eye(2)[[0, 1] * 20], [0, 1] * 20, "ab")
    assert result.accuracy.value == result.balanced_accuracy.value == 1
    assert result.accuracy.low < 0.95
    assert result.balanced_accuracy.low < 0.95
    assert result.nll.value == 0


def test_json_round_trip(evaluation):
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert Evaluation.from_dict(json.loads(text)).to_dict() == evaluation.to_dict()
    sparse = evaluate(np.array([[0.9, 0.1]]), [0], "ab")  # NaN inside: no test image of class b
    assert json.dumps(sparse.to_dict(), allow_nan=False)
    assert math.isnan(Evaluation.from_dict(sparse.to_dict()).recall[1].value)


def test_tensors_arrays_and_half_precision_are_welcome(evaluation):
    probs, labels = answers()
    tensors = evaluate(torch.tensor(probs, requires_grad=True), torch.tensor(labels), CLASSES)
    assert tensors.to_dict() == evaluation.to_dict()
    assert evaluate(torch.tensor(probs, dtype=torch.bfloat16), labels, CLASSES).n == 400


@pytest.mark.parametrize(
    ("probs", "labels", "match"),
    [
        (np.array([[2.0, -1.0]]), [0], "logits"),
        (np.array([[0.5, 0.4]]), [0], "logits"),
        (np.array([[np.nan, 1.0]]), [0], "logits"),
        (np.array([[0.5, 0.5]]), [-1], "labels"),
        (np.array([[0.5, 0.5]]), [2], "labels"),
        (np.array([[0.5, 0.5]]), [0.0], "whole"),
        (np.array([[0.2, 0.3, 0.5]]), [0], "probs"),
        (np.zeros((0, 2)), np.zeros(0, int), "no image"),
    ],
)
def test_nonsense_is_refused(probs, labels, match):
    with pytest.raises(ValueError, match=match):
        evaluate(probs, labels, "ab")


def test_bca_agrees_with_scipy():
    values = np.random.default_rng(0).lognormal(size=40)
    ours = evaluate_mean(values)
    reference = bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", random_state=1).confidence_interval
    assert ours.low == pytest.approx(reference.low, rel=0.01)
    assert ours.high == pytest.approx(reference.high, rel=0.01)
    plain = percentile(values.mean(), np.random.default_rng(0).choice(values, (20_000, 40)).mean(1))
    assert ours.high > plain.high  # the long tail of the data is to the right


def evaluate_mean(values):
    draws = np.random.default_rng(0).choice(values, (20_000, len(values))).mean(1)
    return bca(values.mean(), draws, values)


def test_balanced_accuracy_interval_of_one_class_is_wilsons():
    one = wilson(7, 9)
    mean = mean_of_shares([one])
    assert (mean.value, mean.low, mean.high) == pytest.approx((one.value, one.low, one.high))
    four = mean_of_shares([one] * 4)  # four times the images, half the width
    assert four.high - four.value == pytest.approx((one.high - one.value) / 2)
    assert four.value - four.low == pytest.approx((one.value - one.low) / 2)


def test_calibration_interval_holds_the_truth():
    """A calibrated classifier's true error is 0, which the percentile bootstrap never holds; nor is 0 held by all."""
    generator = np.random.default_rng(0)

    def interval(shift, n=300):
        confidence = 1 - 0.4 * generator.beta(1, 3, n)
        right = generator.random(n) < confidence - shift
        labels = np.where(right, 0, 1)
        return evaluate(np.stack([confidence, 1 - confidence], 1), labels, "ab", draws=150, seed=int(n)).ece

    assert np.mean([interval(0.0).low == 0 for _ in range(40)]) >= 0.9
    shifted = [interval(0.15) for _ in range(40)]
    assert np.mean([one.low <= 0.15 <= one.high for one in shifted]) >= 0.8
    assert np.mean([one.low > 0 for one in shifted]) >= 0.9


def test_chance_alone_explains_a_calibrated_classifiers_error():
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.55, 1, 1000)
    labels = (generator.random(1000) > confidence).astype(int)
    result = evaluate(np.stack([confidence, 1 - confidence], 1), labels, "ab")
    assert 0.02 < result.ece_if_calibrated < 0.07
    assert evaluate(np.eye(2)[labels], 1 - labels, "ab").ece_if_calibrated == 0  # always sure, so luck has no room


def test_estimate_reads_well():
    assert str(Estimate(0.97, 0.951, 0.982, 0.95, "wilson")) == "0.97 (95% interval 0.951 to 0.982)"


def test_ten_thousand_images_take_a_blink():
    import time

    probs, labels = answers(10_000)
    start = time.perf_counter()
    evaluate(probs, labels, CLASSES)
    assert time.perf_counter() - start < 10  # about 1 s on an idle core
