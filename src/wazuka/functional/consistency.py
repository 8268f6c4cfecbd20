"""How far two views of one image are from being told alike."""

from torch import Tensor


def squared_consistency(logits: Tensor, target: Tensor) -> Tensor:
    """The squared difference of probabilities (Laine & Aila 2017, Algorithm 1, with the target held fixed).

    logits   (N, C)
    target   (N, C)  logits of the other pass; no gradient flows into them
    returns  (N,)    mean over classes, in [0, 2 / C]
    """
    return (logits.softmax(dim=1) - target.detach().softmax(dim=1)).square().mean(dim=1)
