"""One player's optimizer: groups, paces, schedule, and gradients averaged over processes and clipped."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wazuka.contract import Optimizer, Player, parameters_of
from wazuka.functional.processes import process_count
from wazuka.training.muon import Muon


class Stepper:
    """Steps the parameters of one player as its `Optimizer` settings say; kernels decay, vectors do not."""

    def __init__(self, player: Player, settings: Optimizer):
        self.settings, self.parameters = settings, parameters_of(player)
        self.learning = self.parameters  # at this step: the others rest
        if not self.parameters:
            raise ValueError(f"the player {type(player).__name__} has no parameter that could step")
        groups: list[dict[str, Any]] = [
            {"params": group, "weight_decay": decay, "rate": rate, "start": start}
            for parameters, rate, start in _parts(self.parameters, settings)
            for group, decay in (
                ([p for p in parameters if p.ndim > 1], settings.weight_decay),
                ([p for p in parameters if p.ndim <= 1], 0.0),
            )
            if group
        ]
        if all(group["start"] > 0 for group in groups):
            raise ValueError("some part of a player must learn from the start of the run")
        self.optimizer = _build(groups, settings)

    def step(self, loss: Tensor, progress: float) -> None:
        """Backward into this player alone, average over processes, clip, set the learning rate, step.

        Parts that rest have no gradient, and no optimizer touches what has none.
        """
        awake = [group for group in self.optimizer.param_groups if progress >= group["start"]]
        self.learning = [parameter for group in awake for parameter in group["params"]]
        for parameter in self.parameters:
            parameter.grad = None
        torch.autograd.backward(loss, inputs=self.learning)
        self.average_gradients()
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.learning, self.settings.clip)
        for group in awake:
            group["lr"] = self.settings.lr * group["rate"] * self.settings.schedule(progress)
        self.optimizer.step()

    def average_gradients(self) -> None:
        """One message for all gradients; with a single process there is nothing to do.

        A parameter without a gradient here (an unused head) counts as zero, so that processes never disagree on
        what is sent.
        """
        count = process_count()
        if count == 1:
            return
        for parameter in self.learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.learning if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= count
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def _parts(parameters: list[nn.Parameter], settings: Optimizer) -> Iterator[tuple[list[nn.Parameter], float, float]]:
    """(parameters, rate, start) of what has no pace of its own, then of each pace."""
    paced = {parameter for pace in settings.paces for parameter in pace.parameters}
    if len(paced) < sum(len(pace.parameters) for pace in settings.paces) or not paced <= set(parameters):
        raise ValueError("the paces of a player must share no parameter, and hold none but its own that learn")
    yield [parameter for parameter in parameters if parameter not in paced], 1.0, 0.0
    for pace in settings.paces:
        yield list(pace.parameters), pace.rate, pace.start


def _build(groups: list[dict], settings: Optimizer) -> torch.optim.Optimizer:
    if settings.algorithm == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True)
    if settings.algorithm == "muon":
        return Muon(groups, lr=settings.lr, momentum=settings.momentum, beta2=settings.beta2)
    betas = (settings.momentum, settings.beta2)
    kind = torch.optim.Adam if settings.algorithm == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr, betas=betas, fused=True)
