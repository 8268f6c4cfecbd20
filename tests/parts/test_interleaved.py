import pytest
import torch
from torch import Tensor, nn

from wazuka.functional.interleave import interleaving
from wazuka.parts.interleaved import aside, interleaved


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.5), nn.Tanh(), nn.Linear(4, 2))


def by_hand(net: nn.Sequential, rows: Tensor) -> Tensor:
    """Normalized by these rows and nothing else."""
    x = net[0](rows)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    return net[3](x.tanh())


@pytest.mark.parametrize("remembered", [0, 2])
def test_each_pass_is_normalized_by_itself_and_one_is_remembered(remembered: int) -> None:
    net, images = a_net(), torch.randn(14, 3, generator=torch.Generator().manual_seed(1))
    parts = interleaving(4, 14, 3).tensor_split(3)
    expected = torch.empty(14, 2)
    for part in parts:
        expected[part] = by_hand(net, images[part])
    found = interleaved(net, images, labeled=4, batches=3, remembered=remembered)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net[1].running_mean, 0.5 * net[0](images[parts[remembered]]).mean(0).detach())


def test_outputs_come_in_the_order_of_the_images_and_all_learn() -> None:
    net = nn.Linear(3, 2)
    images = torch.randn(14, 3, requires_grad=True)
    found = interleaved(net, images, labeled=4, batches=3, remembered=0)
    torch.testing.assert_close(found, net(images))
    gradient = torch.autograd.grad(found.sum(), images)[0]
    torch.testing.assert_close(gradient, net.weight.sum(0).expand(14, 3))


def test_a_pass_aside_is_forgotten() -> None:
    net, images = a_net(), torch.randn(6, 3)
    for learning in (False, True):
        logits = aside(net, images, learning)
        assert logits.requires_grad is learning
        torch.testing.assert_close(logits, by_hand(net, images), atol=1e-5, rtol=1e-4)
    assert net[1].running_mean.eq(0).all()
    assert net[1].running_var.eq(1).all()
    assert net[1].momentum == 0.5


def test_a_pass_without_gradient_leaves_no_weights_behind_under_autocast() -> None:
    net, images = nn.Linear(3, 2), torch.randn(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        aside(net, images, learning=False)
        net(images).sum().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.abs().max() > 0
