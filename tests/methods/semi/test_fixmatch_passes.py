"""The four ways to run FixMatch's passes: which images meet in batch norm, and which get a backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.contract import Batch
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.nets import ConvNet

WAYS = [{}, {"frugal": True}, {"joint": False}, {"joint": False, "frugal": True}]


def small_method(norm: bool = True, **settings) -> FixMatch:
    torch.manual_seed(0)
    if norm:
        net: nn.Module = ConvNet(widths=(4, 8), momentum=0.1)
    else:
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 10))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    return FixMatch(net, 10, FixMatchSettings(labeled_batch=4, unlabeled_ratio=3, **settings)).double()


def small_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64)  # noqa: E731
    return Batch(images=draw(4), labels=torch.arange(4), weak=draw(12), strong=draw(12))


def gradient(method: FixMatch, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    total, parts = method.loss(batch, 0.0)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(method.net.parameters()))]), parts


def middle_threshold(batch: Batch, **settings) -> float:
    """One that about half of the guesses pass."""
    method = small_method(**settings)
    return method.net(batch.weak).softmax(dim=1).amax(dim=1).median().item()


@pytest.mark.parametrize("way", WAYS[1:])
def test_without_batch_norm_all_ways_are_one(way):
    batch = small_batch()
    threshold = middle_threshold(batch, norm=False)
    exact, parts = gradient(small_method(norm=False, threshold=threshold), batch)
    assert 0 < parts["used"] < 1
    other, other_parts = gradient(small_method(norm=False, threshold=threshold, **way), batch)
    torch.testing.assert_close(other, exact)
    torch.testing.assert_close(other_parts, parts)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.1])
def test_frugal_changes_the_backward_pass_alone(joint, threshold):
    batch = small_batch()
    exact, frugal = (small_method(joint=joint, frugal=f, threshold=threshold) for f in (False, True))
    expected, parts = gradient(exact, batch)
    estimate, frugal_parts = gradient(frugal, batch)
    torch.testing.assert_close(frugal_parts, parts)
    for (name, mine), theirs in zip(frugal.net.named_buffers(), exact.net.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    assert F.cosine_similarity(expected, estimate, dim=0) > 0.8


def test_apart_with_every_guess_used_frugal_is_exact():
    batch = small_batch()
    exact, _ = gradient(small_method(joint=False, threshold=0.0), batch)
    frugal, parts = gradient(small_method(joint=False, frugal=True, threshold=0.0), batch)
    assert parts["used"] == 1
    torch.testing.assert_close(frugal, exact)


@pytest.mark.parametrize("way", WAYS)
def test_weak_views_get_no_gradient_from_their_own_guess(way):
    batch = small_batch()
    batch.weak.requires_grad_()
    method = small_method(norm=False, threshold=0.0, **way)
    total, _ = method.loss(batch, 0.0)
    total.backward()
    assert batch.weak.grad is None or batch.weak.grad.abs().max() == 0


@pytest.mark.parametrize("way", WAYS)
def test_running_statistics_are_those_of_the_images_that_met_once(way):
    method, batch = small_method(**way), small_batch()
    method.loss(batch, 0.0)
    met = [batch.images, batch.strong] + ([batch.weak] if way.get("joint", True) else [])
    expected = small_method()
    expected.net(torch.cat(met))
    for (name, mine), theirs in zip(method.net.named_buffers(), expected.net.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(mine, theirs, msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_agrees_and_every_weight_learns(way):
    batch, method = small_batch(), small_method(threshold=0.0, **way).float()
    single = Batch(**{name: v.float() if v.is_floating_point() else v for name, v in vars(batch).items()})
    expected, _ = gradient(method, single)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = gradient(method, single)
    assert F.cosine_similarity(expected, rounded, dim=0) > 0.98
