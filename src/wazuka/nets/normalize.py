"""Normalization as the first layer, so that a saved network needs no preprocessing told beside it."""

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(images - mean) / std per channel; images float in [0, 1], shape (N, C, H, W).

    One mean and std serve all channels, or one per channel. The default maps [0, 1] to [-1, 1], as the papers'
    code for WRN-28-2 does.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.5,)):
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std must be of one length and std positive, got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
