"""Running means of batch statistics."""

import torch
from torch import Tensor, nn

from wazuka.functional.processes import mean_over_processes


class RunningMean(nn.Module):
    """Exponential average of a distribution over classes, starting uniform; the only owner of its value.

    size     number of classes
    decay    in [0, 1): share of the old value that each update keeps
    """

    value: Tensor

    def __init__(self, size: int, decay: float):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("value", torch.full((size,), 1 / size))

    @torch.no_grad()
    def update(self, batch_mean: Tensor) -> None:
        """batch_mean (size,): this process's mean; the mean over processes enters."""
        self.value.lerp_(mean_over_processes(batch_mean.detach().float()), 1 - self.decay)


class RecentMean(nn.Module):
    """Mean of the last `length` batch means, starting uniform: ReMixMatch's p_model keeps 128 (libml/layers.py)."""

    rows: Tensor
    next_row: Tensor

    def __init__(self, size: int, length: int = 128):
        super().__init__()
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.register_buffer("rows", torch.full((length, size), 1 / size))
        self.register_buffer("next_row", torch.zeros((), dtype=torch.int64))

    @property
    def value(self) -> Tensor:
        """(size,) the mean over rows."""
        return self.rows.mean(dim=0)

    @torch.no_grad()
    def update(self, batch_mean: Tensor) -> None:
        """batch_mean (size,): this process's mean; the mean over processes enters."""
        row = mean_over_processes(batch_mean.detach().float())
        self.rows.index_copy_(0, self.next_row[None], row[None])
        self.next_row.add_(1).remainder_(len(self.rows))
