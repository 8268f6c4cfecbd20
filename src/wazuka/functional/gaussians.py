"""Regression with a variance: what one network says of a number, and what several say together.

Lakshminarayanan, Pritzel & Blundell 2017, arXiv:1612.01474, Secs. 2.2.1 and 2.4.
"""

import math

import torch.nn.functional as F
from torch import Tensor


def positive_variance(raw: Tensor) -> Tensor:
    """softplus + 1e-6: any numbers -> variances of the same shape, none of which explodes a loss."""
    return F.softplus(raw) + 1e-6


def gaussian_nll(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Eq. 1 with its constant: log N(target; mean, variance), negated.

    mean, variance, targets  (N, ...)  variances above 0, in squared units of the targets
    returns                  (N, ...)  nats, of each number by itself
    """
    return 0.5 * (variance.log() + (targets - mean).square() / variance + math.log(2 * math.pi))


def mixture_moments(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of an even mixture of Gaussians, as which an ensemble's answers count.

    means, variances  (T, N, ...)  of each member
    returns           (N, ...), (N, ...)  the variance is the mean variance plus the variance of the means; it is
                      summed so, for mean(s^2 + mu^2) - mean(mu)^2 loses its digits where means are large
    """
    mean = means.mean(dim=0)
    return mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0)
