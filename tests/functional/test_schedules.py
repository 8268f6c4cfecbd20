import math

import pytest

from wazuka.functional import schedules


def test_cosine_7_16_ends_at_its_published_value() -> None:
    assert schedules.cosine_7_16(0) == 1
    assert schedules.cosine_7_16(1) == pytest.approx(0.19509, abs=1e-5)


def test_cosine_runs_from_one_to_zero() -> None:
    assert schedules.cosine(0) == 1
    assert schedules.cosine(0.5) == pytest.approx(0.5)
    assert schedules.cosine(1) == pytest.approx(0)


def test_annealed_follows_dann() -> None:
    assert schedules.annealed(0) == 1
    assert schedules.annealed(1) == pytest.approx(11**-0.75)


def test_halving_steps_down() -> None:
    halved = schedules.halving(2)
    assert [halved(p) for p in (0, 0.49, 0.5, 0.99, 1)] == [1, 1, 0.5, 0.5, 0.25]
    with pytest.raises(ValueError, match="negative"):
        schedules.halving(-1)


def test_falling_is_a_straight_line() -> None:
    assert [schedules.falling(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]


def test_a_staircase_drops_to_a_tenth_at_its_shares() -> None:
    stairs = schedules.staircase(1 / 3, 2 / 3)
    assert [stairs(step / 9) for step in (0, 2, 3, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert schedules.staircase()(0.99) == 1
    for wrong in (0, 1, 1.5):
        with pytest.raises(ValueError, match="shares of the run"):
            schedules.staircase(wrong)


def test_the_slanted_triangle_follows_ulmfit() -> None:
    """Eq. 3 by its own words, with T = 200, cut_frac = 0.1, ratio = 32."""
    slanted, cut = schedules.slanted_triangle(), 20
    for step in range(201):
        height = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / 0.1 - 1))
        assert slanted(step / 200) == pytest.approx((1 + height * 31) / 32)
    assert slanted(0) == slanted(1) == pytest.approx(1 / 32)
    assert slanted(0.1) == 1
    with pytest.raises(ValueError, match="cut must lie"):
        schedules.slanted_triangle(cut=0)
    with pytest.raises(ValueError, match="ratio be at least 1"):
        schedules.slanted_triangle(ratio=0.5)


def test_the_hyperrule_of_bit() -> None:
    """Learning rates of 0.003, as bit_hyperrule.py's get_lr gives them for 1,000 images."""
    ends = [schedules.bit_steps(images)[-1] for images in (1, 19_999, 20_000, 499_999, 500_000)]
    assert ends == [500, 500, 10_000, 10_000, 20_000]
    rate = schedules.bit_hyperrule(1000)
    expected = {0: 0, 50: 0.0015, 99: 0.00297, 100: 0.003, 200: 0.003, 201: 3e-4, 300: 3e-4, 301: 3e-5, 400: 3e-5,
                401: 3e-6, 499: 3e-6}  # fmt: skip
    for step, value in expected.items():
        assert 0.003 * rate(step / 500) == pytest.approx(value), step
    middle, large = schedules.bit_hyperrule(50_000), schedules.bit_hyperrule(10**6)
    assert [middle(step / 10_000) for step in (250, 500, 3000, 3001, 6001, 9001)] == pytest.approx(
        [0.5, 1, 1, 0.1, 0.01, 0.001]
    )
    assert [large(step / 20_000) for step in (250, 500, 6000, 6001, 12_001, 18_001)] == pytest.approx(
        [0.5, 1, 1, 0.1, 0.01, 0.001]
    )


def test_sigmoid_ramp_starts_at_zero() -> None:
    assert schedules.sigmoid_ramp(0) == 0
    assert schedules.sigmoid_ramp(1) == pytest.approx(2 / (1 + math.exp(-10)) - 1)


def test_ramps_reach_one_and_stay() -> None:
    assert schedules.gaussian_ramp(0, 0.4) == pytest.approx(math.exp(-5))
    assert schedules.gaussian_ramp(0.4, 0.4) == schedules.gaussian_ramp(1, 0.4) == 1
    assert schedules.linear_ramp(0.1, 0.4) == pytest.approx(0.25)
    assert schedules.linear_ramp(0.4, 0.4) == schedules.linear_ramp(0.0, 0.0) == 1


def test_it_rises_for_a_fifth_of_the_run_and_falls_for_the_rest() -> None:
    assert [schedules.rise_and_fall(p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_a_staircase_of_another_factor() -> None:
    fifths = schedules.staircase(0.25, 0.5, factor=0.2)
    assert [fifths(p) for p in (0, 0.25, 0.5)] == pytest.approx([1, 0.2, 0.04])
    with pytest.raises(ValueError, match="factor"):
        schedules.staircase(0.5, factor=0)


def test_belief_matchings_warm_up() -> None:
    """cifar_trainer.py: 200 passes at 0.1, the first at 0.01, passes 1 to 5 at 0.02 times their number, drops at 100
    and 150.
    """
    rate = schedules.warmed_up(schedules.staircase(0.5, 0.75), passes=200)
    found = [0.1 * rate(done / 200) for done in (0, 0.99, 1, 2, 5, 6, 99, 100, 150)]
    assert found == pytest.approx([0.01, 0.01, 0.02, 0.04, 0.1, 0.1, 0.1, 0.01, 0.001])
    with pytest.raises(ValueError, match="passes"):
        schedules.warmed_up(schedules.cosine, passes=5)
