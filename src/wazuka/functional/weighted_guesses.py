"""Learning guesses that count for more or less: the unlabeled loss that FixMatch's heirs share."""

import torch.nn.functional as F
from torch import Tensor

from wazuka.functional.guessing import sharpen, soft_cross_entropy


def weighted_guess_loss(guesses: Tensor, strong: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the strong view against the weak view's guess, times what the image counts.

    guesses      (N, C)  probabilities from the weak view; no gradient flows into them
    strong       (N, C)  logits of the same N images
    weights      (N,)    in [0, 1]; no gradient flows into them; a mask may be bool
    temperature          0: the likeliest class is the target; above: the sharpened guess, left soft
    returns      ()      nats, mean over all N: an image of weight 0 counts as zero, and the weights are not normalized
    """
    guesses, weights = guesses.detach(), weights.detach().to(strong.dtype)
    if temperature == 0:
        each = F.cross_entropy(strong, guesses.argmax(dim=1), reduction="none")
    else:
        each = soft_cross_entropy(sharpen(guesses, temperature), strong)
    return (weights * each).mean()
