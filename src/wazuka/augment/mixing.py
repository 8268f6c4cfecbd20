"""Mixing images with each other: mixup and CutMix, on float images with soft targets.

Pure functions of tensors: who is mixed with whom, and how much, comes in. `mixing_weights` and `cutmix_boxes` draw it
on the CPU.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from wazuka.functional.sending import to_device


def mixing_weights(count: int, alpha: float, generator: Generator, keep_first: bool = False) -> Tensor:
    """(count,) float32 weights of the first image, from Beta(alpha, alpha), on the CPU; count 1 for one per batch.

    alpha       above 0: mixup 1 (CIFAR) or 0.2 (ImageNet), MixMatch 0.75, CutMix 1
    keep_first  max(w, 1 - w), so that the mixture stays nearer the first image (MixMatch, Eq. 9)
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    seed = int(torch.randint(2**62, (), generator=generator))  # torch draws no Beta from a generator of one's own
    weights = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).to(torch.float32)
    return torch.maximum(weights, 1 - weights) if keep_first else weights


def mixup(images: Tensor, targets: Tensor, partners: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """w * x + (1 - w) * x[partners], of images and of targets alike (Zhang et al. 2018, arXiv:1710.09412, Eq. 1).

    images    (N, C, H, W) float
    targets   (N, K) float, probabilities
    partners  (N,) int64 rows
    weights   (N,) in [0, 1], or (1,) for one weight per batch
    """
    w = to_device(weights.to(images.dtype), images.device)
    mixed = torch.lerp(images[partners], images, w.view(-1, 1, 1, 1))
    return mixed, torch.lerp(targets[partners], targets, w.to(targets.dtype).view(-1, 1))


def cutmix(images: Tensor, targets: Tensor, partners: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Paste the partner's box over the image; targets mix by pixels (Yun et al. 2019, arXiv:1905.04899, Eq. 1).

    images    (N, C, H, W) float or uint8
    targets   (N, K) float, probabilities
    partners  (N,) int64 rows
    boxes     (N, 4) int64, or (1, 4) for one box per batch: left, top, right, bottom (the last two left out), within
              the image
    """
    height, width = images.shape[2:]
    boxes = to_device(boxes, images.device)
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    pasted_rows, pasted_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    pasted = pasted_rows[:, None, :, None] & pasted_columns[:, None, None, :]
    weights = 1 - ((right - left) * (bottom - top)).to(targets.dtype) / (height * width)  # of the box as clipped
    return torch.where(pasted, images[partners], images), torch.lerp(targets[partners], targets, weights)


def cutmix_boxes(weights: Tensor, height: int, width: int, generator: Generator) -> Tensor:
    """(N, 4) int64 boxes with sides sqrt(1 - w) of the image's, centers uniform, clipped at the border; on the CPU.

    As in the authors' code (clovaai/CutMix-PyTorch, train.py), a side is twice a whole number of pixels.

    weights  (N,) in [0, 1]: the first image's share before clipping
    """
    sides = torch.tensor([width, height], dtype=torch.float64)
    half = ((1 - weights.to(torch.float64)).clamp(min=0).sqrt()[:, None] * sides / 2).floor()
    center = (torch.rand(len(weights), 2, generator=generator, dtype=torch.float64) * sides).floor()
    return torch.cat([(center - half).clamp(min=0), torch.minimum(center + half, sides)], dim=1).to(torch.int64)
