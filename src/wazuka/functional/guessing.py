"""Guessing labels for unlabeled images: aligning guesses with the class prior, sharpening, learning the sure ones."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def align(probs: Tensor, model_mean: Tensor, prior: Tensor) -> Tensor:
    """Distribution alignment (ReMixMatch, Berthelot et al. 2020, Sec. 3.1): scale by prior / model, renormalize.

    probs       (N, C)  guesses
    model_mean  (C,)    what the model has been guessing on average, before alignment
    prior       (C,)    what it should guess on average
    returns     (N, C)  probabilities; the 1e-6 are the authors' code's
    """
    scaled = probs * ((prior + 1e-6) / (model_mean + 1e-6))
    return scaled / scaled.sum(dim=1, keepdim=True)


def confident_guess_loss(guesses: Tensor, strong: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the strong view against the weak view's confident guess (FixMatch, Eq. 4).

    guesses    (N, C)  probabilities from the weak view; no gradient flows into them
    strong     (N, C)  logits of the same N images
    threshold          least probability at which a guess is used; above 1 none is
    returns    ()      nats, mean over all N: a rejected image counts as zero
               ()      share of the images that were used, in [0, 1]
    """
    confidence, guess = guesses.detach().max(dim=1)
    used = (confidence >= threshold).to(strong.dtype)
    return (used * F.cross_entropy(strong, guess, reduction="none")).mean(), used.mean()


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """probs^(1 / temperature), renormalized (MixMatch, Berthelot et al. 2019, Eq. 7): 1 changes nothing, towards 0 the
    largest takes all. (N, C) -> (N, C), at least float32, for powers of small numbers underflow in less.
    """
    logs = probs.to(torch.promote_types(probs.dtype, torch.float32)).clamp_min(1e-30).log()
    return (logs / temperature).softmax(dim=1)


def sharpened_guess_loss(
    guesses: Tensor, strong: Tensor, threshold: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the strong view against the weak view's sharpened guess: what it leaves open stays open
    (UDA, Xie et al. 2020, Sec. 3.2 and 3.3; ReMixMatch, with a threshold of 0).

    As `confident_guess_loss`, to which it tends with a temperature > 0 towards 0; the threshold is held against the
    guess before sharpening.
    """
    guesses = guesses.detach()
    used = (guesses.amax(dim=1) >= threshold).to(strong.dtype)
    return (used * soft_cross_entropy(sharpen(guesses, temperature), strong)).mean(), used.mean()


def soft_cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy against soft targets, nats, (N, C), (N, C) -> (N,). Gradients flow into both."""
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)


def negative_sampling_loss(guesses: Tensor, logits: Tensor, threshold: float) -> Tensor:
    """Tell what an image is *not*: the classes whose guessed probability is below the threshold (NS3L, Chen, Shah &
    Kyrillidis 2020, arXiv:1911.05166, Eq. 3; johnchenresearch/NS3L).

    guesses    (N, C)  probabilities; no gradient flows into them
    logits     (N, C)  of a second pass over the same N images
    threshold          in (0, 1 / C), else all classes of an image could be negative
    returns    (N,)    nats: -log of the probability left to the other classes, at most -log 1e-8; 0 for an image
                       without a negative class

    The mass goes from the negatives to all others in proportion; no winner is chosen.
    """
    others = guesses.detach() >= threshold
    left = logits.log_softmax(dim=1).masked_fill(~others, -torch.inf).logsumexp(dim=1)
    return (-left).clamp(0.0, 8 * math.log(10))
