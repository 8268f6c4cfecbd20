"""Arithmetic that must not be rounded to bfloat16 where the loop computes in it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Inside, layers compute in the type of their parameters; for devices that know no autocast, nothing."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
