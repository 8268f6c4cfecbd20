"""Batch norm when one step runs the network more than once."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Inside, `net` still normalizes by the batch but its running statistics stand still.

    Several passes a step would otherwise each move them; the papers' code lets one pass do it.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
