import math

import numpy as np
import pytest
from scipy.stats import binom

from wazuka.evaluation.selective import START, flawless_needed, log_wealth, risk_limit, shown, threshold_for_risk


def test_how_many_flawless_answers_it_takes():
    assert flawless_needed(0.05, 0.9) == 45
    assert flawless_needed(0.1, 0.95) == 29
    assert flawless_needed(0.5, 0.5) == 1
    for weights in (np.ones(8), np.array([0.2, 1.8])):
        needed = flawless_needed(0.05, 0.9, weights)
        stakes = np.resize(weights, 2 * needed)[: needed // 2 * 2] / weights.max()
        assert log_wealth(np.zeros(len(stakes)), stakes, 0.05)[-1] == pytest.approx(math.log(10), abs=0.1)
    assert 45 < flawless_needed(0.05, 0.9, np.ones(8)) < 60 < flawless_needed(0.05, 0.9, np.array([0.2, 1.8]))


def test_limit_is_clopper_and_pearsons():
    wrong = np.repeat([0.0, 1.0], [57, 3])
    limit = risk_limit(wrong, 0.9, None)
    assert binom.cdf(3, 60, limit) == pytest.approx(0.1)
    assert risk_limit(np.zeros(45), 0.9, None) == pytest.approx(1 - 0.1 ** (1 / 45))
    assert risk_limit(np.ones(4), 0.9, None) == 1
    weighted = risk_limit(wrong, 0.9, np.ones(60))
    assert limit < weighted < limit + 0.06  # bets are valid for any mixture of classes, and cost some labels
    assert log_wealth(wrong, np.ones(60), weighted)[-1] == pytest.approx(math.log(10))
    assert risk_limit(np.repeat([0.0, 1.0], [1, 9]), 0.9, np.ones(10)) > 0.9


@pytest.mark.parametrize("stakes", [None, np.resize([1.0, 0.3], 80)])
def test_the_test_and_the_limit_say_the_same(stakes):
    for errors in range(9):
        wrong = np.roll(np.repeat([1.0, 0.0], [errors, 80 - errors]), 3)
        limit = risk_limit(wrong, 0.9, stakes)
        assert shown(wrong, stakes, limit + 1e-6, 0.9)[-1]
        assert not shown(wrong, stakes, limit - 1e-6, 0.9)[-1]
        first = None if stakes is None else stakes[:50]
        assert shown(wrong, stakes, 0.2, 0.9)[49] == (risk_limit(wrong[:50], 0.9, first) <= 0.2)


def test_weights_make_errors_of_common_classes_dearer():
    wrong, stakes = np.repeat([1.0, 0.0], [2, 98]), np.where(np.arange(100) < 50, 1.0, 0.3)
    assert risk_limit(wrong[::-1].copy(), 0.9, stakes) < risk_limit(wrong, 0.9, stakes)
    assert risk_limit(np.zeros(50), 0.9, stakes[50:]) > risk_limit(np.zeros(50), 0.9, stakes[:50])


def test_only_ratios_of_weights_count():
    confidence, weights = np.linspace(0, 1, 300), np.resize([1.8, 0.2, 1.0], 300)
    correct = np.arange(300) % 50 > 0
    told = threshold_for_risk(confidence, correct, 0.1, 0.9, weights)
    assert told.threshold is not None
    assert threshold_for_risk(confidence, correct, 0.1, 0.9, 7 * weights) == told
    assert threshold_for_risk(confidence[::-1], correct[::-1], 0.1, 0.9, weights[::-1]) == told


def test_flawless_answers_are_all_kept():
    told = threshold_for_risk(np.linspace(0, 1, 45), np.ones(45, bool), 0.05)
    assert told.threshold == -math.inf
    assert (told.kept, told.errors) == (45, 0)
    assert told.limit <= 0.05
    assert told.keeps([0.0, 1.0]).all()
    assert told.reason == (
        "Of all answers at most 5 % are wrong, with 90 % certainty: of the 45 labeled images (out of 45) that they "
        "name, 0."
    )


def test_too_few_labels_say_how_many_it_takes():
    told = threshold_for_risk(np.linspace(0, 1, 44), np.ones(44, bool), 0.05)
    assert told.threshold is None
    assert told.needed == 45
    assert told.reason == (
        "That at most 5 % of answers are wrong can't be shown with 44 labels: even without an error it takes 45."
    )
    assert not told.keeps([0.5, 1e9]).any()
    assert threshold_for_risk([], [], 0.05).needed == 45


def test_the_threshold_lies_below_the_kept_and_at_the_first_left():
    confidence, correct = np.arange(100.0), np.arange(100) >= 30  # the 30 least sure are wrong
    told = threshold_for_risk(confidence, correct, 0.1, level=0.95)
    kept = max(k for k in range(70, 100) if binom.cdf(k - 70, k, 0.1) <= 0.05)
    assert (told.kept, told.errors) == (kept, kept - 70)
    assert told.threshold == 99 - kept  # the surest image that is left; answers must be above it
    assert told.keeps(confidence).sum() == kept
    assert binom.cdf(told.errors, kept, told.limit) == pytest.approx(0.05)
    shuffled = np.random.default_rng(0).permutation(100)
    assert threshold_for_risk(confidence[shuffled], correct[shuffled], 0.1, level=0.95) == told


def test_surest_answers_that_are_wrong_make_it_impossible():
    correct = np.arange(100) < 90
    told = threshold_for_risk(np.arange(100.0), correct, 0.05)
    assert told.threshold is None
    assert (told.kept, told.errors) == (45, 10)
    assert told.reason.startswith("Of the 45 labeled images with the surest answers 10 are wrong")


def test_nothing_is_tried_after_the_first_that_fails():
    """Late thresholds would pass; taking the best of all would need a correction."""
    correct = np.ones(400, bool)
    correct[-100:][:15] = False  # of the 100 surest
    assert binom.cdf(15, 400, 0.07) < 0.1
    assert threshold_for_risk(np.arange(400.0), correct, 0.07).threshold is None


def test_equally_sure_answers_are_kept_together():
    confidence = np.repeat([1.0, 0.5], [60, 20])
    correct = np.repeat([True, False], [60, 20])
    for order in (np.arange(80), np.arange(80)[::-1]):
        told = threshold_for_risk(confidence[order], correct[order], 0.05)
        assert (told.threshold, told.kept, told.errors) == (0.5, 60, 0)
    assert threshold_for_risk(np.ones(80), correct, 0.05).threshold is None


def risky(confidence, ceiling):
    """Share of errors at a confidence in [0, 1]; the selective risk above c is known in closed form."""
    return ceiling * (1 - confidence)


@pytest.mark.parametrize(("n", "level", "ceiling", "digits"), [
    (60, 0.9, 0.105, 9), (100, 0.9, 0.25, 9), (200, 0.8, 0.5, 9), (400, 0.9, 0.3, 9), (200, 0.8, 0.3, 1),
])  # fmt: skip
def test_more_errors_than_promised_come_no_more_often_than_said(n, level, ceiling, digits):
    """Above c the risk is ceiling * (1 - c) / 2. With one digit, confidences tie."""
    generator, broken, found, draws = np.random.default_rng(n), 0, 0, 600
    for _ in range(draws):
        confidence = np.round(generator.random(n), digits)
        wrong = generator.random(n) < risky(confidence, ceiling)
        told = threshold_for_risk(confidence, ~wrong, 0.05, level)
        if told.threshold is not None:
            found += 1
            lowest = max(0.0, told.threshold + (0.05 if digits == 1 else 0))
            risk = ceiling * (1 - lowest) / 2
            broken += risk > 0.05
    assert found > 10
    assert broken / draws <= (1 - level) + 3 * math.sqrt(level * (1 - level) / draws)
    assert broken > 0 or n == 60 or digits == 1  # and it is not so careful as to be useless


def test_promise_holds_where_risk_goes_up_and_down():
    """Risk just above the promise at the start, below it later, above it at the end."""
    edges = np.array([0.0, 0.3, 0.6, 1.0])
    rates = np.array([0.2, 0.02, 0.105])  # of [0, 0.3), [0.3, 0.6), [0.6, 1): above 0.6 the risk is 0.105
    generator, broken, draws = np.random.default_rng(3), 0, 800
    for _ in range(draws):
        confidence = generator.random(90)
        wrong = generator.random(90) < rates[np.searchsorted(edges, confidence, side="right") - 1]
        told = threshold_for_risk(confidence, ~wrong, 0.1, 0.8)
        if told.threshold is not None:
            t = max(0.0, told.threshold)
            shares = np.clip(edges[1:] - np.maximum(edges[:-1], t), 0, None)
            broken += (shares * rates).sum() / shares.sum() > 0.1
    assert broken / draws <= 0.2 + 3 * 0.0142


def test_class_balanced_labels_of_an_uneven_pool_need_weights():
    """The commoner class, 95 % of the pool, is wrong in 11 % of cases, the other never; half of each was labeled."""
    generator, draws, broken = np.random.default_rng(4), 150, {"plain": 0, "weighted": 0}
    common = np.arange(400) < 200
    for _ in range(draws):
        wrong = common & (generator.random(400) < 0.11)
        confidence = generator.random(400)
        for name, weights in (("plain", None), ("weighted", np.where(common, 1.9, 0.1))):
            broken[name] += threshold_for_risk(confidence, ~wrong, 0.1, 0.9, weights).threshold is not None
    assert broken["plain"] > 0.3 * draws  # the true risk is 10.45 %; among the labels it is 5.5 %
    assert broken["weighted"] <= 0.1 * draws + 3 * math.sqrt(0.09 * draws)


def test_weights_still_find_a_threshold_where_errors_are_few():
    generator = np.random.default_rng(5)
    confidence, weights = generator.random(400), np.repeat([1.5, 0.5], 200)
    told = threshold_for_risk(confidence, generator.random(400) > 0.2 * (1 - confidence) ** 2, 0.1, 0.9, weights)
    assert told.threshold is not None
    assert told.kept > 200
    assert told.limit <= 0.1


def test_a_bet_earns_nothing_on_average_at_the_true_risk():
    """Also where classes have risks of their own and fixed numbers: all outcomes of 8 images, exactly."""
    outcomes = (np.arange(256)[:, None] >> np.arange(8)) % 2
    weights, risks = np.repeat([1.5, 0.5], 4), np.repeat([0.3, 0.1], 4)
    chances = np.where(outcomes == 1, risks, 1 - risks).prod(axis=1)
    risk = (weights * risks).sum() / weights.sum()
    wealth = np.exp([log_wealth(row, weights / 1.5, risk)[-1] for row in outcomes.astype(float)])
    assert 0.9 < (chances * wealth).sum() <= 1 + 1e-12
    even = np.full(8, 0.25)
    chances = np.where(outcomes == 1, even, 1 - even).prod(axis=1)
    wealth = np.exp([log_wealth(row, weights / 1.5, 0.25)[-1] for row in outcomes.astype(float)])
    assert (chances * wealth).sum() == pytest.approx(1)


def test_it_starts_where_a_quarter_is_kept():
    told = threshold_for_risk(np.arange(400.0), np.arange(400) < 300, 0.05)
    assert told.kept == START * 400
    assert told.errors == 100


def test_nonsense_is_refused():
    for arguments, words in (
        (([0.5], [True, False], 0.1), "same images"),
        (([math.nan], [True], 0.1), "NaN"),
        (([0.5], [0.3], 0.1), "true or false"),
        (([0.5], [True], 0.0), "max_error"),
        (([0.5], [True], 0.1, 1.0), "level"),
        (([0.5], [True], 0.1, 0.9, [0.0]), "positive"),
        (([0.5], [True], 0.1, 0.9, [1.0, 1.0]), "positive"),
    ):
        with pytest.raises(ValueError, match=words):
            threshold_for_risk(*arguments)
