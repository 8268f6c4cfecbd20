"""The one training loop: the only place where parameters step. What happens is what is written, top to bottom."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from wazuka.contract import Batch, Method, Parts, Player
from wazuka.functional.seeds import mix
from wazuka.training.optimizers import Stepper


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` steps are done, of `total_steps`."""

    step: int
    total_steps: int
    parts: Parts


def train(
    method: Method,
    batches: Callable[[int], Batch],
    steppers: dict[Player, Stepper],
    *,
    total_steps: int,
    first_step: int = 0,
    seed: int = 0,
    rank: int = 0,
    precision: torch.dtype = torch.float32,
    before_round: Callable[[int], None] = lambda step: None,
    after_step: Callable[[Progress], bool] = lambda progress: True,
) -> bool:
    """Run steps `first_step` to `total_steps`; True when all are done, False when `after_step` asked to stop.

    method      is moved to its device by the caller; it is in train mode when this returns
    batches     step -> this process's batch
    steppers    one for each of the method's players
    seed        draws made inside the method (dropout, mixing) come from torch's own generators, seeded anew each
                step from (seed, step, rank): a resumed run needs no generator's state
    precision   bfloat16 runs convolutions and matrix products in it; parameters stay float32
    before_round, after_step   the caller's business: clustering, curves, checkpoints. They never change a weight.
    """
    method.train()
    device = next(method.parameters()).device.type
    for step in range(first_step, total_steps):
        before_round(step)
        torch.manual_seed(mix(seed, rank, step))
        batch, progress, parts = batches(step), step / total_steps, {}
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            for player, loss, losses in method.moves(batch, progress):
                steppers[player].step(loss, progress)
                torch.clear_autocast_cache()  # it holds the weights as they were before the step
                parts.update(losses)
            method.after_step()
        if not after_step(Progress(step + 1, total_steps, parts)):
            return False
    return True
