"""Dirichlet distributions over class probabilities whose concentrations are exp(logits): losses and scores.

Concentrations are kept within exp(-15) and exp(15), beyond which these functions are nothing but cancellation, and all
is computed in float64: float32 loses lgamma's digits at concentrations of a hundred. A logit beyond the bounds gets the
gradient that it would have at the bound, so that a loss pulls it back.
"""

import torch
from torch import Tensor

BOUND = 15.0


def concentrations(logits: Tensor) -> Tensor:
    """alpha = exp(logits), (N, K) -> (N, K) float64."""
    logits = logits.double()
    beyond = (logits - logits.clamp(-BOUND, BOUND)).detach()
    return (logits - beyond).exp()


def expected_log_prob(logits: Tensor, labels: Tensor) -> Tensor:
    """E[log p_y] under the Dirichlet, digamma(alpha_y) - digamma(alpha_0).

    logits   (N, K)
    labels   (N,)
    returns  (N,)    nats, at most log(mean p_y); float64
    """
    alpha = concentrations(logits)
    return alpha.gather(1, labels[:, None])[:, 0].digamma() - alpha.sum(dim=1).digamma()


def dirichlet_kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL(Dir(exp(logits)) || Dir(exp(target))), all constants included.

    logits   (N, K)
    target   (N, K) or (K,)
    returns  (N,)    nats, at least 0; float64
    """
    alpha, beta = concentrations(logits), concentrations(target)
    expected_log_probs = alpha.digamma() - alpha.sum(dim=-1, keepdim=True).digamma()
    return _log_beta(beta) - _log_beta(alpha) + ((alpha - beta) * expected_log_probs).sum(dim=-1)


def evidence(logits: Tensor) -> Tensor:
    """log alpha_0: how much was seen in all, as a logarithm. (N, K) -> (N,); low means odd."""
    return logits.logsumexp(dim=-1)


def differential_entropy(logits: Tensor) -> Tensor:
    """Of the Dirichlet: (N, K) -> (N,) nats, of any sign, largest where every alpha is 1; high means odd."""
    alpha = concentrations(logits)
    alpha_0 = alpha.sum(dim=-1)
    total = (alpha_0 - alpha.shape[-1]) * alpha_0.digamma() - ((alpha - 1) * alpha.digamma()).sum(dim=-1)
    return _like(logits, _log_beta(alpha) + total)


def dirichlet_information(logits: Tensor) -> Tensor:
    """Mutual information of the label and its probabilities: H(E[p]) - E[H(p)].

    logits   (N, K)
    returns  (N,)    nats in [0, log K]; 0 where alpha_0 is without bound. High means odd
    """
    alpha = concentrations(logits)
    alpha_0 = alpha.sum(dim=-1, keepdim=True)
    mean = alpha / alpha_0
    terms = mean * (mean.log() - (alpha + 1).digamma() + (alpha_0 + 1).digamma())
    return _like(logits, -terms.sum(dim=-1))


def _log_beta(alpha: Tensor) -> Tensor:
    """log of the multivariate beta function, (N, K) -> (N,)."""
    return alpha.lgamma().sum(dim=-1) - alpha.sum(dim=-1).lgamma()


def _like(logits: Tensor, result: Tensor) -> Tensor:
    return result.to(torch.promote_types(logits.dtype, torch.float32))
