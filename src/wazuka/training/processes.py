"""Where a run computes: device, precision, and the processes that share it. lightning-fabric brings them."""

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(accelerator: str = "auto") -> "Fabric":
    """This process's Fabric. Under `torchrun --nproc-per-node N` it joins the others (gloo on CPUs, nccl on GPUs)."""
    from lightning_fabric import Fabric

    keep_freed_memory()
    local, nodes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if local * nodes > 1:
        fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp")
    else:
        fabric = Fabric(accelerator=accelerator, devices=1)
    fabric.launch()
    return fabric


@cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep what tensors free for the next ones, instead of giving it back to the system each time.

    A pass through a network frees tensors of many megabytes; to have them zeroed and mapped anew took half of the time
    (benchmarks/features.py). The process's peak stays the same, but it is held until the end. Returns whether it could
    be asked: only glibc knows the question.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it natively, else float32, which an emulation would only slow down."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = device.type == "cpu" and (_cpu_has("avx512_bf16") or _cpu_has("amx_tile"))
    return torch.bfloat16 if native else torch.float32


def precision_named(name: str, device: torch.device) -> torch.dtype:
    """"float32", "bfloat16", or "auto": what is fast on the device."""
    return fast_precision(device) if name == "auto" else {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _cpu_has(feature: str) -> bool:
    probe = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(probe and probe())
