"""Features of a frozen network: what a head may be given, and how heads center them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.errors import UserError


def check_fit(features: Tensor, labels: Tensor, classes: int) -> None:
    """Raise UserError unless a head can learn `classes` classes from them.

    features  (N, D)  float32 or float64, finite
    labels    (N,)    int64; -1 where unlabeled, else 0 .. classes - 1, and each class at least once
    """
    _check_kind(features)
    if labels.dtype != torch.int64 or labels.shape != features.shape[:1]:
        raise UserError(
            f"The labels must be int64 and one for each of the {len(features)} images, -1 where it has none, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"Labels must lie in 0 .. {classes - 1}, or be -1 where there is none, got {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    if not features.sum().isfinite():
        raise UserError("Some features are infinite or not a number: the network that made them is broken.")
    missing = (labels[labels >= 0].bincount(minlength=classes) == 0).nonzero().flatten().tolist()
    if missing:
        raise UserError(f"Each class needs at least one labeled image, and classes {missing} have none.")


def check_predict(features: Tensor, size: int) -> None:
    """Raise UserError unless they are (M, size) features in float32 or float64."""
    _check_kind(features)
    if features.shape[1] != size:
        raise UserError(f"The classes were learned on {size} features an image, but these images have "
                        f"{features.shape[1]}: they come from another network.")  # fmt: skip


def centered_unit(features: Tensor, center: Tensor) -> Tensor:
    """Features less the center, each then scaled to length 1: SimpleShot's CL2N. (N, D), (D,) -> (N, D)"""
    return F.normalize(features - center, dim=1)


def _check_kind(features: Tensor) -> None:
    if features.ndim != 2 or features.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"Features must be a float32 or float64 table with a row an image, got {features.dtype} of shape "
            f"{tuple(features.shape)}."
        )
