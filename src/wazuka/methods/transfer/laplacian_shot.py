"""LaplacianShot: each image takes the class of a near prototype, and likes to agree with its nearest neighbors.

Ziko, Dolz, Granger & Ben Ayed 2020, "Laplacian Regularized Few-Shot Learning", ICML, arXiv:2006.15486;
imtiazziko/LaplacianShot (train_lshot.py, lshot_update.py), followed where paper and code differ. The labeled images
are the paper's support set, the unlabeled ones its queries. As in the code: the graph holds queries alone and is not
made symmetric; rectified prototypes are the mean of items times their weight, not divided by the sum of the weights;
the shift of the queries stays for all that follows.
Differs from it: the center is the mean of all features given to fit, as in simpleshot.py. A class that rectifying
leaves without an item keeps its first prototype (the code loses the class). The graph leaves an image itself out by
its place, not by being the nearest: copies of an image are neighbors. Neighbors among very many images are all but
exact (functional/neighbors.py). Without unlabeled images nothing is shifted, and the labeled ones alone rectify.
New images, and labeled ones, are answered by the same update, once, against their nearest neighbors among the unlabeled
images remembered with their answers; the paper has no such images.
The paper names classes; its probabilities are flat, for squared distances lie in [0, 4] and nothing sharpens them. The
shift assumes that labeled and unlabeled images have the same classes in the same shares.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.functional.features import centered_unit, check_fit, check_predict
from wazuka.functional.neighbors import nearest
from wazuka.functional.prototypes import class_means, squared_distances_of_many


def rectified(prototypes: Tensor, items: Tensor, sharpness: float) -> Tensor:
    """Prototypes moved to the items that lie nearest to them, which counters the bias of few labels (Sec. 2.3.3).

    prototypes  (C, D)
    items       (N, D)  support images and shifted queries
    sharpness           what cosines are multiplied by before a softmax over classes makes them weights
    returns     (C, D)  mean over a class's items of weight times item; the old one where a class has no item
    """
    cosines = F.normalize(items, dim=1) @ F.normalize(prototypes, dim=1).T
    assigned = cosines.argmax(dim=1)
    weights = (sharpness * cosines).softmax(dim=1).gather(1, assigned[:, None])
    moved = class_means(weights * items, assigned, len(prototypes))
    empty = assigned.bincount(minlength=len(prototypes)) == 0
    return torch.where(empty[:, None], prototypes, moved)


def agreement(probs: Tensor, neighbors: Tensor) -> Tensor:
    """The summed probabilities of each image's neighbors, W y; (M, C), (N, K) rows of it -> (N, C)."""
    return sum((probs[column] for column in neighbors.T), probs.new_zeros(len(neighbors), probs.shape[1]))


def bound_updates(unary: Tensor, neighbors: Tensor, weight: float, limit: int) -> Tensor:
    """Minimize the energy by its concave bound (Eq. 12), all images at a time.

    unary      (N, C)  squared distances to the prototypes, a
    neighbors  (N, K)  rows of each image's neighbors, W
    weight             lambda, >= 0: what agreement with a neighbor counts against a squared distance of 1
    limit              most updates
    returns    (N, C)  probabilities y, from y = softmax(-a) on: y = softmax(-a + lambda W y), until the energy,
                       the sum of y log y + a y - lambda (W y) y, moves by no more than 1e-6 of itself
    """
    probs, last = (-unary).softmax(dim=1), torch.inf
    pull = weight * agreement(probs, neighbors)
    for step in range(limit):
        probs = (pull - unary).softmax(dim=1)
        pull = weight * agreement(probs, neighbors)
        energy = float((torch.xlogy(probs, probs) + (unary - pull) * probs).sum(dtype=torch.float64))
        if step > 1 and abs(energy - last) <= 1e-6 * abs(last):
            break
        last = energy
    return probs


@dataclass(frozen=True, kw_only=True)
class LaplacianShotSettings:
    rectify: bool = True           # proto_rect
    neighbors: int = 2             # the code's knn of 3 counts the image itself
    neighbor_weight: float = 0.7   # lambda; the paper tunes it on other classes, in 0.1 .. 1.5
    sharpness: float = 10.0        # of the weights that rectify
    update_limit: int = 20

    def __post_init__(self) -> None:
        if self.neighbors < 1 or self.update_limit < 1:
            raise ValueError(
                f"neighbors and update_limit must be at least 1, got {self.neighbors} and {self.update_limit}"
            )
        if self.neighbor_weight < 0 or self.sharpness < 0:
            raise ValueError(
                f"neighbor_weight and sharpness must not be negative, got {self.neighbor_weight} and {self.sharpness}"
            )


class LaplacianShot(Head):
    """Names classes by nearest prototypes, smoothed over a graph of nearest neighbors.

    It remembers the unlabeled images' features: a saved head is as large as they are.
    """

    center: Tensor      # (D,)
    shift: Tensor       # (D,)    eta: from the queries' mean to the support's
    prototypes: Tensor  # (C, D)
    bank: Tensor        # (U, D)  the unlabeled images, centered, of length 1, not shifted
    answers: Tensor     # (U, C)  their probabilities

    def __init__(self, classes: int, settings: LaplacianShotSettings | None = None):
        super().__init__()
        self.classes, self.settings = classes, settings or LaplacianShotSettings()

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        check_fit(features, labels, self.classes)
        s, labeled = self.settings, labels >= 0
        center = features.mean(dim=0)
        support, queries = centered_unit(features[labeled], center), centered_unit(features[~labeled], center)
        prototypes, shift = class_means(support, labels[labeled], self.classes), torch.zeros_like(center)
        if s.rectify:
            if len(queries):
                shift = support.mean(dim=0) - queries.mean(dim=0)
            prototypes = rectified(prototypes, torch.cat([support, queries + shift]), s.sharpness)
        neighbors = nearest(queries, queries, s.neighbors, same=True)[1]
        unary = squared_distances_of_many(queries, prototypes - shift)
        answers = bound_updates(unary, neighbors, s.neighbor_weight, s.update_limit)
        self.remember(center=center, shift=shift, prototypes=prototypes, bank=queries, answers=answers)
        probs = answers.new_zeros(len(labels), self.classes)
        probs[~labeled], probs[labeled] = answers, self.predict(features[labeled]).to(answers.dtype)
        return probs.float()

    def predict(self, features: Tensor) -> Tensor:
        if not hasattr(self, "prototypes"):
            raise UserError("LaplacianShot knows no classes yet: call fit, or load a fitted head's state.")
        check_predict(features, self.prototypes.shape[1])
        features = centered_unit(features.to(self.prototypes.dtype), self.center)
        pull = agreement(self.answers, nearest(features, self.bank, self.settings.neighbors)[1])
        unary = squared_distances_of_many(features, self.prototypes - self.shift)
        return (self.settings.neighbor_weight * pull - unary).softmax(dim=1).float()
