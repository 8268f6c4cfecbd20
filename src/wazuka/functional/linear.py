"""Linear classifiers fitted in one go, and weights for several classifiers' answers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MANY = 5000  # inputs from which a fit stops early


def minimize(loss: Callable[[], Tensor], parameters: list[Tensor], steps: int) -> None:
    """L-BFGS with a strong Wolfe line search, in place, for at most so many steps."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(closure)


def fit_linear(
    inputs: Tensor,
    targets: Tensor,
    penalty: float,
    weights: Tensor | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on soft labels: weight (D, C) and bias (C,).

    inputs   (N, D)
    targets  (N, C)  rows sum to 1
    penalty          times the sum of squared weights, beside the mean cross-entropy in nats; the bias is free
    weights  (N,)    of the images, which sum to 1; None: all the same
    start            weight and bias to begin with; None: zero
    steps            of L-BFGS, at most; None: until it rests, or 40 for many inputs
    """
    kind = inputs.dtype
    if len(inputs) <= MANY:  # in float32 the search ends short of the minimum, where the order of images tells
        inputs, targets = inputs.double(), targets.double()
    steps = steps if steps is not None else 40 if len(inputs) > MANY else 300
    zeros = (inputs.new_zeros(inputs.shape[1], targets.shape[1]), inputs.new_zeros(targets.shape[1]))
    weight, bias = (value.detach().to(inputs.dtype).clone().requires_grad_() for value in (start or zeros))
    mixed = targets / len(targets) if weights is None else targets * weights[:, None]

    def loss() -> Tensor:
        return -(mixed * (inputs @ weight + bias).log_softmax(dim=1)).sum() + penalty * weight.square().sum()

    minimize(loss, [weight, bias], steps)
    return weight.detach().to(kind), bias.detach().to(kind)


def logistic(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Probabilities of all images, by logistic regression on the labeled ones; each class weighs the same.

    features  (N, D)
    labels    (N,)    -1 where unlabeled
    penalty           as in `fit_linear`
    returns   (N, C)

    The weights of such a classifier lie in the span of the labeled features, so that is where they are sought.
    """
    known = labels >= 0
    labeled = features[known]
    if len(labeled) < features.shape[1]:
        values, vectors = torch.linalg.eigh((labeled @ labeled.T).double())
        kept = values > 1e-9 * values[-1].clamp_min(1e-12)
        basis = (labeled.T.double() @ (vectors[:, kept] / values[kept].sqrt())).to(features.dtype)
        features = features @ basis
        labeled = features[known]
    counts = labels[known].bincount(minlength=classes)
    each = 1 / (counts[labels[known]] * (counts > 0).sum())
    exact, targets = labeled.double(), F.one_hot(labels[known], classes).double()
    weight, bias = fit_linear(exact, targets, penalty, each.double(), steps=200)
    return (features @ weight.to(features.dtype) + bias.to(features.dtype)).softmax(dim=1)


def stacked(answers: Tensor, labels: Tensor, start: Tensor, hold: float) -> Tensor:
    """Weights of several classifiers' log-probabilities, by what they say of labels they have not seen (Wolpert 1992).

    answers  (M, n, C)  log-probabilities
    labels   (n,)
    start    (M,)       weights to begin with, and to be held to
    hold                strength of that, in labels: hold / n times the squared distance
    returns  (M,)       of least mean cross-entropy of the softmax of the weighted sum
    """
    exact, origin = answers.double(), start.double()
    weights = origin.clone().requires_grad_()

    def loss() -> Tensor:
        logits = torch.einsum("m,mnc->nc", weights, exact)
        return F.cross_entropy(logits, labels) + hold / len(labels) * (weights - origin).square().sum()

    minimize(loss, [weights], 100)
    return weights.detach().to(start.dtype)


def with_shares(
    probs: Tensor, pool: Tensor, center: Tensor, strength: float, steps: int = 30
) -> tuple[Tensor, Tensor]:
    """Probabilities for classes that are not equally frequent, and how frequent they are (Saerens et al. 2002).

    probs     (N, C)  as if classes were equally frequent
    pool      (N,)    bool, the images whose shares are estimated
    center    (C,)    shares to be held to
    strength          of that, against the pool's own voice of 1
    returns   (N, C)
              (C,)    estimated shares
    """
    if not bool(pool.any()):
        return probs, center
    asked, estimated = probs[pool], center.clone()
    for _ in range(steps):
        answers = asked * estimated
        answers = answers / answers.sum(dim=1, keepdim=True)
        estimated = (answers.mean(dim=0) + strength * center) / (1 + strength)
    moved = probs * estimated
    return moved / moved.sum(dim=1, keepdim=True), estimated
