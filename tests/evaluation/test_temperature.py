import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from wazuka.evaluation.temperature import SHARPEST, SOFTEST, apply_temperature, fit_temperature


def drawn(n: int, sharpness: float = 1.0, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities, and labels that come true as often as softmax(sharpness * logs) says."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (n, classes))
    noise = generator.gumbel(size=(n, classes))
    return np.asarray(torch.tensor(logits).log_softmax(dim=1)), (sharpness * logits + noise).argmax(axis=1)


def nll(logs: np.ndarray, labels: np.ndarray, sharpness: float) -> float:
    return float(-torch.tensor(sharpness * logs).log_softmax(dim=1)[torch.arange(len(labels)), labels].sum())


def test_it_is_the_minimum_of_the_likelihood_and_the_prior():
    logs, labels = drawn(60, sharpness=0.4)
    for prior in (0.0, 1.0, 7.0):
        found = minimize_scalar(
            lambda b, prior=prior: nll(logs, labels, b) + prior * (b - math.log(b)),
            bounds=(1e-2, 10),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert fit_temperature(logs, labels, prior) == pytest.approx(1 / found.x, rel=1e-5)


def test_without_a_prior_the_expected_and_the_true_logit_agree():
    logs, labels = drawn(300, sharpness=0.5)
    temperature = fit_temperature(logs, labels, prior=0)
    probs = apply_temperature(np.exp(logs), temperature)
    assert (probs * logs).sum(axis=1).mean() == pytest.approx(logs[np.arange(300), labels].mean(), abs=1e-9)
    assert fit_temperature(7 * logs, labels, prior=0) == pytest.approx(7 * temperature)
    assert fit_temperature(logs + 5, labels, prior=0) == pytest.approx(temperature)  # logits do as well
    assert fit_temperature(torch.tensor(logs), torch.tensor(labels), prior=0) == temperature


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 2.0])
def test_it_finds_the_temperature_that_labels_were_drawn_at(sharpness):
    logs, labels = drawn(20_000, sharpness)
    for prior in (0.0, 1.0):  # which has faded
        assert fit_temperature(logs, labels, prior) == pytest.approx(1 / sharpness, rel=0.05)


def test_a_few_perfect_answers_are_no_reason_for_certainty():
    probs = np.array([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 0, 1, 1])
    assert fit_temperature(np.log(probs), labels, prior=0) == SHARPEST
    gentle = fit_temperature(np.log(probs), labels, 1.0)
    assert 0.4 < gentle < 1
    assert apply_temperature(probs, gentle).max() < 0.8
    many = fit_temperature(np.log(np.tile(probs, (50, 1))), np.tile(labels, 50), 1.0)
    assert many < gentle / 3
    assert gentle < fit_temperature(np.log(probs), labels, 10.0) < 1


def test_a_few_wrong_answers_soften():
    logs, labels = np.log([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]), np.array([1, 1, 0, 0])
    assert fit_temperature(logs, labels, prior=0) == SOFTEST
    assert 2 < fit_temperature(logs, labels, prior=1) < 100


def test_nothing_to_go_by_leaves_it_alone():
    assert fit_temperature(np.empty((0, 3)), np.empty(0, int), 1.0) == pytest.approx(1)
    assert fit_temperature(np.log(np.full((9, 3), 1 / 3)), np.arange(9) % 3, 1.0) == pytest.approx(1)


def test_a_probability_that_rounded_to_zero_is_no_infinity():
    with np.errstate(divide="ignore"):
        logs = np.log([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert 1 < fit_temperature(logs, [0, 1, 1], 1.0) < 500


def test_applied_it_changes_no_answer():
    probs = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)).double().softmax(dim=1)
    torch.testing.assert_close(torch.tensor(apply_temperature(probs, 1.0)), probs)
    for temperature in (0.05, 3.0):
        changed = apply_temperature(probs, temperature)
        np.testing.assert_allclose(changed.sum(axis=1), 1)
        assert (changed.argmax(axis=1) == probs.argmax(dim=1).numpy()).all()
        np.testing.assert_allclose(changed, (probs.log() / temperature).softmax(dim=1))
        np.testing.assert_allclose(apply_temperature(changed, 1 / temperature), probs)
    assert apply_temperature([0.5, 0.5, 0.0], 100.0).tolist() == [0.5, 0.5, 0.0]
    assert apply_temperature([0.6, 0.4], 1e-6).tolist() == [1.0, 0.0]


def test_nonsense_is_refused():
    logs, labels = drawn(5)
    with pytest.raises(ValueError, match="prior"):
        fit_temperature(logs, labels, -1.0)
    with pytest.raises(ValueError, match="without labels"):
        fit_temperature(np.empty((0, 3)), np.empty(0, int), 0)
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        fit_temperature(logs, labels[:3])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
        fit_temperature(logs, labels + 9)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN"):
            fit_temperature(np.where(np.eye(5, 4), bad, logs), labels)
    for temperature in (0.0, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            apply_temperature(np.exp(logs), temperature)
