"""What FixMatch's own tests do not see: judges that weigh. See tests/methods/semi/test_fixmatch_passes.py."""

import copy

import pytest
import torch
from torch import Tensor, nn

from wazuka.contract import Batch
from wazuka.nets import ConvNet
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.passes import weak_to_strong

WAYS = [(joint, frugal) for joint in (True, False) for frugal in (False, True)]
WEIGHTS = torch.tensor([0.0, 0.5, 0.0, 1.0, 0.25, 0.0])
every_way = pytest.mark.parametrize(("joint", "frugal"), WAYS)


def a_net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(widths=(4, 8), momentum=0.1).train()


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images, weak, strong = (torch.rand(n, 1, 8, 8, generator=generator) for n in (4, 6, 6))
    return Batch(images=images, weak=weak, strong=strong)


class Judge:
    def __init__(self) -> None:
        self.calls: list[Tensor] = []

    def __call__(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        assert not weak.requires_grad
        self.calls.append(weak)
        return weak.softmax(dim=1), WEIGHTS


@every_way
def test_rows_stay_with_their_image(joint: bool, frugal: bool) -> None:
    net, batch, judge = a_net(), a_batch(), Judge()
    twin = copy.deepcopy(net)
    seen = weak_to_strong(net, batch, judge, joint=joint, frugal=frugal, average=None)
    assert len(judge.calls) == 1
    met = torch.cat([batch.images, batch.strong, *([batch.weak] if joint else [])])
    logits = twin(met)
    weak = logits[10:] if joint else copy.deepcopy(twin)(batch.weak)
    torch.testing.assert_close(judge.calls[0], weak.detach())
    torch.testing.assert_close(seen.labeled, logits[:4])
    order = [1, 3, 4, 0, 2, 5] if frugal and not joint else list(range(6))
    torch.testing.assert_close(seen.strong, logits[4:10][order])
    torch.testing.assert_close(seen.guesses, weak.detach().softmax(dim=1)[order])
    assert torch.equal(seen.weights, WEIGHTS[order])
    for (name, mine), theirs in zip(net.named_buffers(), twin.buffers(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(mine, theirs, msg=name)


@every_way
def test_only_frugal_keeps_gradients_from_images_without_a_loss(joint: bool, frugal: bool) -> None:
    batch = a_batch()
    batch.weak.requires_grad_()
    batch.strong.requires_grad_()
    seen = weak_to_strong(a_net(), batch, Judge(), joint=joint, frugal=frugal, average=None)
    (seen.labeled.square().sum() + seen.strong[seen.weights > 0].square().sum()).backward()
    assert batch.strong.grad[WEIGHTS > 0].abs().amax(dim=(1, 2, 3)).gt(0).all()
    # batch norm ties the images of a pass to each other; an onlooker is tied to nobody
    assert bool(batch.strong.grad[WEIGHTS == 0].abs().max() > 0) == (joint or not frugal)
    weak = batch.weak.grad
    assert bool(weak is not None and weak.abs().max() > 0) == (joint and not frugal)


@pytest.mark.parametrize("joint", [True, False])
def test_averaged_weights_guess_alone(joint: bool) -> None:
    net, batch, judge = a_net(), a_batch(), Judge()
    average = AveragedWeights(net, 0.9)
    with torch.no_grad():
        net.head.weight.neg_()
        expected = average(batch.weak)
    twin = copy.deepcopy(net)
    seen = weak_to_strong(net, batch, judge, joint=joint, frugal=False, average=average)
    torch.testing.assert_close(judge.calls[0], expected)
    torch.testing.assert_close(seen.strong, twin(torch.cat([batch.images, batch.strong]))[4:])


@pytest.mark.parametrize("average", [True, False])
def test_no_trace_of_the_look_at_weak_views_in_autocast(average: bool) -> None:
    """Weights that were cast without a gradient must not be kept for the pass that learns."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.autocast("cpu", torch.bfloat16):
        seen = weak_to_strong(
            net, a_batch(), lambda weak: (weak, WEIGHTS), joint=False, frugal=False,
            average=AveragedWeights(net, 0.9) if average else None,
        )  # fmt: skip
        gradients = torch.autograd.grad(seen.strong.float().sum(), list(net.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
