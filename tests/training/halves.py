"""Run by torchrun in two processes: every method, first with shared batches, then with what its streams deliver.

What a method promises about the gradients it steps on depends on whether its batch can be cut in two:

- It can, as a rule. Then one process with the whole batch, and two with half of it each, find the same gradients, turn
  by turn over a few steps, whatever statistics of the batch the losses are made of.
- It can't where a step draws at random (noise, dropout, who is mixed with whom: each process draws its own, and
  partners come from its own half) or where the batch is an episode, whose classes belong together. Then the gradient
  is the mean of what each process finds alone, with its share of the images and its seed. Each step is taken from the
  same start, for two processes that went on alone would be elsewhere; a rate of 0 keeps all turns of a step there.

Nobody has to say which: a method that moves torch's generator draws. Under either promise batch norm is left out, for
it normalizes by what its own process sees, as it does everywhere else: the network here has none, and a variant that
brings its own is not compared.

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
Gradients = list[list[Tensor]]  # of each player, turn by turn


def made(name: str, changes: dict[str, Any]) -> Method:
    method = small(name, net=Perceptron, changes=changes)
    with torch.no_grad():
        for parameter in method.parameters():  # decided networks have gradients worth comparing
            parameter.mul_(2)
    return method


def recorded(method: Method, batches: Any, lr: float = 0.05, **more: Any) -> Gradients:
    """The gradients that each player stepped on, turn by turn."""
    rule = Optimizer(lr=lr, momentum=0.0)  # Adam would blow rounding up where a gradient is nothing
    steppers: dict[Player, Recording] = {player: Recording(Stepper(player, rule)) for player in method.players()}
    run(method, steppers, steps=STEPS, batches=batches, **more)
    return [stepper.gradients for stepper in steppers.values()]


def half(batch: Batch, rank: int) -> Batch:
    return Batch(**{field: value.chunk(2)[rank] for field, value in vars(batch).items()})


def draws(method: Method) -> bool:
    """Whether a step takes random numbers from torch's generator."""
    batch, before = batches_of(method)(0), torch.get_rng_state()
    for _ in method.moves(batch, 0.5):
        pass
    return not torch.equal(before, torch.get_rng_state())


def can_be_halved(name: str, changes: dict[str, Any]) -> bool:
    return not draws_episodes(made(name, changes)) and not draws(made(name, changes))


def of_the_whole_run(name: str, changes: dict[str, Any], rank: int | None) -> Gradients:
    """With the whole batch (rank None), or with this process's half of it."""
    method = made(name, changes)
    whole = batches_of(method)
    return recorded(method, whole if rank is None else lambda step: half(whole(step), rank))


def of_each_step_from_the_start(name: str, changes: dict[str, Any], rank: int) -> Gradients:
    """With this process's share of the images and its seed."""
    steps = []
    for step in range(STEPS):
        method = made(name, changes)
        whole = batches_of(method)
        share = batches_of(method, rank, 2) if draws_episodes(method) else lambda s, w=whole: half(w(s), rank)
        once = {"first_step": step, "after_step": lambda progress: False}
        steps.append(recorded(method, share, lr=0.0, rank=rank, **once))
    return [[gradient for turns in players for gradient in turns] for players in zip(*steps, strict=True)]


def expected(name: str, changes: dict[str, Any]) -> Gradients | None:
    """What one process finds, before there are two; None where batch norm stands in the way."""
    if any(isinstance(module, _BatchNorm) for module in made(name, changes).modules()):
        return None
    if can_be_halved(name, changes):
        return of_the_whole_run(name, changes, rank=None)
    mine, theirs = (of_each_step_from_the_start(name, changes, rank) for rank in range(2))
    for one, other in zip(mine, theirs, strict=True):
        assert any(not torch.allclose(a, b, rtol=0.1) for a, b in zip(one, other, strict=True)), "a mean of equals"
    return [[(a + b) / 2 for a, b in zip(one, other, strict=True)] for one, other in zip(mine, theirs, strict=True)]


def compare(name: str, changes: dict[str, Any], alone: Gradients, rank: int) -> None:
    found = (of_the_whole_run if can_be_halved(name, changes) else of_each_step_from_the_start)(name, changes, rank)
    for ours, theirs in zip(found, alone, strict=True):
        assert len(ours) == len(theirs) > 0
        for turn, (gradient, goal) in enumerate(zip(ours, theirs, strict=True)):
            assert goal.abs().max() > 0, "nothing to compare"
            error = float((gradient - goal).abs().max() / goal.abs().max())
            assert error < 2e-4, f"in turn {turn} the gradient differs from the one that was promised by {error:.1e}"


def stay_together(name: str, changes: dict[str, Any], rank: int) -> None:
    """With its own streams, its own draws and batch norm: after a few steps all processes remember the same."""
    method = small(name, changes=changes)
    run(method, steps=STEPS, batches=batches_of(method, rank, 2), rank=rank)
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
