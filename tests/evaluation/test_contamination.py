"""Photos of something else among the unlabeled ones: found where they are, and not invented where they are not."""

import json

import numpy as np
import pytest

from wazuka.evaluation.contamination import contamination, fewest_others


def drawn(n, known, odd, seed, shift=10.0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=n), np.concatenate([draw.normal(size=known), draw.normal(size=odd) + shift])


@pytest.mark.parametrize("n", [8, 19, 40, 200])
def test_where_there_are_none_none_are_found(n):
    found = [contamination(*drawn(n, 2000, 0, seed), level=0.95) for seed in range(400)]
    assert np.mean([one.found for one in found]) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    # and nearly as often as the level allows, for else the bound could be sharper
    assert np.mean([one.found for one in found]) >= 0.01


def test_the_share_above_the_threshold_follows_its_law():
    n, rank = 39, 2
    flagged = [contamination(*drawn(n, 4000, 0, seed)).flagged for seed in range(600)]
    assert np.mean(flagged) == pytest.approx(rank / (n + 1), abs=0.004)
    most = contamination(*drawn(n, 10, 0, 0), level=0.9).by_chance[1]
    assert np.mean(np.asarray(flagged) <= most) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("odd", [100, 400])
def test_others_are_found_and_counted(odd):
    for seed in range(20):
        left_out, scores = drawn(40, 1000, odd, seed)
        found = contamination(left_out, scores, level=0.999)
        truth = odd / (1000 + odd)
        assert found.at_least <= truth
        assert abs(found.share - truth) < 0.15
        if odd == 400:
            assert found.found
            marked = found.odd(scores)
            assert marked[1000:].all()
            assert marked[:1000].mean() < 0.2


def test_the_bound_holds_whatever_odd_photos_score():
    for shift in (0.5, 1.5, 3.0):
        held = [contamination(*drawn(60, 700, 300, seed, shift), level=0.9).at_least <= 0.3 for seed in range(200)]
        assert np.mean(held) >= 0.9


def test_nothing_is_set_aside_where_nothing_was_found():
    left_out, scores = drawn(40, 1000, 0, 3)
    found = contamination(left_out, scores)
    assert not found.found
    assert (scores > found.threshold).any()
    assert not found.odd(scores).any()
    assert found.told().startswith("No sign")


def test_with_too_little_to_go_by_nothing_is_found():
    for left_out, scores in (([], [1.0]), ([0.5], [9.0] * 50), ([0.1, 0.2], []), ([np.inf, np.inf], [9.0] * 9)):
        found = contamination(left_out, scores)
        assert (found.found, found.share) == (False, 0.0)
        json.dumps(found.to_dict(), allow_nan=False)


def test_scores_alike_are_no_sign():
    assert not contamination(np.ones(50), np.ones(500)).found


def test_it_is_told_in_numbers():
    found = contamination(*drawn(40, 700, 300, 0))
    said = f"About {100 * found.share:.0f} % of the unlabeled photos, at least {100 * found.at_least:.0f} %"
    assert said in found.told()
    assert json.loads(json.dumps(found.to_dict()))["n_unlabeled"] == 1000


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        contamination([0.0, np.nan], [1.0])
    with pytest.raises(ValueError, match="level"):
        contamination([0.0, 1.0], [1.0], level=1.0)


@pytest.mark.parametrize(("n", "total"), [(12, 1), (24, 2), (40, 2), (200, 8), (1000, 10), (40, 300)])
def test_the_level_holds_for_few_unlabeled_photos_too(n, total):
    found = [contamination(*drawn(n, total, 0, seed)).found for seed in range(600)]
    assert np.mean(found) <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5


def test_the_fewest_others_are_those_of_the_law():
    rank, n, level = 2, 39, 0.95
    for above, total in ((12, 50), (20, 50), (50, 50), (130, 1000)):
        fewest = fewest_others(above, total, rank, n, level)
        assert 0 < fewest <= above

        def so_many(others, above=above, total=total):
            draw = np.random.default_rng(0)
            shares = draw.beta(rank, n + 1 - rank, 40_000)
            return (others + draw.binomial(total - others, shares) >= above).mean()

        assert so_many(fewest) > 0.05 - 0.004
        assert so_many(fewest - 1) < 0.05 + 0.004
    assert fewest_others(4, 50, rank, n, level) == 0


def test_numbers_in_closed_form():
    from scipy.special import betaincinv

    left_out, scores = np.arange(39.0), np.r_[np.zeros(90), np.full(10, 100.0)]
    found = contamination(left_out, scores)
    assert found.threshold == 37.0  # the second largest of 39
    assert found.flagged == pytest.approx(0.1)
    assert found.by_chance == pytest.approx((2 / 40, float(betaincinv(2, 38, 0.95))))
    assert found.share == pytest.approx((0.1 - 0.05) / 0.95)
    every = contamination(left_out, np.full(200, 100.0))
    assert every.share == pytest.approx(1.0)
    assert every.at_least > 0.98


def test_a_tie_with_the_threshold_is_not_odd():
    left_out = np.arange(39.0)
    scores = np.r_[np.full(30, 37.0), np.full(60, 100.0)]
    found = contamination(left_out, scores)
    assert found.found
    assert not found.odd(scores)[:30].any()
    assert found.odd(scores)[30:].all()
    assert found.flagged == pytest.approx(60 / 90)
