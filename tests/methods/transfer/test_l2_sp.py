import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.methods.small import batches_of, run, small
from wazuka.contract import Optimizer
from wazuka.methods.transfer.l2_sp import L2SP, L2SPSettings, half_square_distance
from wazuka.parts.tuning import Tuning


def pulled(**changes: object) -> L2SP:
    method = small("l2_sp", changes=changes)
    assert isinstance(method, L2SP)
    return method


def moved(method: L2SP) -> L2SP:
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def test_the_distance_is_half_the_square_norm_and_no_gradient_flows_into_the_start() -> None:
    weights = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    starts = [torch.tensor([1.0, 0.0], requires_grad=True), torch.tensor([[0.0]], requires_grad=True)]
    distance = half_square_distance(weights, starts)
    assert float(distance.detach()) == (4 + 9) / 2
    distance.backward()
    for weight, start in zip(weights, starts, strict=True):
        assert torch.equal(weight.grad, weight.detach() - start.detach())  # type: ignore[arg-type]
        assert start.grad is None


def test_at_the_first_step_the_encoder_is_pulled_nowhere() -> None:
    method = pulled(tuning=Tuning(head="normal"))
    total, parts = method.loss(batches_of(method)(0), 0.0)
    assert parts["distance"] == 0
    assert parts["head"] > 0
    torch.testing.assert_close(total.detach(), parts["supervised"] + 0.01 * parts["head"])


@pytest.mark.parametrize("everything", [False, True])
def test_the_gradient_is_that_of_the_labels_and_the_two_pulls(everything: bool) -> None:
    method = pulled(tuning=Tuning(head="normal"), everything=everything, start_weight=0.7, head_weight=0.3)
    start = {name: p.detach().clone() for name, p in method.net.named_parameters()}
    batch = batches_of(moved(method))(0)
    names, parameters = zip(*method.net.named_parameters(), strict=True)
    total = torch.autograd.grad(method.loss(batch, 0.0)[0], parameters)
    labels = torch.autograd.grad(F.cross_entropy(method.net(batch.images), batch.labels), parameters)
    for name, parameter, whole, own in zip(names, parameters, total, labels, strict=True):
        w, held = parameter.detach(), everything or parameter.ndim > 1
        pull = 0.3 * w if "head" in name else 0.7 * (w - start[name])
        torch.testing.assert_close(whole - own, pull * held, atol=1e-6, rtol=1e-4)


def test_a_strong_pull_keeps_the_encoder_where_it_was_and_leaves_the_head_free() -> None:
    def farthest(start_weight: float) -> tuple[float, float]:
        rule = Optimizer(lr=5e-4, nesterov=False)
        method = pulled(
            optimizer=rule, start_weight=start_weight, everything=True, tuning=Tuning(head="normal", head_rate=200.0)
        )
        before = copy.deepcopy(method.net)
        run(method, steps=40)
        encoder, head = method.net.encoder_parameters(), method.net.head_parameters()
        starts = before.encoder_parameters()
        far = max(float((p - q).detach().abs().max()) for p, q in zip(encoder, starts, strict=True))
        return far, float((head[0] - before.head_parameters()[0]).abs().max().detach())

    held, learned = farthest(1e3)
    free, _ = farthest(0.0)
    assert held < 1e-3 < free
    assert learned > 0.1


def test_a_resumed_run_is_pulled_to_where_the_first_one_began() -> None:
    first = pulled()
    start = [p.detach().clone() for p in first.net.encoder_parameters() if p.ndim > 1]
    run(first)
    other = moved(pulled())
    other.load_state_dict(first.state_dict())
    for kept, was in zip(other.start(), start, strict=True):
        assert torch.equal(kept, was)


def test_the_start_is_no_part_of_the_network() -> None:
    method = pulled()
    assert isinstance(method.net.net, nn.Module)
    assert not any("start" in name for name, _ in method.net.named_buffers())
    before = [value.clone() for value in method.start()]
    run(method)
    assert all(torch.equal(a, b) for a, b in zip(method.start(), before, strict=True))


def test_decay_of_the_optimizers_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_decay must be 0"):
        L2SPSettings(optimizer=Optimizer(lr=0.1, weight_decay=1e-4))
    for wrong in ({"start_weight": -1.0}, {"head_weight": -1.0}, {"view": "odd"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            L2SPSettings(**wrong)  # type: ignore[arg-type]
