import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.nets import ConvNet, WideResNet
from wazuka.parts.batchnorm import frozen_statistics
from wazuka.parts.onlookers import with_onlookers


def small_net(dtype: torch.dtype = torch.float64) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(filters=4, scales=2, repeat=2, momentum=0.1).to(dtype)


def pictures(count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    scale = torch.linspace(0.2, 1, count)[:, None, None, None]  # unlike one another, so that shares matter
    return (torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def gradients(loss: torch.Tensor, net: nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


@pytest.mark.parametrize("kind", [small_net, lambda: ConvNet(channels=3, widths=(4, 8)).double()])
def test_outputs_and_running_statistics_are_those_of_one_joint_batch(kind):
    net = kind()
    joint, images = copy.deepcopy(net), pictures(9)
    expected = joint(images)
    learning, watching = with_onlookers(net, images[:4], images[4:])
    torch.testing.assert_close(torch.cat([learning, watching]), expected)
    for (name, mine), theirs in zip(net.named_buffers(), joint.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)


def test_no_gradient_flows_through_onlookers():
    learning, watching = pictures(4).requires_grad_(), pictures(5, seed=2).requires_grad_()
    logits, watched = with_onlookers(small_net(), learning, watching)
    assert not watched.requires_grad
    logits.square().sum().backward()
    assert learning.grad.abs().max() > 0
    assert watching.grad is None


def test_onlookers_that_repeat_the_learners_change_no_gradient():
    net, images, labels = small_net(), pictures(6), torch.arange(6)
    expected = gradients(F.cross_entropy(net(images), labels), net)
    beside = gradients(F.cross_entropy(with_onlookers(net, images, images.repeat(2, 1, 1, 1))[0], labels), net)
    torch.testing.assert_close(beside, expected)


def test_gradient_stays_close_to_that_of_the_joint_batch():
    net, labels = small_net(), torch.arange(32) % 10
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = gradients(F.cross_entropy(net(images)[:32], labels), net)
    estimate = gradients(F.cross_entropy(with_onlookers(net, images[:32], images[32:])[0], labels), net)
    # 0.997 here; 0.853 if statistics were constants, 0.964 with the learners' true share of their gradient alone,
    # 0.967 if the learners were normalized by themselves
    assert F.cosine_similarity(exact, estimate, dim=0) > 0.99


def test_without_onlookers_it_is_the_plain_pass():
    net, images = small_net(), pictures(5)
    expected = copy.deepcopy(net)(images)
    logits, watched = with_onlookers(net, images, images[:0])
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert watched.shape == (0, 10)


def test_in_eval_mode_running_statistics_serve_both_and_stay():
    net, images = small_net().eval(), pictures(5)
    before = copy.deepcopy(net.state_dict())
    logits, watched = with_onlookers(net, images[:2], images[2:])
    torch.testing.assert_close(torch.cat([logits, watched]), net(images))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_frozen_statistics_stay():
    net = small_net()
    before = {name: value.clone() for name, value in net.named_buffers() if "running" in name}
    with frozen_statistics(net):
        with_onlookers(net, pictures(3), pictures(4))
    assert all(torch.equal(before[name], value) for name, value in net.named_buffers() if name in before)


def test_norms_without_weights_or_memory():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, track_running_stats=False)).double()
    images = pictures(7)
    logits, watched = with_onlookers(net, images[:3], images[3:])
    torch.testing.assert_close(torch.cat([logits, watched]), net(images))
    logits.square().sum().backward()
    assert net[0].weight.grad.isfinite().all()


def test_bfloat16_agrees_with_float32_and_every_weight_learns():
    net, images, labels = small_net(torch.float32), pictures(24, dtype=torch.float32), torch.arange(12) % 10
    plain = with_onlookers(net, images[:12], images[12:])[0]
    exact = gradients(F.cross_entropy(plain, labels), net)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = with_onlookers(net, images[:12], images[12:])
    rounded = gradients(F.cross_entropy(logits, labels), net)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain, atol=0.05, rtol=0.05)
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.99


def test_channels_last_changes_nothing():
    net, images = small_net(), pictures(9)
    expected = with_onlookers(net, images[:4], images[4:])
    packed = net.to(memory_format=torch.channels_last)
    views = [x.contiguous(memory_format=torch.channels_last) for x in (images[:4], images[4:])]
    for mine, theirs in zip(with_onlookers(packed, *views), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_second_derivatives_are_refused_and_not_wrong():
    net = small_net()
    logits, _ = with_onlookers(net, pictures(3), pictures(4))
    first = torch.autograd.grad(logits.square().sum(), net.stem.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_a_layer_that_asks_for_the_batch_size_is_refused():
    class Counting(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(1, 2, 3)) / images.size(0)

    with pytest.raises(TypeError, match="of one group"):
        with_onlookers(Counting(), pictures(3), pictures(4))
