import pytest
import torch
from torch import Tensor, nn

from wazuka.contract import Optimizer
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
