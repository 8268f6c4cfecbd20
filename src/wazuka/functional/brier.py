"""Squared error of probabilities: a loss that one wild guess can't blow up."""

from torch import Tensor


def squared_error(targets: Tensor, logits: Tensor) -> Tensor:
    """The squared difference of probabilities, as MixMatch learns its guesses (Berthelot et al. 2019, Eq. 4).

    targets  (N, C)  probabilities; gradients flow into both
    logits   (N, C)
    returns  (N,)    mean over classes (the Brier score is the sum), in [0, 2 / C]
    """
    return (targets - logits.softmax(dim=1)).square().mean(dim=1)
