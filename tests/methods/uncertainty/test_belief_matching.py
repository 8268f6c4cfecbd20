import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from tests.methods.small import Perceptron
from wazuka.contract import Batch
from wazuka.functional.dirichlet import dirichlet_kl
from wazuka.methods.uncertainty.belief_matching import (
    BeliefMatching,
    BeliefMatchingSettings,
    attainable_confidence,
    belief_matching_loss,
    coefficient_for,
)
from wazuka.nets import ConvNet


def least(labels: Tensor, classes: int, prior: float, coefficient: float) -> Tensor:
    """The concentrations (K,) at which the mean loss over these labels is least."""
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=400, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = belief_matching_loss(logits.expand(len(labels), classes), labels, prior, coefficient).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().exp()[0]


def test_loss_is_the_negated_bound() -> None:
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(9) % 5
    posterior = Dirichlet(logits.exp())
    likelihood = (logits.exp().digamma() - logits.exp().sum(1, keepdim=True).digamma()).gather(1, labels[:, None])[:, 0]
    for prior, coefficient in ((1.0, 0.1), (0.3, 2.0)):
        divergence = kl_divergence(posterior, Dirichlet(torch.full_like(logits, prior)))
        found = belief_matching_loss(logits, labels, prior, coefficient)
        torch.testing.assert_close(found, coefficient * divergence - likelihood, atol=1e-10, rtol=1e-10)
        assert (found > 0).all()


def test_the_least_loss_is_prior_plus_counts_over_lambda() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    expected = torch.tensor([76.0, 26, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(least(labels, 5, prior=1.0, coefficient=0.01), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        least(labels, 5, prior=0.5, coefficient=0.1),
        torch.tensor([8.0, 3, 0.5, 0.5, 0.5], dtype=torch.float64), rtol=1e-5, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "coefficient", "cap"), [(10, 0.01, 0.918), (10, 0.001, 0.991), (100, 0.003, 0.771), (10, 0.1, 0.550)]
)
def test_the_attainable_confidence(classes: int, coefficient: float, cap: float) -> None:
    assert attainable_confidence(classes, 1.0, coefficient) == pytest.approx(cap, abs=2e-3)
    concentrations = least(torch.tensor([2]), classes, 1.0, coefficient)
    reached = float(concentrations[2] / concentrations.sum())
    assert attainable_confidence(classes, 1.0, coefficient) == pytest.approx(reached, abs=1e-6)
    for prior in (0.5, 1.0):
        back = coefficient_for(attainable_confidence(classes, prior, coefficient), classes, prior)
        assert back == pytest.approx(coefficient)
    with pytest.raises(ValueError, match="confidence"):
        coefficient_for(0.9 / classes, classes, 1.0)


def test_at_zero_logits() -> None:
    logits = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    ten, one = torch.tensor([10.0, 1.0], dtype=torch.float64).digamma()
    for coefficient in (0.001, 1.0):
        loss = belief_matching_loss(logits, torch.tensor([4]), 1.0, coefficient)
        assert loss.item() == pytest.approx(float(ten - one)) == pytest.approx(2.8290, abs=1e-4)
        (slope,) = torch.autograd.grad(loss, logits)  # of the divergence: none, where it is least
        expected = torch.full((1, 10), 0.1052, dtype=torch.float64)
        expected[0, 4] = -1.5398
        torch.testing.assert_close(slope, expected, atol=1e-4, rtol=0)


def test_ranges_that_a_network_can_reach() -> None:
    for value in (0.0, 40.0, -40.0, 120.0, -120.0):
        logits = torch.full((2, 3), value, requires_grad=True)
        loss = belief_matching_loss(logits, torch.tensor([0, 2]), 1.0, 0.01)
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


def net(classes: int = 4) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(1, classes, (8,), momentum=0.1)


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    images, first, second = (torch.rand(n, 1, 8, 8, generator=draw) for n in (8, 6, 6))
    return Batch(images=images, labels=torch.arange(8) % 4, first=first, second=second)


def test_lambda_shrinks_as_classes_grow() -> None:
    few, many = (BeliefMatching(net(classes), classes).coefficient for classes in (4, 40))
    assert many < few / 10
    for classes, coefficient in ((4, few), (40, many)):
        assert attainable_confidence(classes, 1.0, coefficient) == pytest.approx(0.99)
    assert BeliefMatching(net(), 4, BeliefMatchingSettings(coefficient=0.5)).coefficient == 0.5


def test_it_starts_as_sure_as_its_prior() -> None:
    method = BeliefMatching(net(), 4, BeliefMatchingSettings(prior=3.0))
    torch.testing.assert_close(method.net.head.bias.detach(), torch.full((4,), math.log(3)))
    method = BeliefMatching(net(), 4)
    assert method.net.head.bias.eq(0).all()


def test_loss_and_answers_of_the_network() -> None:
    method, batch = BeliefMatching(net(), 4, BeliefMatchingSettings(coefficient=0.02)).train(), a_batch()
    total, _ = method.loss(batch, 0.5)
    logits = method.net(batch.images)
    torch.testing.assert_close(total, belief_matching_loss(logits, batch.labels, 1.0, 0.02).mean())
    method.eval()
    seen = method.observe(batch.images)
    torch.testing.assert_close(method.predict(batch.images), F.softmax(seen.logits, dim=1))
    assert seen.head is method.net.head


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.4, 1.0])
def test_unlabeled_images_agree_with_a_fixed_second_view(progress: float) -> None:
    torch.manual_seed(0)
    rows = Perceptron()  # no batch norm: passes may be compared one by one
    method = BeliefMatching(rows, 4, BeliefMatchingSettings(unlabeled=True, consistency_weight=0.7)).train()
    batch = a_batch()
    first, second = batch.first.requires_grad_(), batch.second.requires_grad_()
    total, _ = method.loss(batch, progress)
    supervised = belief_matching_loss(rows(batch.images), batch.labels, 1.0, method.coefficient).mean()
    divergence = dirichlet_kl(rows(first), rows(second).detach()).mean().float()
    ramp = math.exp(-5 * (1 - min(progress / 0.4, 1)) ** 2)
    torch.testing.assert_close(total, supervised + 0.7 * ramp * divergence)
    moved, fixed = torch.autograd.grad(total, [first, second], allow_unused=True)
    assert moved.abs().sum() > 0
    assert fixed is None


def test_the_second_view_leaves_batch_norm_alone() -> None:
    method, batch = BeliefMatching(net(), 4, BeliefMatchingSettings(unlabeled=True)).train(), a_batch()
    method.loss(batch, 0.5)
    twin = net().train()
    twin(torch.cat([batch.images, batch.first]))
    for ours, theirs in zip(method.net.buffers(), twin.buffers(), strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs)


def on_digits(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """NLL and mean confidence on 1,647 digits, learned from 150 with this loss."""
    digits = load_digits()
    images, labels = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    known, new = order[:150], order[150:]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss(net(images[known]), labels[known]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = net(images[new])
    return float(F.cross_entropy(logits, labels[new])), float(logits.softmax(dim=1).amax(dim=1).mean())


def test_on_few_digits_its_answers_are_worth_more_than_softmaxs_where_lambda_suits() -> None:
    softmax, _ = on_digits(F.cross_entropy)
    suited, _ = on_digits(lambda logits, labels: belief_matching_loss(logits, labels, 1.0, 0.001).mean())
    modest, confidence = on_digits(lambda logits, labels: belief_matching_loss(logits, labels, 1.0, 0.1).mean())
    assert suited < 0.9 * softmax
    assert modest > 1.5 * softmax
    assert confidence < attainable_confidence(10, 1.0, 0.1)


@pytest.mark.parametrize(
    "wrong", [{"prior": 0.0}, {"coefficient": 0.0}, {"target_confidence": 1.0}, {"consistency_weight": -1.0},
              {"ramp": 0.0}, {"labeled_batch": 0}, {"view": "odd"}],
)  # fmt: skip
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BeliefMatchingSettings(**wrong)
