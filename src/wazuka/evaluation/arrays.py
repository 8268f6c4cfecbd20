"""What evaluation accepts: NumPy arrays, lists, or torch tensors from any device."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def as_floats(values: Any) -> Floats:
    """Any array or tensor as float64 on the host: sums over 10,000 images must not round."""
    if hasattr(values, "detach"):  # a tensor; .double() because NumPy knows no bfloat16
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def as_integers(values: Any) -> Integers:
    """Any array or tensor of whole numbers as int64 on the host."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "iub" and values.size:
        raise ValueError(f"labels must be whole numbers, got {values.dtype}")
    return values.astype(np.int64)
