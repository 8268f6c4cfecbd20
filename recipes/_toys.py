"""Points in the plane for the small checks: two moons, two circles, a pinwheel, eight Gaussians, and few labels.

Each is (seed, n) -> points (n, 2) float32, labels (n,) int64, in random order. Moons and circles are scikit-learn's
with the noise of FlowGMM's toys (izmailovpavel/flowgmm, flow_ssl/data/toy_datasets.py); pinwheel and Gaussians are
FFJORD's (rtqichen/ffjord, lib/toy_data.py), from which FlowGMM's files were drawn, with the classes of those files.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import make_circles, make_moons
from torch import Tensor

NOISE = 0.05


def two_moons(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Two half circles of radius 1, one inside the arch of the other: 2 classes."""
    return _tensors(*make_moons(n, noise=NOISE, random_state=seed))


def circles(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """A circle of radius 1 (class 0) around one of radius 0.4: 2 classes."""
    return _tensors(*make_circles(n, noise=NOISE, factor=0.4, random_state=seed))


def pinwheel(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Five bent arms around the origin, numbered counterclockwise: 5 classes."""
    chance = np.random.RandomState(seed)
    labels = chance.permutation(np.arange(n) % 5)
    arms = chance.randn(n, 2) * (0.3, 0.1) + (1.0, 0.0)  # along the arm, across it
    angles = 2 * math.pi * labels / 5 - 0.25 * np.exp(arms[:, 0])  # the further out, the further back
    cos, sin = np.cos(angles), np.sin(angles)
    turned = np.stack([arms[:, 0] * cos - arms[:, 1] * sin, arms[:, 0] * sin + arms[:, 1] * cos], axis=1)
    return _tensors(2 * turned, labels)


def gaussians(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Eight Gaussians in a ring: 3 classes of neighbors, two Gaussians on the left, three below right, three on top."""
    chance = np.random.RandomState(seed)
    which = chance.permutation(np.arange(n) % 8)
    angles = which * math.pi / 4
    points = 4 * np.stack([np.cos(angles), np.sin(angles)], axis=1) + 0.5 * chance.randn(n, 2)
    return _tensors(points / 1.414, np.array([1, 2, 2, 2, 0, 0, 1, 1])[which])


def draw_labels(labels: Tensor, counts: int | Sequence[int], seed: int) -> Tensor:
    """Rows whose labels may be known: `counts` of each class (one number: the same of all), drawn without replacement.

    labels   (n,) int64
    returns  (sum of counts,) int64, ascending by class
    """
    classes = int(labels.max()) + 1
    wanted = [counts] * classes if isinstance(counts, int) else list(counts)
    if len(wanted) != classes:
        raise ValueError(f"counts must name a number for each of {classes} classes, got {wanted}")
    chance = np.random.RandomState(seed)
    rows = []
    for label, count in enumerate(wanted):
        of_class = torch.nonzero(labels == label)[:, 0]
        if count > len(of_class):
            raise ValueError(f"class {label} has {len(of_class)} points, {count} were asked for")
        rows.append(of_class[torch.from_numpy(chance.permutation(len(of_class))[:count])])
    return torch.cat(rows)


def _tensors(points: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
