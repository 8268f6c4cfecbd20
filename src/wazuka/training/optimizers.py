"""One player's optimizer: groups, schedule, and gradients averaged over processes and clipped."""

import torch
import torch.distributed as dist
from torch import Tensor

from wazuka.contract import Optimizer, Player, parameters_of
from wazuka.functional.processes import process_count
from wazuka.training.muon import Muon


class Stepper:
    """Steps the parameters of one player as its `Optimizer` settings say; kernels decay, vectors do not."""

    def __init__(self, player: Player, settings: Optimizer):
        self.settings, self.parameters = settings, parameters_of(player)
        if not self.parameters:
            raise ValueError(f"the player {type(player).__name__} has no parameter that could step")
        kernels = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((kernels, settings.weight_decay), (vectors, 0.0))
            if group
        ]
        self.optimizer = _build(groups, settings)

    def step(self, loss: Tensor, progress: float) -> None:
        """Backward into this player alone, average over processes, clip, set the learning rate, step."""
        for parameter in self.parameters:
            parameter.grad = None
        torch.autograd.backward(loss, inputs=self.parameters)
        self.average_gradients()
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.settings.schedule(progress)
        self.optimizer.step()

    def average_gradients(self) -> None:
        """One message for all gradients; with a single process there is nothing to do.

        A parameter without a gradient here (an unused head) counts as zero, so that processes never disagree on
        what is sent.
        """
        count = process_count()
        if count == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= count
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def _build(groups: list[dict], settings: Optimizer) -> torch.optim.Optimizer:
    if settings.algorithm == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True)
    if settings.algorithm == "muon":
        return Muon(groups, lr=settings.lr, momentum=settings.momentum, beta2=settings.beta2)
    betas = (settings.momentum, settings.beta2)
    kind = torch.optim.Adam if settings.algorithm == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr, betas=betas, fused=True)
