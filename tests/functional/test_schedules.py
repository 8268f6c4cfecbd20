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
