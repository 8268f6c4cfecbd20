import copy

import pytest
import torch
from torch import nn

from wazuka.contract import Optimizer
from wazuka.training import Stepper
from wazuka.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(2, 8, 30), (2, 30, 8), (1, 16, 16)])
def test_singular_values_come_out_about_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linspace(1, 0.05, values.shape[1], dtype=torch.float64).expand_as(values)
    made = orthogonalized(left @ torch.diag_embed(values) @ right)
    inner = left.mT @ made @ right.mT  # diagonal, for the iteration is an odd polynomial of the matrix
    assert (inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))).abs().max() < 1e-6
    singular = torch.linalg.svdvals(made)
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_each_matrix_of_a_stack_is_taken_for_itself() -> None:
    matrices = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    together = orthogonalized(matrices)
    for one, alone in zip(together, matrices, strict=True):
        torch.testing.assert_close(orthogonalized(1000 * alone[None])[0], one, rtol=1e-3, atol=1e-3)


def test_what_is_no_convolution_steps_as_under_adamw() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    twin = copy.deepcopy(net)
    ours = Muon(net.parameters(), lr=0.01, beta2=0.98, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)
    for _ in range(5):
        images = torch.randn(7, 5)
        for one, optimizer in ((net, ours), (twin, theirs)):
            optimizer.zero_grad()
            one(images).square().mean().backward()
            optimizer.step()
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_kernels_first_step_is_its_orthogonalized_gradient_at_adams_size() -> None:
    kernel = nn.Parameter(torch.zeros(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    kernel.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([kernel], lr=0.5).step()
    expected = -0.5 * 0.2 * 36**0.5 * orthogonalized(kernel.grad.reshape(1, 8, 36))[0]
    torch.testing.assert_close(kernel.detach().reshape(8, 36), expected, rtol=1e-3, atol=1e-4)
    assert kernel.detach().square().mean().sqrt() == pytest.approx(0.5 * 0.2, rel=0.2)  # Adam's typical step


def test_kernels_decay_by_the_learning_rate_and_vectors_do_not() -> None:
    net = nn.Conv2d(2, 3, 3)
    before = copy.deepcopy(net)
    stepper = Stepper(net, Optimizer(algorithm="muon", lr=0.1, weight_decay=0.5))
    stepper.step(0.0 * net.weight.sum() + 0.0 * net.bias.sum(), 0.0)  # type: ignore[union-attr]
    torch.testing.assert_close(net.weight, before.weight * (1 - 0.1 * 0.5))
    torch.testing.assert_close(net.bias, before.bias)


def test_its_memory_is_saved_and_restored() -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
        return net, Muon(net.parameters(), lr=0.01)

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad()
            net(torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
            optimizer.step()

    whole, first = made()
    steps(whole, first, range(6))
    cut, second = made()
    steps(cut, second, range(3))
    resumed, third = made()
    resumed.load_state_dict(cut.state_dict())
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    steps(resumed, third, range(3, 6))
    for mine, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_later_steps_look_ahead_along_the_momentum() -> None:
    """Nesterov: v <- m v + (1 - m) g, and what is orthogonalized is (1 - m) g + m v."""
    kernel, m = nn.Parameter(torch.zeros(4, 2, 3, 3)), 0.6
    optimizer = Muon([kernel], lr=1.0, momentum=m)
    first, second = torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    kernel.grad = first
    optimizer.step()
    before = kernel.detach().clone()
    kernel.grad = second
    optimizer.step()
    velocity = m * (1 - m) * first + (1 - m) * second
    ahead = (1 - m) * second + m * velocity
    expected = -0.2 * 18**0.5 * orthogonalized(ahead.reshape(1, 4, 18))[0]
    torch.testing.assert_close((kernel.detach() - before).reshape(4, 18), expected, rtol=1e-3, atol=1e-4)
