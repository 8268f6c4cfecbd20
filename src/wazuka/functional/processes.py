"""Statistics over all processes of a run; with one process they are what they are here."""

import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
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
    if value.requires_grad:
        return differentiable.all_reduce(value) / count
    total = value.clone()
    dist.all_reduce(total)
    return total / count
