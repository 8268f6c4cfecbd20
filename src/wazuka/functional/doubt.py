"""What a softmax leaves to all classes but the likeliest."""

from torch import Tensor


def doubt(logits: Tensor, temperature: float) -> Tensor:
    """One minus the largest of softmax(z / T).

    logits       (N, C)
    temperature  T, above 0
    returns      (N,)    float64, in [0, 1 - 1/C]

    Summed from the other classes, for the difference of two numbers near 1 would lose the order of sure answers.
    """
    probs = (logits.double() / temperature).softmax(dim=1)
    return probs.scatter(1, probs.argmax(dim=1, keepdim=True), 0).sum(dim=1)
