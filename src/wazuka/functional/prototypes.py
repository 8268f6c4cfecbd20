"""Classes as points: their means, and how far images lie from them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of each class's features, its prototype.

    features  (N, D)
    labels    (N,)    int64 in 0 .. classes - 1, in any order; classes may differ in how many images they have
    returns   (C, D)  zero for a class without an image
    """
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / labels.bincount(minlength=classes).clamp_min(1).to(features.dtype)[:, None]


def squared_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distances: the sum over D, with no root and no division by D.

    features    (N, D)
    prototypes  (C, D)
    returns     (N, C)  >= 0

    Subtracts before it squares: written as |z|^2 - 2 z.c + |c|^2 it would cancel, and autocast would take the product
    in bfloat16.
    """
    return (features[:, None] - prototypes).square().sum(dim=2)


def cosine_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """One minus the cosine of the angle between each feature and each prototype; (N, D), (C, D) -> (N, C) in [0, 2].

    Half the squared distance between the two points on the unit sphere, and computed as that: exact near 0.
    """
    return squared_distances(F.normalize(features, dim=1), F.normalize(prototypes, dim=1)) / 2


def squared_distances_of_many(features: Tensor, prototypes: Tensor, block: int = 8192) -> Tensor:
    """The same numbers as `squared_distances`, for many features: no tensor of (N, C, D) is made.

    features    (N, D)
    prototypes  (C, D)
    block       how many features are worked on at a time
    returns     (N, C)  >= 0

    It multiplies out, |z|^2 - 2 z.c + |c|^2, with the prototypes' mean as origin: what cancels is then no larger than
    the distances between features and prototypes, and the error about 1e-6 of the largest of them.
    """
    origin = prototypes.mean(dim=0)
    own = prototypes - origin
    parts = []
    for part in features.split(block):
        part = part - origin
        parts.append(part.square().sum(dim=1, keepdim=True) - 2 * part @ own.T + own.square().sum(dim=1))
    return torch.cat(parts).clamp_min(0)
