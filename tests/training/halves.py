"""Run by torchrun in two processes: every method, first with shared batches, then with what its streams deliver.

Gradients: one process with the whole batch against two with half of it each, turn by turn over a few steps. All
methods keep that promise, under two provisos that lie in the matter:
- batch norm normalizes by what its own process sees, as it does everywhere else, so the network here has none, and
  a variant that brings its own is left out;
- an episode can't be halved, for its classes belong together: each process draws one of its own, and the gradient is
  the mean of both.

Each process writes RANK.json to the folder it is given, name -> what went wrong or "equal": lines that two processes
print at once may run into each other.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tests.methods.small import Perceptron, Recording, batches_of, cases, draws_episodes, run, small
from wazuka.contract import Batch, Method, Optimizer, Player
from wazuka.training import Stepper
from wazuka.training.processes import launch

STEPS = 4
OWN_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def made(name: str, changes: dict[str, Any]) -> Method:
    method = small(name, net=Perceptron, changes=changes)
    with torch.no_grad():
        for parameter in method.parameters():  # decided networks have gradients worth comparing
            parameter.mul_(2)
    return method


def recorded(method: Method, batches: Any) -> list[list[Tensor]]:
    """The gradients that each player stepped on, turn by turn."""
    rule = Optimizer(lr=0.05, momentum=0.0)  # Adam would blow rounding up where a gradient is nothing
    steppers: dict[Player, Recording] = {player: Recording(Stepper(player, rule)) for player in method.players()}
    run(method, steppers, steps=STEPS, batches=batches)
    return [stepper.gradients for stepper in steppers.values()]


def half(batch: Batch, rank: int) -> Batch:
    return Batch(**{field: value.chunk(2)[rank] for field, value in vars(batch).items()})


def expected(name: str, changes: dict[str, Any]) -> list[list[Tensor]] | None:
    """What one process finds, before there are two; None where halves are not the promise."""
    method = made(name, changes)
    if any(isinstance(module, _BatchNorm) for module in method.modules()):
        return None
    if not draws_episodes(method):
        return recorded(method, batches_of(method))
    # one step only: from the second on, the two runs are no longer at the same weights
    both = [recorded(made(name, changes), batches_of(method, rank, 2)) for rank in range(2)]
    return [[(ours[0] + theirs[0]) / 2] for ours, theirs in zip(*both, strict=True)]


def compare(name: str, changes: dict[str, Any], alone: list[list[Tensor]], rank: int) -> None:
    method = made(name, changes)
    whole = batches_of(method)
    if draws_episodes(method):
        found = recorded(method, batches_of(method, rank, 2))
    else:
        found = recorded(method, lambda step: half(whole(step), rank))
    for ours, theirs in zip(found, alone, strict=True):
        assert len(ours) >= len(theirs) > 0
        for turn, (gradient, goal) in enumerate(zip(ours, theirs, strict=False)):
            assert goal.abs().max() > 0, "nothing to compare"
            error = float((gradient - goal).abs().max() / goal.abs().max())
            assert error < 2e-4, f"in turn {turn} the gradients of halves and whole differ by {error:.1e}"


def stay_together(name: str, changes: dict[str, Any], rank: int) -> None:
    """With its own streams and batch norm: after a few steps all processes remember the same."""
    method = small(name, changes=changes)
    run(method, steps=STEPS, batches=batches_of(method, rank, 2))
    for key, value in method.state_dict().items():
        if key.endswith(OWN_STATISTICS):
            continue
        both = [torch.empty_like(value), torch.empty_like(value)]
        dist.all_gather(both, value.contiguous())
        assert torch.equal(*both), f"{key} is not the same in both processes"


def main() -> None:
    torch.set_num_threads(1)
    alone = [expected(name, changes) for name, changes in cases()]
    fabric = launch("cpu")
    assert fabric.world_size == 2
    told = {}
    for (name, changes), goal in zip(cases(), alone, strict=True):
        label = " ".join([name, *(f"{field}={value}" for field, value in changes.items())])
        try:
            if goal is not None:
                compare(name, changes, goal, fabric.global_rank)
            stay_together(name, changes, fabric.global_rank)
            told[label] = "equal"
        except AssertionError as error:  # both processes do the same work, so neither waits for the other
            told[label] = str(error) or traceback.format_exc()
    (Path(sys.argv[1]) / f"{fabric.global_rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
