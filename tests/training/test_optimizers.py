import pytest
import torch
from torch import Tensor, nn

from wazuka.contract import Optimizer, Pace
from wazuka.training import Stepper

PULL = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # of norm 5, and the bias is pulled with 12: together 13


def moved(clip: float | None, stepper: type[Stepper] = Stepper, weight_decay: float = 0.0) -> tuple[Tensor, Tensor]:
    """How far one step of plain SGD with rate 1 moves kernel and bias of a layer that is pulled with a norm of 13."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    rule = Optimizer(lr=1.0, momentum=0.0, clip=clip, weight_decay=weight_decay)
    stepper(layer, rule).step((layer.weight * PULL).sum() + 12 * layer.bias[0], 0.0)
    return 1 - layer.weight.detach(), 1 - layer.bias.detach()


def test_a_long_gradient_is_cut_to_the_norm_of_all_parameters_together() -> None:
    weight, bias = moved(clip=1.3)  # a tenth, of kernels and vectors alike
    torch.testing.assert_close(weight, PULL / 10)
    torch.testing.assert_close(bias, torch.tensor([1.2, 0.0]))


@pytest.mark.parametrize("clip", [None, 13.1, 100.0])
def test_a_short_gradient_is_left_alone(clip: float | None) -> None:
    weight, bias = moved(clip)
    torch.testing.assert_close(weight, PULL)
    torch.testing.assert_close(bias, torch.tensor([12.0, 0.0]))


def test_processes_are_averaged_before_the_norm_is_taken() -> None:
    class Opposed(Stepper):
        """Beside a process whose gradient points the other way, of four fifths of the length."""

        def average_gradients(self) -> None:
            for parameter in self.parameters:
                assert parameter.grad is not None
                parameter.grad /= 10

    weight, _ = moved(clip=1.3, stepper=Opposed)
    torch.testing.assert_close(weight, PULL / 10)  # the mean has norm 1.3: nothing is cut


def test_weight_decay_is_not_clipped() -> None:
    weight, _ = moved(clip=1.3, weight_decay=0.5)
    torch.testing.assert_close(weight, PULL / 10 + 0.5)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_limit_is_above_zero(clip: float) -> None:
    with pytest.raises(ValueError, match="clip must be above 0"):
        Optimizer(lr=0.1, clip=clip)


# Paces


def two_layers() -> tuple[nn.Sequential, tuple[nn.Parameter, ...], tuple[nn.Parameter, ...]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    return net, tuple(net[0].parameters()), tuple(net[1].parameters())


def pulled(net: nn.Module) -> Tensor:
    """A loss with a gradient of 1 for every parameter."""
    return sum((p.sum() for p in net.parameters()), torch.zeros(()))


@pytest.mark.parametrize("algorithm", ["sgd", "adamw", "muon"])
def test_each_part_steps_at_its_own_rate_times_the_schedule(algorithm: str) -> None:
    net, lower, upper = two_layers()
    twin, below, above = two_layers()
    paces = (Pace(parameters=lower, rate=0.25), Pace(parameters=upper, rate=4.0))
    rule = Optimizer(algorithm=algorithm, lr=0.1, schedule=lambda p: 0.5 if p > 0 else 1.0)  # type: ignore[arg-type]
    paced = Stepper(net, Optimizer(**{**vars(rule), "paces": paces}))
    slow, fast = (
        Stepper(layer, Optimizer(**{**vars(rule), "lr": lr})) for layer, lr in ((twin[0], 0.025), (twin[1], 0.4))
    )
    for progress in (0.0, 0.5, 0.5):
        paced.step(pulled(net), progress)
        slow.step(pulled(twin[0]), progress)
        fast.step(pulled(twin[1]), progress)
    for mine, theirs in zip((*lower, *upper), (*below, *above), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_part_that_rests_is_touched_by_nothing_and_begins_without_a_past() -> None:
    net, lower, upper = two_layers()
    before = [p.detach().clone() for p in lower]
    rule = Optimizer(lr=0.1, nesterov=False, weight_decay=0.5, paces=(Pace(parameters=lower, start=0.5),))
    stepper = Stepper(net, rule)
    for progress in (0.0, 0.25, 0.499):
        above = [p.detach().clone() for p in upper]
        stepper.step(pulled(net), progress)
        assert all(torch.equal(p, was) for p, was in zip(lower, before, strict=True))
        assert all(p.grad is None and p not in stepper.optimizer.state for p in lower)
        assert not any(torch.equal(p, was) for p, was in zip(upper, above, strict=True))
    stepper.step(pulled(net), 0.5)
    torch.testing.assert_close(lower[0].detach(), before[0] - 0.1 * (1 + 0.5 * before[0]))
    torch.testing.assert_close(lower[1].detach(), before[1] - 0.1)


def test_resting_parts_do_not_count_in_the_norm_that_is_clipped() -> None:
    net, lower, upper = two_layers()
    before = [p.detach().clone() for p in upper]
    rule = Optimizer(lr=1.0, momentum=0.0, clip=1.0, paces=(Pace(parameters=lower, start=0.5),))
    Stepper(net, rule).step(pulled(net), 0.0)
    for parameter, was in zip(upper, before, strict=True):
        torch.testing.assert_close(was - parameter.detach(), torch.full_like(was, 0.5))  # 4 numbers: a norm of 2


def test_no_gradient_is_computed_below_what_learns() -> None:
    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            seen.append(True)
            return gradient

    seen: list[bool] = []
    net, lower, _ = two_layers()
    stepper = Stepper(net, Optimizer(lr=0.1, paces=(Pace(parameters=lower, start=0.5),)))
    for progress, times in ((0.0, 0), (0.5, 1)):
        stepper.step(net[1](Watched.apply(net[0](torch.ones(1, 2)))).sum(), progress)
        assert len(seen) == times


def test_paces_that_do_not_fit_the_player_are_refused() -> None:
    net, lower, upper = two_layers()
    stranger = tuple(nn.Linear(1, 1).parameters())
    for wrong in ((Pace(parameters=lower), Pace(parameters=lower[:1])), (Pace(parameters=stranger),)):
        with pytest.raises(ValueError, match="share no parameter"):
            Stepper(net, Optimizer(lr=0.1, paces=wrong))
    with pytest.raises(ValueError, match="from the start"):
        Stepper(net, Optimizer(lr=0.1, paces=(Pace(parameters=(*lower, *upper), start=0.1),)))
    for bad in ({"rate": -1.0}, {"start": 1.0}, {"start": -0.1}):
        with pytest.raises(ValueError, match="rate must not be negative"):
            Pace(parameters=lower, **bad)
