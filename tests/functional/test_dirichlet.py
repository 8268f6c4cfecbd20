import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Dirichlet, kl_divergence

from wazuka.functional.dirichlet import (
    BOUND,
    differential_entropy,
    dirichlet_information,
    dirichlet_kl,
    evidence,
    expected_log_prob,
)


def logits(n: int = 50, classes: int = 7, scale: float = 2.0) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale


def test_divergence_is_torchs() -> None:
    ours, target = logits(), logits().flip(0)
    expected = kl_divergence(Dirichlet(ours.exp()), Dirichlet(target.exp()))
    torch.testing.assert_close(dirichlet_kl(ours, target), expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(dirichlet_kl(ours, target[0]), dirichlet_kl(ours, target[:1].expand(50, 7)))
    assert dirichlet_kl(ours, ours).abs().max() < 1e-10
    assert (dirichlet_kl(ours, torch.zeros_like(ours)) > 0).all(), "its constant is log Gamma(K) short"


def test_expected_log_prob_is_what_draws_say() -> None:
    torch.manual_seed(0)
    given, labels = logits(3, 4, 1.0), torch.tensor([0, 3, 1])
    draws = Dirichlet(given.exp()).sample((200_000,)).log()
    expected = draws.gather(2, labels.expand(200_000, 3)[..., None])[..., 0].mean(0)
    torch.testing.assert_close(expected_log_prob(given, labels), expected, rtol=0.01, atol=0)


def test_entropy_and_information_are_those_of_the_distribution() -> None:
    torch.manual_seed(0)
    given = logits(4, 3, 1.0)
    dirichlet = Dirichlet(given.exp())
    torch.testing.assert_close(differential_entropy(given), dirichlet.entropy())
    drawn = Categorical(probs=dirichlet.sample((200_000,))).entropy().mean(0)
    total = Categorical(probs=given.softmax(1)).entropy()
    torch.testing.assert_close(dirichlet_information(given), total - drawn, rtol=0.02, atol=2e-3)
    torch.testing.assert_close(evidence(given).exp(), given.exp().sum(1))


def test_much_evidence_leaves_nothing_to_learn() -> None:
    some = torch.log(torch.tensor([[1.0, 2, 3], [100, 200, 300], [1e5, 2e5, 3e5]], dtype=torch.float64))
    left = dirichlet_information(some)
    assert (left.diff() < 0).all()
    assert 0 < left[-1] < 1e-5
    assert (differential_entropy(some).diff() < 0).all()
    assert (evidence(some).diff() > 0).all()
    flat = torch.zeros(1, 3, dtype=torch.float64)
    assert differential_entropy(flat) == pytest.approx(-math.log(2))  # uniform over a simplex of volume 1 / 2!


def test_float32_logits_are_not_computed_with_in_float32() -> None:
    large = torch.tensor([[9.0, 9.5, 8.0]])
    exact = kl_divergence(Dirichlet(large.double().exp()), Dirichlet(torch.ones(1, 3, dtype=torch.float64)))
    torch.testing.assert_close(dirichlet_kl(large, torch.zeros(3)), exact)
    for score in (differential_entropy, dirichlet_information, evidence):
        assert score(large).dtype == torch.float32
        assert score(large.bfloat16().float()).isfinite().all()


@pytest.mark.parametrize("far", [20.0, 90.0, 1000.0])
def test_logits_beyond_any_exponential_are_finite_and_pulled_back(far: float) -> None:
    given = torch.tensor([[far, 0.0, -1.0], [0.0, -far, 1.0]], requires_grad=True)
    divergence = dirichlet_kl(given, torch.zeros(3))
    assert divergence.isfinite().all()
    (slope,) = torch.autograd.grad(divergence.sum(), given)
    assert slope.isfinite().all()
    assert slope[0, 0] > 0, "a logit too large must fall"
    assert slope[1, 1] < 0, "a logit too small must rise"
    edge = given.detach().clamp(-BOUND, BOUND).requires_grad_()
    (at_the_bound,) = torch.autograd.grad(dirichlet_kl(edge, torch.zeros(3)).sum(), edge)
    torch.testing.assert_close(slope, at_the_bound)
