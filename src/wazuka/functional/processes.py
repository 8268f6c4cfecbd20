"""Statistics over all processes of a run; with one process they are what they are here."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of `value` over processes of equal batch size; gradients flow to every process that took part.

    With it a loss that is not a mean over images (a ratio, a statistic of the batch) still gives each process the
    gradient of the whole batch.
    """
    count = process_count()
    if count == 1:
        return value
    total: Tensor = _SumOverProcesses.apply(value)
    return total / count


class _SumOverProcesses(torch.autograd.Function):
    """Every process's sum depends on every process's value: backward, the gradients are summed too, differentiably."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _SumOverProcesses.apply(gradient)
        return total


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, the same everywhere: (N, ...) -> (N * processes, ...).

    Every process brings as many rows. No gradient flows through.
    """
    count = process_count()
    if count == 1:
        return rows.detach()
    pieces = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(count)]
    dist.all_gather(pieces, rows.detach().contiguous())
    return torch.cat(pieces)


def joined(rows: Tensor) -> Tensor:
    """What `gathered` returns, and gradients flow to every process's rows, by the rule of `mean_over_processes`."""
    count = process_count()
    if count == 1:
        return rows
    before = dist.get_rank() * len(rows)
    after = (count - 1) * len(rows) - before
    placed = torch.cat([rows.new_zeros(before, *rows.shape[1:]), rows, rows.new_zeros(after, *rows.shape[1:])])
    return mean_over_processes(placed) * count
