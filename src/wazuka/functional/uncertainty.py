"""What several answers to one image say together: members of an ensemble, or noisy passes of one network.

The entropy of the mean answer is what the answers are unsure of themselves (their mean entropy: aleatoric) plus what
they disagree about (the mutual information of answer and member: epistemic). Depeweg et al. 2018, arXiv:1710.07283;
Smith & Gal 2018, arXiv:1803.08533.

Probabilities are averaged, never logits. Sums run in float64, for sure answers differ by less than float32 can tell.
"""

import math

import torch
from torch import Tensor


def mean_log_probs(passes: Tensor) -> Tensor:
    """The log of the mean probabilities, so that softmax of it is the mean softmax.

    passes   (T, N, C)  logits
    returns  (N, C)     float32 or better, at most 0; finite where the logits are
    """
    log_probs = passes.double().log_softmax(dim=-1)
    return _like(passes, log_probs.logsumexp(dim=0) - math.log(len(passes)))


def mean_logits(passes: Tensor) -> Tensor:
    """Logits whose softmax is the mean softmax, and whose energy is the mean energy: (T, N, C) logits -> (N, C).

    Of `mean_log_probs` the energy says nothing, for it is 0 for every image.
    """
    return mean_log_probs(passes) + _like(passes, passes.double().logsumexp(dim=-1).mean(dim=0))[:, None]


def predictive_entropy(passes: Tensor) -> Tensor:
    """Of the mean probabilities: the total uncertainty. (T, N, C) logits -> (N,), nats in [0, log C]."""
    return _like(passes, torch.special.entr(passes.double().softmax(dim=-1).mean(dim=0)).sum(dim=-1))


def expected_entropy(passes: Tensor) -> Tensor:
    """The mean of the answers' own entropies. (T, N, C) logits -> (N,), nats in [0, `predictive_entropy`]."""
    return _like(passes, torch.special.entr(passes.double().softmax(dim=-1)).sum(dim=-1).mean(dim=0))


def mutual_information(passes: Tensor) -> Tensor:
    """How far the answers disagree: the mean of KL(answer || mean answer).

    passes   (T, N, C)  logits
    returns  (N,)       nats in [0, log min(C, T)]; `predictive_entropy` - `expected_entropy`, and 0 for one pass

    Summed as p log(p / m) - p + m: the last two add up to nothing, and no term is negative.
    """
    probs = passes.double().softmax(dim=-1)
    mean = probs.mean(dim=0)
    terms = torch.special.xlogy(probs, probs / mean.clamp_min(torch.finfo(mean.dtype).tiny)) - probs + mean
    return _like(passes, terms.sum(dim=-1).mean(dim=0).clamp_min(0))


def _like(passes: Tensor, result: Tensor) -> Tensor:
    """float64 for float64 logits, float32 for all others."""
    return result.to(torch.promote_types(passes.dtype, torch.float32))
