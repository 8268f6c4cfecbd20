import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from wazuka.evaluation.detection import (
    accuracy_at_coverage,
    augrc,
    aurc,
    aurc_estimate,
    auroc,
    auroc_interval,
    average_precision,
    detection,
    detection_accuracy,
    excess_aurc,
    fpr_at_tpr,
    risk_coverage,
)

GENERATOR = np.random.default_rng(0)
KNOWN = np.round(GENERATOR.normal(1, 1, 300), 1)  # rounded: ties; here high is known, as in the literature
ODD = np.round(GENERATOR.normal(-0.5, 1, 120), 1)
SCORES, TRUTH = np.concatenate([KNOWN, ODD]), np.repeat([1, 0], [300, 120])


def test_agrees_with_scikit_learn_in_the_presence_of_ties():
    assert auroc(KNOWN, ODD) == pytest.approx(metrics.roc_auc_score(TRUTH, SCORES), abs=1e-12)
    assert average_precision(KNOWN, ODD) == pytest.approx(metrics.average_precision_score(TRUTH, SCORES), abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(TRUTH, SCORES, drop_intermediate=False)
    assert fpr_at_tpr(KNOWN, ODD) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    assert detection_accuracy(KNOWN, ODD) == pytest.approx(((tpr + 1 - fpr) / 2).max())
    fpr, tpr, _ = metrics.roc_curve(1 - TRUTH, -SCORES, drop_intermediate=False)
    assert fpr_at_tpr(KNOWN, ODD, positive="odd") == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_a_detectors_score_is_high_for_odd_images():
    found = detection(known=[0.1, 0.2, 0.3], odd=[0.8, 0.9])
    assert found.auroc.value == found.aupr_in.value == found.aupr_out.value == found.accuracy.value == 1
    assert found.fpr95.value == found.fpr95_odd.value == 0
    assert found.tnr95.value == 1
    backwards = detection(known=[0.8, 0.9], odd=[0.1, 0.2, 0.3])
    assert backwards.auroc.value == 0
    assert backwards.fpr95.value == 1


def test_detection_is_made_of_its_parts():
    found = detection(-KNOWN, -ODD)
    assert found.auroc.value == auroc(KNOWN, ODD)
    assert found.aupr_in.value == average_precision(KNOWN, ODD)
    assert found.aupr_out.value == pytest.approx(metrics.average_precision_score(1 - TRUTH, -SCORES), abs=1e-12)
    assert found.fpr95.value == fpr_at_tpr(KNOWN, ODD)
    assert found.fpr95.value != found.fpr95_odd.value  # the two sides differ, as the card warns
    assert found.tnr95.value == 1 - found.fpr95.value
    assert found.tnr95.low == 1 - found.fpr95.high
    assert found.known_per_odd == 2.5
    for name in ("auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_odd", "tnr95", "accuracy"):
        estimate = getattr(found, name)
        assert estimate.low < estimate.value < estimate.high, name
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_a_detector_that_guesses():
    same = np.zeros(30), np.zeros(10)
    assert auroc(*same) == 0.5
    assert average_precision(*same) == 30 / 40
    assert fpr_at_tpr(*same) == 1
    assert detection_accuracy(*same) == 0.5


def test_threshold_accepts_exactly_95_percent():
    known, odd = np.arange(20.0), np.array([0.0, 0.5, 1.0, 1.5])
    assert fpr_at_tpr(known, odd) == 0.5  # 19 of 20 known images score 1 or more
    with pytest.raises(ValueError, match="positive"):
        fpr_at_tpr(known, odd, positive="id")


def test_intervals_keep_a_width_when_detection_is_perfect():
    found = detection(np.zeros(20), np.ones(20))
    assert found.auroc.low < 0.97
    assert found.fpr95.high > 0.1
    assert found.fpr95_odd.high > 0.1


def test_auroc_interval_agrees_with_the_bootstrap_and_is_symmetric():
    value = auroc(KNOWN, ODD)
    interval = auroc_interval(value, 300, 120)
    generator = np.random.default_rng(1)
    draws = [auroc(generator.choice(KNOWN, 300), generator.choice(ODD, 120)) for _ in range(500)]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.015)
    mirror = auroc_interval(1 - value, 300, 120)
    assert (1 - mirror.high, 1 - mirror.low) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("known", [[], [math.nan], [[0.0]]])
def test_nonsense_is_refused(known):
    with pytest.raises(ValueError, match="scores"):
        detection(known, [1.0])


def test_risk_coverage_by_hand():
    coverage, risk = risk_coverage([0.9, 0.5, 0.7, 0.6], [True, True, False, True])
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 4])
    assert aurc([0.9, 0.5, 0.7, 0.6], [True, True, False, True]) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert augrc([0.9, 0.5, 0.7, 0.6], [True, True, False, True]) == pytest.approx(3 * (1 / 4) / 4)


def test_agrees_with_torchmetrics():
    scores, truth = torch.tensor(SCORES / 10), torch.tensor(TRUTH)  # of [0, 1] in torchmetrics, or it takes a sigmoid
    squeezed = (scores - scores.min()) / (scores.max() - scores.min())
    assert auroc(KNOWN, ODD) == pytest.approx(float(binary_auroc(squeezed, truth)), abs=1e-6)
    assert average_precision(KNOWN, ODD) == pytest.approx(float(binary_average_precision(squeezed, truth)), abs=1e-6)
    out = float(binary_average_precision(1 - squeezed, 1 - truth))
    assert average_precision(-ODD, -KNOWN) == pytest.approx(out, abs=1e-6)
    assert average_precision(KNOWN, ODD) > 0.9 > average_precision(-ODD, -KNOWN)  # in and out are two numbers


def test_detection_accuracy_by_trying_every_threshold():
    thresholds = [*np.unique(SCORES), math.inf]
    best = max((np.mean(t <= KNOWN) + np.mean(t > ODD)) / 2 for t in thresholds)
    assert detection_accuracy(KNOWN, ODD) == pytest.approx(best)
    assert detection_accuracy(np.tile(KNOWN, 9), ODD) == pytest.approx(best)  # whatever the sizes
    assert detection_accuracy(ODD, KNOWN) >= 0.5


def test_fpr_by_trying_every_threshold_on_either_side():
    accepting = [t for t in np.unique(SCORES) if np.mean(t <= KNOWN) >= 0.95]
    assert fpr_at_tpr(KNOWN, ODD) == np.mean(max(accepting) <= ODD)
    flagging = [t for t in np.unique(SCORES) if np.mean(t >= ODD) >= 0.95]
    assert fpr_at_tpr(KNOWN, ODD, positive="odd") == np.mean(min(flagging) >= KNOWN)


def test_risk_coverage_by_its_definition():
    generator = np.random.default_rng(5)
    confidence, correct = generator.random(57), generator.random(57) < 0.7
    risks = []
    for kept in range(1, 58):
        surest = sorted(range(57), key=lambda image: -confidence[image])[:kept]
        risks.append(1 - metrics.accuracy_score(np.ones(kept), correct[surest]))
    coverage, risk = risk_coverage(confidence, correct)
    np.testing.assert_allclose(risk, risks)
    np.testing.assert_allclose(coverage, np.arange(1, 58) / 57)
    assert aurc(confidence, correct) == pytest.approx(np.mean(risks))
    trapezoid = metrics.auc(coverage, risk) / (1 - 1 / 57)  # torch-uncertainty's, within 1/n
    assert aurc(confidence, correct) == pytest.approx(trapezoid, abs=1 / 57)


def test_aurc_identities():
    generator = np.random.default_rng(2)
    confidence = generator.random(20_000)
    correct = generator.random(20_000) < 0.8
    error = 1 - correct.mean()
    assert aurc(confidence, np.ones(20_000)) == 0
    assert aurc(confidence, correct) == pytest.approx(error, abs=0.02)  # sure of no image more than of another
    assert aurc(correct, correct) == pytest.approx(error + (1 - error) * math.log(1 - error), abs=1e-3)
    assert excess_aurc(correct, correct) == 0
    useful = np.where(correct, confidence + 0.5, confidence)
    assert 0 < excess_aurc(useful, correct) < excess_aurc(confidence, correct) < excess_aurc(-useful, correct)
    assert aurc(np.exp(5 * useful), correct) == pytest.approx(aurc(useful, correct))


def test_ties_do_not_let_the_order_of_files_decide():
    correct = np.array([1, 1, 0, 1, 0, 1, 1, 0])
    confidence = np.array([1.0, 1, 1, 1, 0.5, 0.5, 0.2, 0.2])
    expected = np.mean(
        [
            [(1 - correct[order]).cumsum()[k] / (k + 1) for k in range(8)]
            for order in (tied_order(confidence, seed) for seed in range(4000))
        ],
        axis=0,
    )
    np.testing.assert_allclose(risk_coverage(confidence, correct)[1], expected, atol=0.02)
    flipped = risk_coverage(confidence[::-1], correct[::-1])[1]
    np.testing.assert_allclose(flipped, risk_coverage(confidence, correct)[1])


def tied_order(confidence, seed):
    return np.lexsort([np.random.default_rng(seed).random(len(confidence)), -confidence])


def test_accuracy_at_coverage():
    confidence, correct = np.arange(10), np.arange(10) >= 4
    assert accuracy_at_coverage(confidence, correct, 0.6).value == 1
    assert accuracy_at_coverage(confidence, correct, 0.6).low < 0.7
    assert accuracy_at_coverage(confidence, correct, 1.0).value == 0.6
    assert accuracy_at_coverage(confidence, correct, 0.65).value == pytest.approx(6 / 7)  # at least 65 %: 7 images
    with pytest.raises(ValueError, match="coverage"):
        accuracy_at_coverage(confidence, correct, 0)


def test_aurc_interval_holds_its_value():
    confidence = np.random.default_rng(0).random(200)
    correct = np.random.default_rng(1).random(200) < confidence
    estimate = aurc_estimate(confidence, correct)
    assert estimate.low < estimate.value == aurc(confidence, correct) < estimate.high
