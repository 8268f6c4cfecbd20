"""Images that go through a network beside those that learn: batch norm sees both groups, gradients only one.

FixMatch's weak views have no loss of their own, yet its authors' code sends them through in one batch with the rest,
because they belong to the batch's statistics. Backpropagating through them serves only the gradient of those
statistics, and costs as much as for an image that learns. Here both groups go forward side by side, normalized by the
statistics of all, so that outputs and running statistics are those of one joint batch; backward, the statistics'
gradient is estimated from the images that learn, as if these were the whole batch. Taking the statistics for constants
instead would let weights grow without end, for their size would seem to matter (Ioffe & Szegedy 2015, Sec. 2).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def with_onlookers(net: nn.Module, learning: Tensor, watching: Tensor) -> tuple[Tensor, Tensor]:
    """What `net` makes of two groups of images in one pass with common batch statistics.

    learning  (N, ...)  gradients flow through these alone
    watching  (M, ...)  may be empty
    returns   (N, ...) and (M, ...), the latter without gradient

    `net` may be made of any layers that treat images one by one, and of batch norm. No second derivatives.
    """
    if len(watching) == 0:
        outputs = net(learning)
        return outputs, outputs.detach()[:0]
    pair = net(SideBySide(learning, watching))
    return pair.learning, pair.watching


class SideBySide:
    """Stands for the two groups where a layer expects one tensor: torch hands each function to `__torch_function__`."""

    def __init__(self, learning: Tensor, watching: Tensor):
        self.learning, self.watching = learning, watching

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm and kwargs["training"]:
            return cls(*_CommonBatchNorm.apply(args[0].learning, args[0].watching, *_norm_arguments(args, kwargs)))
        # learning first: under autocast, the cast weights that are kept for the second call must have a gradient
        learning = function(*[a.learning if isinstance(a, cls) else a for a in args], **kwargs)
        with torch.no_grad():
            watching = function(*[a.watching if isinstance(a, cls) else a for a in args], **kwargs)
        if isinstance(learning, Tensor):
            return cls(learning, watching)
        if learning != watching:
            raise TypeError(f"{function.__name__} says {learning} of one group and {watching} of the other")
        return learning

    def __getattr__(self, name: str) -> Callable:
        method = getattr(Tensor, name)  # mean, flatten, float, dim, ...
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return self.__torch_function__(torch.add, (), (self, other))

    def __sub__(self, other: Any) -> Any:
        return self.__torch_function__(torch.sub, (), (self, other))

    def __mul__(self, other: Any) -> Any:
        return self.__torch_function__(torch.mul, (), (self, other))

    def __truediv__(self, other: Any) -> Any:
        return self.__torch_function__(torch.div, (), (self, other))


def _norm_arguments(args: tuple, kwargs: dict[str, Any]) -> tuple:
    """weight, bias, running mean and variance (each may be None), momentum, epsilon."""
    return kwargs["weight"], kwargs["bias"], args[1], args[2], kwargs["momentum"], kwargs["eps"]


class _CommonBatchNorm(torch.autograd.Function):
    """Batch norm by the mean and variance of both groups together."""

    @staticmethod
    def forward(
        ctx: Any,
        learning: Tensor,
        watching: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        mean, var = _common_statistics(learning, watching)
        if running_mean is not None and running_var is not None:
            count = (learning.numel() + watching.numel()) / learning.shape[1]
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
        normalized = [
            torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0] for x in (learning, watching)
        ]
        ctx.eps = eps
        ctx.save_for_backward(learning, weight, mean, (var + eps).rsqrt())
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(normalized[1])
        return normalized[0], normalized[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        learning, weight, mean, inverse_std = ctx.saved_tensors
        needed = [ctx.needs_input_grad[place] for place in (0, 2, 3)]
        to_images, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, learning, weight, None, None, mean, inverse_std, True, ctx.eps, needed
        )
        return to_images, None, to_weight, to_bias, None, None, None, None


def _common_statistics(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over both tensors (N, C, ...), float32 or better."""
    unused = torch.zeros(a.shape[1], device=a.device, dtype=torch.promote_types(a.dtype, torch.float32))
    (mean_a, var_a), (mean_b, var_b) = [torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0) for x in (a, b)]
    share = len(b) / (len(a) + len(b))
    return mean_a.lerp(mean_b, share), var_a.lerp(var_b, share) + share * (1 - share) * (mean_a - mean_b).square()
