"""Bringing numbers from the host to where the images are."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without the host waiting for anything that runs there.

    A GPU fetches from pinned memory in the order of its stream; from ordinary memory a copy first waits for all that
    the stream has still to do, even one that is asked not to. What is there already is returned as it is.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)
