"""Muon: momentum whose steps are orthogonalized, so that every direction of a kernel moves equally far.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; KellerJordan/Muon (muon.py). The step
length is that of Liu et al. 2025, arXiv:2502.16982, Eq. 4, so that learning rate and decay are AdamW's.
torch.optim.Muon takes matrices alone; here convolutions, as matrices (out, in * k * k), take its steps, and everything
else AdamW's.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of a quintic that lifts singular values of 1e-3 to about 1 in five rounds


def orthogonalized(matrices: Tensor, rounds: int = 5) -> Tensor:
    """About U V^T of each matrix U S V^T: singular values come out between 0.7 and 1.2.

    matrices  (K, N, M)
    returns   (K, N, M), in the same dtype

    Every round multiplies X by a polynomial of X X^T from the left, and such polynomials commute. So all rounds are
    taken on the small square, and X is met twice: two to three times less work where N and M are as in convolutions.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square, factor = x @ x.mT, None
    for turn in range(rounds):
        polynomial = b * square + c * square @ square
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if turn < rounds - 1:
            square = polynomial @ square @ polynomial
    x = x if factor is None else factor @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for parameters of three and more dimensions, AdamW for the rest; decay is decoupled.

    momentum  of Muon (Nesterov), and Adam's beta1 is 0.9
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "beta2": beta2, "weight_decay": weight_decay, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            for parameter in learning:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            self._step_convolutions([p for p in learning if p.ndim > 2], group)
            self._step_others([p for p in learning if p.ndim <= 2], group)

    def _step_convolutions(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        """Kernels of one shape are orthogonalized together."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for kernel in kernels:
            state = self.state[kernel]
            if not state:
                state["momentum"] = torch.zeros_like(kernel)
            by_shape.setdefault(kernel.shape, []).append(kernel)
        for shape, alike in by_shape.items():
            gradients = [p.grad for p in alike if p.grad is not None]
            velocity = [self.state[p]["momentum"] for p in alike]
            torch._foreach_lerp_(velocity, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, velocity, group["momentum"])
            stacked = torch.stack([move.reshape(shape[0], -1) for move in ahead])
            with torch.autocast(stacked.device.type, enabled=False):  # small singular values need float32 here
                moves = orthogonalized(stacked)
            length = 0.2 * max(moves.shape[1:]) ** 0.5
            for kernel, move in zip(alike, moves, strict=True):
                kernel.sub_(move.view(shape), alpha=group["lr"] * length)

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # on the host: torch leaves a state of that name there
            state["step"] += 1
            done, beta1, beta2 = float(state["step"]), 0.9, group["beta2"]
            state["mean"].lerp_(gradient, 1 - beta1)
            state["square"].lerp_(gradient.square(), 1 - beta2)
            scale = (state["square"] / (1 - beta2**done)).sqrt_().add_(group["eps"])
            parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - beta1**done))
