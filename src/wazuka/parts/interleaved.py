"""Passes through a network beside the one whose batch statistics are remembered."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from wazuka.functional.interleave import interleaving
from wazuka.parts.batchnorm import frozen_statistics


def aside(net: nn.Module, images: Tensor, learning: bool) -> Tensor:
    """`net(images)` in a batch of its own, which batch norm normalizes by and then forgets.

    learning  False: without gradient
    """
    with frozen_statistics(net), nullcontext() if learning else torch.no_grad():
        outputs: Tensor = net(images)
    if not learning:
        torch.clear_autocast_cache()  # it holds weights that were cast without a gradient
    return outputs


def interleaved(net: nn.Module, images: Tensor, labeled: int, batches: int, remembered: int) -> Tensor:
    """What `net` makes of images, labeled ones first, in `batches` passes that each see both kinds.

    labeled     the first so many images are labeled
    remembered  the pass that moves batch norm's running statistics, in 0 .. batches - 1
    returns     (N, ...) outputs in the order of the images
    """
    order = interleaving(labeled, len(images), batches, images.device)
    outputs = [
        net(part) if number == remembered else aside(net, part, learning=True)
        for number, part in enumerate(images[order].tensor_split(batches))
    ]
    return torch.cat(outputs)[order]
