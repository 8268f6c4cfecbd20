"""PT-MAP: features made Gaussian-like, and optimal transport that shares the unlabeled images out among the classes.

Hu, Gripon & Pateux 2021, "Leveraging the Feature Distribution in Transfer-based Few-Shot Learning", ICANN,
arXiv:2006.03806; yhu01/PT-MAP (test_standard.py), followed where paper and code differ.
Beware: it takes for known which share of the unlabeled images each class has, the same for all as published. Where that
is wrong, images are forced into classes that they don't belong to, and the head can fall far below the nearest class
mean. `prior="labels"` takes the shares of the labels instead, which helps where labels were drawn from the images at
random, and not where each class was given the same number.
Differs from it: the power transform takes the root of the size and keeps the sign, which changes nothing for the
paper's features (none is negative) and leaves others defined. The code's QR reduction is left out: it changes no
distance and saves no time with more images than features. The plan is found by Newton's method, in log space, from the
last round's offsets on, in place of Sinkhorn's scaling; it is the same plan.
The labeled images' rows stay one-hot, and are returned so.
New images, which the paper has not: they are transformed as unlabeled ones, and answered by the final centers with the
final plan's offsets of the classes, so that an unlabeled image asked again gets the answer it had.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.functional.features import centered_unit, check_fit, check_predict
from wazuka.functional.prototypes import class_means


def power_transform(features: Tensor, power: float) -> Tensor:
    """(|z| + 1e-6)^power with the sign of z, scaled to length 1 (Eq. 2); (N, D) -> (N, D)."""
    roots = (features.abs() + 1e-6).pow(power)
    return F.normalize(torch.where(features < 0, -roots, roots), dim=1)


def transport(logits: Tensor, columns: Tensor, start: Tensor, tolerance: float, limit: int) -> tuple[Tensor, Tensor]:
    """The plan that Sinkhorn's scaling of exp(logits) to the given sums of rows and columns converges to (Eq. 7).

    logits     (N, C)  float64, -lambda times squared distance
    columns    (C,)    how many images each class gets, above 0, summing to N
    start      (C,)    offsets to start from; the plan does not depend on them
    tolerance          largest miss of a column, as a share of it
    limit              most steps
    returns    (N, C)  rows sum to 1, columns to `columns` within the tolerance
               (C,)    its offsets: the plan is the softmax over classes of logits + offsets

    Newton's method on the offsets, whose dual, columns . offsets - sum of logsumexp(logits + offsets), is concave: a
    few steps each as dear as a round of scaling, of which it takes hundreds where classes lie well apart.
    """

    def dual(offsets: Tensor) -> Tensor:
        return columns @ offsets - (logits + offsets).logsumexp(dim=1).sum()

    offsets, shared = start, len(logits) / len(columns) ** 2  # what all offsets share is free, and held where it is
    for _ in range(limit if len(logits) else 0):
        plan = (logits + offsets).softmax(dim=1)
        sums = plan.sum(dim=0)
        if ((sums / columns - 1).abs() <= tolerance).all():
            break
        curvature = (sums * (1 + 1e-12)).diag() - plan.T @ plan + shared
        step = torch.linalg.solve(curvature, columns - sums)
        step = step * (10 / step.abs().max()).clamp_max(1)  # nearly one-hot plans are flat, and Newton would fly off
        rise, before = (columns - sums) @ step, dual(offsets)
        while dual(offsets + step) < before + 0.1 * rise and rise > 1e-12 * len(logits):
            step, rise = step / 2, rise / 2
        offsets = offsets + step
    return (logits + offsets).softmax(dim=1), offsets


@dataclass(frozen=True, kw_only=True)
class PTMapSettings:
    prior: Literal["uniform", "labels"] = "uniform"  # which share of the unlabeled images each class gets
    power: float = 0.5       # beta; 1 leaves the features as they are
    sharpness: float = 10.0  # lambda, of squared distances in [0, 4]
    step: float = 0.2        # alpha, how far the centers move in a round
    rounds: int = 20
    tolerance: float = 1e-6  # by which a class may miss its share of the images, relative to it

    def __post_init__(self) -> None:
        if self.prior not in ("uniform", "labels"):
            raise ValueError(f'prior must be "uniform" or "labels", got {self.prior!r}')
        if not min(self.power, self.sharpness, self.tolerance) > 0:
            raise ValueError(
                f"power, sharpness and tolerance must be above 0, got {self.power}, {self.sharpness}, {self.tolerance}"
            )
        if not 0 <= self.step <= 1:
            raise ValueError(f"step must lie in [0, 1], got {self.step}")
        if self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")


class PTMap(Head):
    """Moves class centers to the images that optimal transport assigns to them."""

    center: Tensor   # (D,)    mean of the transformed unlabeled images
    centers: Tensor  # (C, D)  of the classes
    offsets: Tensor  # (C,)    of the classes, float64

    def __init__(self, classes: int, settings: PTMapSettings | None = None):
        super().__init__()
        self.classes, self.settings = classes, settings or PTMapSettings()

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        check_fit(features, labels, self.classes)
        s, labeled = self.settings, labels >= 0
        transformed = power_transform(features, s.power)
        support, queries = transformed[labeled], transformed[~labeled]
        del transformed
        center = (queries if len(queries) else support).mean(dim=0)
        support, queries = centered_unit(support, support.mean(dim=0)), centered_unit(queries, center)

        given = F.one_hot(labels[labeled], self.classes).to(support.dtype)
        counts = given.sum(dim=0).double()
        shares = counts / counts.sum() if s.prior == "labels" else torch.full_like(counts, 1 / self.classes)
        centers, offsets = class_means(support, labels[labeled], self.classes), torch.zeros_like(counts)
        for last in [False] * s.rounds + [True]:
            logits = self._logits(queries, centers)
            plan, offsets = transport(logits, shares * len(queries), offsets, s.tolerance, limit=500)
            if not last:
                soft = plan.to(queries.dtype)
                estimates = (soft.T @ queries + given.T @ support) / (soft.sum(dim=0) + given.sum(dim=0))[:, None]
                centers = centers + s.step * (estimates - centers)
        self.remember(center=center, centers=centers, offsets=offsets)
        probs = torch.zeros(len(labels), self.classes, device=features.device)
        probs[labeled], probs[~labeled] = given.float(), plan.float()
        return probs

    def predict(self, features: Tensor) -> Tensor:
        if not hasattr(self, "centers"):
            raise UserError("PT-MAP knows no classes yet: call fit, or load a fitted head's state.")
        check_predict(features, self.centers.shape[1])
        features = centered_unit(power_transform(features.to(self.centers.dtype), self.settings.power), self.center)
        return (self._logits(features, self.centers) + self.offsets).softmax(dim=1).float()

    def _logits(self, features: Tensor, centers: Tensor) -> Tensor:
        """-lambda times the squared distance, but for |z|^2, which is the same for all classes; (N, D) -> (N, C)."""
        return self.settings.sharpness * (2 * features @ centers.T - centers.square().sum(dim=1)).double()
