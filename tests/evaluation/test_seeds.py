import json
import math

import numpy as np
import pytest
from scipy import stats

from wazuka.evaluation import episode_accuracy, mcnemar, paired_t, summarize


def test_summary_over_seeds():
    values = [0.97, 0.98, 0.94, 0.975, 0.972]
    summary = summarize(values)
    assert summary.median == 0.972
    assert summary.worst == 0.94
    assert summary.sd == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (summary.mean.low, summary.mean.high) == pytest.approx(expected)
    assert summarize(values, higher_is_better=False).worst == 0.98
    assert json.dumps(summary.to_dict(), allow_nan=False)


def test_one_seed_has_no_spread_and_no_interval():
    summary = summarize([0.9])
    assert summary.median == summary.mean.value == summary.worst == 0.9
    assert math.isnan(summary.sd)
    assert math.isnan(summary.mean.low)
    assert summary.to_dict()["sd"] is None
    assert json.dumps(summary.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="seed"):
        summarize([])


def test_paired_t_agrees_with_scipy_and_beats_the_unpaired_one():
    luck = np.random.default_rng(0).normal(0, 0.05, 6)
    a, b = 0.93 + luck, 0.91 + luck + np.random.default_rng(1).normal(0, 0.005, 6)
    found, expected = paired_t(a, b), stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value < stats.ttest_ind(a, b).pvalue
    back = paired_t(b, a)
    assert back.difference.value == -found.difference.value
    assert back.p_value == found.p_value


def test_paired_t_of_equal_differences():
    assert paired_t([0.5, 0.6], [0.5, 0.6]).p_value == 1
    assert paired_t([0.5, 0.75], [0.25, 0.5]).p_value == 0
    with pytest.raises(ValueError, match="same"):
        paired_t([0.5], [0.4])


def test_mcnemar_is_the_exact_binomial_test_on_disagreements():
    a = np.array([1] * 80 + [1] * 12 + [0] * 3 + [0] * 5, bool)
    b = np.array([1] * 80 + [0] * 12 + [1] * 3 + [0] * 5, bool)
    found = mcnemar(a, b)
    assert found.p_value == pytest.approx(stats.binomtest(12, 15).pvalue)
    assert found.difference.value == pytest.approx(0.09)
    assert 0 < found.difference.low < 0.09 < found.difference.high < 0.2
    assert mcnemar(b, a).difference.high == pytest.approx(-found.difference.low)
    same = mcnemar(a, a)
    assert same.p_value == 1
    assert same.difference.low < 0 < same.difference.high  # that they agree on 100 images proves no equality
    assert json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="same images"):
        mcnemar(a, b[:-1])


def test_mcnemar_interval_covers():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        cell = generator.choice(4, 60, p=[0.7, 0.15, 0.05, 0.1])  # both, only a, only b, none
        found = mcnemar(cell <= 1, (cell == 0) | (cell == 2)).difference
        held += found.low <= 0.1 <= found.high
    assert held / 300 >= 0.92


def test_episode_interval_is_the_literatures():
    accuracies = np.random.default_rng(0).normal(0.95, 0.05, 1000)
    found = episode_accuracy(accuracies)
    assert found.value == pytest.approx(accuracies.mean())
    assert found.high - found.value == pytest.approx(1.96 * accuracies.std() / math.sqrt(1000))
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert math.isnan(episode_accuracy([0.5]).low)
    with pytest.raises(ValueError, match="episode"):
        episode_accuracy([])
