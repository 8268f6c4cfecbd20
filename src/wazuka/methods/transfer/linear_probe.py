"""A linear probe: multinomial logistic regression on frozen features, its penalty chosen by cross-validation.

The protocol is that of Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision",
arXiv:2304.07193; facebookresearch/dinov2 (eval/log_regression.py): L2 penalty, L-BFGS in float64, C from 1e-6 to 1e5
chosen on held-out labels, then a last fit on all of them. `regularization` is 1 / C: scikit-learn's LogisticRegression
with that C minimizes the same.
Differs from it: the code takes features as they are; here they are scaled to length 1, or standardized. It tries 45
values on a tenth of the labels and takes the most accurate; with few labels that is a handful of images and all ties,
so here each power of ten is tried by stratified cross-validation, all folds in one go, each value starting where the
last one ended, and log-loss decides: the strongest penalty within 0.01 nats of the best is taken. A class with one
label is never held out; where fewer than two classes have two, nothing can be tried and `fallback` is taken.
Labels only: unlabeled images are answered and teach nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.functional.features import check_fit, check_predict

GRID = tuple(10.0**power for power in range(6, -6, -1))  # every fourth value of the code's, the strongest first
NEAR = 0.01  # nats a held-out image: less does not tell two penalties apart


def reduced(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the space onto axes that hold all of the data, along which they do not correlate.

    inputs   (N, D)  of mean zero
    returns  (N, R)  coordinates, R = min(N, D)
             (D, R)  the axes, orthonormal: coordinates = inputs @ axes, inputs = coordinates @ axes.T

    Exact for any loss with an L2 penalty: weights off the axes change no logit and cost.
    """
    axes = torch.linalg.qr(inputs.T)[0] if len(inputs) < inputs.shape[1] else None
    inner = inputs if axes is None else inputs @ axes
    turn = torch.linalg.eigh(inner.T @ inner)[1]
    return inner @ turn, turn if axes is None else axes @ turn


def logistic_regression(
    inputs: Tensor, labels: Tensor, used: Tensor, start: Tensor, penalty: float, tolerance: float, limit: int = 500
) -> Tensor:
    """Minimize, for each fold, the sum of cross-entropies of the images it uses + penalty / 2 * |weights|^2.

    inputs     (N, R)        of uncorrelated columns, see `reduced`: the columns are scaled to like curvature first,
                             with which L-BFGS needs tens of steps for any penalty; others would only take longer
    labels     (N,)          int64
    used       (N, K)        0 or 1, which images each of K folds learns from
    start      (R + 1, K, C)
    penalty                  > 0
    tolerance                largest entry of the scaled gradient, nats; under a penalty below 1 its root times less,
                             for there the optimum is flat
    returns    (R + 1, K, C) weights; the last row is the bias, which is not penalized
    """
    folds, classes = start.shape[1:]
    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    penalties = inputs.new_full((inputs.shape[1], 1, 1), penalty)
    penalties[-1] = 0
    curvature = (classes - 1) / classes**2 * inputs.square().sum(dim=0)[:, None, None]  # of the loss at equal shares
    scale = (curvature + penalties).clamp_min(1e-12).rsqrt()
    targets = F.one_hot(labels, classes).to(inputs.dtype)[:, None]
    scaled = start / scale

    def loss() -> float:
        weights = scaled * scale
        logs = (inputs @ weights.flatten(1)).unflatten(1, (folds, classes)).log_softmax(dim=2)
        slope = (inputs.T @ ((logs.exp() - targets) * used[:, :, None]).flatten(1)).view_as(weights)
        scaled.grad = scale * (slope + penalties * weights)
        entropies = -(logs * targets).sum(dim=2)
        return float((used * entropies).sum() + (penalties * weights.square()).sum() / 2)

    goal = tolerance * min(1.0, penalty**0.5)
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=limit, tolerance_grad=goal, tolerance_change=goal**2 / 100, line_search_fn="strong_wolfe"
    )
    optimizer.step(loss)
    return scaled.detach() * scale


def dealt_folds(inputs: Tensor, labels: Tensor, most: int) -> Tensor:
    """Which fold holds each image out: the images of a class are dealt to the folds in turn.

    inputs   (N, D)
    labels   (N,)    int64
    most             folds, >= 2; fewer where no class has so many images
    returns  (N,)    int64; -1 for the only image of its class, which no fold holds out

    They are dealt in the order of a fixed projection of their features, so that the order of images and the numbers
    of classes decide nothing.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(inputs.shape[1], generator=generator, dtype=torch.float64).to(inputs)
    order = (inputs * direction).sum(dim=1).argsort()
    fold = torch.full_like(labels, -1)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        if len(members) > 1:
            fold[members] = torch.arange(len(members), device=labels.device) % most
    return fold


@dataclass(frozen=True, kw_only=True)
class LinearProbeSettings:
    regularization: float | None = None  # 1 / C, on the sum of losses; None: chosen by cross-validation
    scaling: Literal["length", "standardize"] = "length"  # each image to length 1, or by the labeled ones
    folds: int = 5         # at most: no more than the labels of the largest class
    fallback: float = 0.1  # the regularization where cross-validation is not possible

    def __post_init__(self) -> None:
        if self.regularization is not None and not self.regularization > 0:
            raise ValueError(f"regularization must be above 0, or None to choose it, got {self.regularization}")
        if self.scaling not in ("length", "standardize"):
            raise ValueError(f'scaling must be "length" or "standardize", got {self.scaling!r}')
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")
        if not self.fallback > 0:
            raise ValueError(f"fallback must be above 0, got {self.fallback}")


class LinearProbe(Head):
    """Logistic regression on the labeled images' features."""

    weight: Tensor          # (C, D)
    bias: Tensor            # (C,)
    regularization: Tensor  # ()  as chosen

    def __init__(self, classes: int, settings: LinearProbeSettings | None = None):
        super().__init__()
        self.classes, self.settings = classes, settings or LinearProbeSettings()

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        check_fit(features, labels, self.classes)
        s, labeled = self.settings, labels >= 0
        inputs, targets = features[labeled].double(), labels[labeled]
        if s.scaling == "length":
            inputs = F.normalize(inputs, dim=1)
        mean = inputs.mean(dim=0)  # for unit lengths too: with a free bias it changes nothing but the conditioning
        deviation = (inputs - mean).square().mean(dim=0).sqrt()
        dead = deviation <= 1e-9 * inputs.abs().amax()
        scale = torch.where(dead, 1, deviation) if s.scaling == "standardize" else torch.ones_like(deviation)
        inputs, axes = reduced((inputs - mean) / scale)

        penalty = s.regularization or self._chosen(inputs, targets)
        used, start = inputs.new_ones(len(inputs), 1), inputs.new_zeros(inputs.shape[1] + 1, 1, self.classes)
        found = logistic_regression(inputs, targets, used, start, penalty, tolerance=1e-6)[:, 0]
        weight = (axes @ found[:-1] / scale[:, None]).T
        bias = found[-1] - weight @ mean
        kept = features.dtype
        self.remember(weight=weight.to(kept), bias=bias.to(kept), regularization=torch.tensor(penalty))
        return self.predict(features)

    def _chosen(self, inputs: Tensor, labels: Tensor) -> float:
        """The strongest regularization of all but the least log-loss on held-out labels."""
        fold = dealt_folds(inputs, labels, self.settings.folds)
        held_out = fold >= 0
        if len(labels[held_out].unique()) < 2:
            return self.settings.fallback
        folds = int(fold.max()) + 1
        used = (fold[:, None] != torch.arange(folds, device=fold.device)).to(inputs.dtype)
        weights = inputs.new_zeros(inputs.shape[1] + 1, folds, self.classes)
        losses = {}
        for penalty in GRID:
            weights = logistic_regression(inputs, labels, used, weights, penalty, tolerance=1e-3)
            logits = inputs @ weights[:-1].transpose(0, 1) + weights[-1][:, None]  # (K, N, C)
            own = logits[fold[held_out], held_out.nonzero().flatten()]  # of the fold that has not seen the image
            losses[penalty] = float(F.cross_entropy(own, labels[held_out]))
            least = min(losses.values())
            if least <= NEAR or losses[penalty] > least + 10 * NEAR:  # nothing better can follow, or will
                break
        return next(penalty for penalty, loss in losses.items() if loss <= least + NEAR)

    def predict(self, features: Tensor) -> Tensor:
        if not hasattr(self, "weight"):
            raise UserError("This linear probe knows no classes yet: call fit, or load a fitted head's state.")
        check_predict(features, self.weight.shape[1])
        features = features.to(self.weight.dtype)
        logits = features @ self.weight.T
        if self.settings.scaling == "length":
            logits = logits / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return (logits + self.bias).softmax(dim=1).float()
