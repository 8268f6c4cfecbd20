"""How good are frozen features? Two cheap classifiers on top of them say so: a linear one and nearest neighbors.

Both get the *training images under test transforms*: no augmentation, the network in eval mode. Their probabilities
go to `evaluate`, so that probe accuracies carry intervals like any other.

Linear probe: multinomial logistic regression on standardized features, L-BFGS, C chosen by validation on the training
labels; deterministic, and within half a point of the papers' SGD schedules. Neighbors: Wu et al. 2018,
arXiv:1805.01978, Sec. 3.4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wazuka.evaluation.arrays import Floats, Integers, as_floats, as_integers

if TYPE_CHECKING:
    from torch import Tensor

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # C, the inverse of the penalty


def features(network: "Callable[[Tensor], Tensor]", images: Any, batch: int = 256, device: Any = "cpu") -> "Tensor":
    """What `network` makes of images, in batches and without gradient; -> (N, D) float32 on the host.

    network  float images in [0, 1] (n, C, H, W) -> (n, ...); an nn.Module is in eval mode meanwhile, for batch norm
             fitted on the test images would be cheating; whatever follows the first dimension is flattened
    images   (N, C, H, W), uint8 (divided by 255) or float in [0, 1]; array or tensor
    """
    import torch
    from torch import nn

    images = torch.as_tensor(images)
    if len(images) == 0:
        raise ValueError("there is no image to take features of")
    modes = {m: m.training for m in network.modules()} if isinstance(network, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        with torch.inference_mode():
            parts = []
            for part in images.split(batch):
                part = part.to(device)
                part = part.float() / 255 if part.dtype == torch.uint8 else part.float()
                parts.append(network(part).flatten(start_dim=1).float().cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.cat(parts).clone()  # a clone taken outside inference mode may be used anywhere


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear probe.

    strength    the C that validation chose
    validation  accuracy that each C reached on held-out training labels; empty where too few classes had two labels
    n_classes   columns of the answers; the training labels may hold fewer classes
    """

    strength: float
    validation: dict[float, float]
    n_classes: int
    mean: Floats
    scale: Floats
    model: Any

    def predict(self, features: Any) -> Floats:
        """(N, D) -> (N, n_classes) probabilities; 0 for a class that was not among the training labels."""
        probs = np.zeros((len(features), self.n_classes))
        probs[:, self.model.classes_] = self.model.predict_proba((as_floats(features) - self.mean) / self.scale)
        return probs


def linear_probe(
    features: Any,
    labels: Any,
    n_classes: int,
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    folds: int = 5,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear probe; C is the one with the best cross-validated accuracy (ties: the lower NLL).

    features  (N, D)  of training images
    labels    (N,)    in [0, n_classes); a class with a single label sits out of the validation
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    features, labels = as_floats(features), as_integers(labels)
    _check(features, labels, n_classes)
    if len(np.unique(labels)) < 2:
        raise ValueError("a linear probe needs labels of at least two classes")

    def standardization(rows: Floats) -> tuple[Floats, Floats]:
        scale = rows.std(axis=0)
        return rows.mean(axis=0), np.where(scale > 1e-12, scale, 1.0)  # a dead feature stays 0

    def path(rows: Floats, targets: Integers) -> Any:
        model = LogisticRegression(max_iter=1000, warm_start=True)
        for strength in sorted(strengths):  # from the strongest penalty on, each starts where the last one ended
            yield strength, model.set_params(C=strength).fit(rows, targets)

    counts = np.bincount(labels, minlength=n_classes)
    validation: dict[float, float] = {}
    best = 1.0
    twice = counts[labels] >= 2
    rows, targets = features[twice], labels[twice]
    if len(np.unique(targets)) >= 2:
        smallest = int(np.bincount(targets)[np.unique(targets)].min())
        scores = {strength: np.zeros(2) for strength in strengths}  # right answers, log-likelihood
        for train, held_out in StratifiedKFold(min(folds, smallest), shuffle=True, random_state=seed).split(
            rows, targets
        ):
            mean, scale = standardization(rows[train])
            for strength, model in path((rows[train] - mean) / scale, targets[train]):
                logs = model.predict_log_proba((rows[held_out] - mean) / scale)
                columns = np.searchsorted(model.classes_, targets[held_out])
                right = logs.argmax(axis=1) == columns
                scores[strength] += right.sum(), logs[np.arange(len(columns)), columns].sum()
        best = max(scores, key=lambda strength: tuple(scores[strength]))
        validation = {strength: float(score[0] / len(targets)) for strength, score in scores.items()}
    mean, scale = standardization(features)
    model = LogisticRegression(C=best, max_iter=1000).fit((features - mean) / scale, labels)
    return LinearProbe(best, validation, n_classes, mean, scale, model)


def neighbors_for(n: int, n_classes: int) -> int:
    """k of the weighted vote: 200, or n / 50 (at least 1) where there are fewer than 200 training images a class."""
    return 200 if n >= 200 * n_classes else max(1, min(200, n // 50))


def neighbor_probe(
    train: Any,
    labels: Any,
    test: Any,
    n_classes: int,
    *,
    k: int,
    temperature: float | None = None,
    batch: int = 1024,
) -> Floats:
    """Vote of the k training images nearest by cosine; -> (M, n_classes) shares of the vote, rows sum to 1.

    train        (N, D)  features of training images; labels (N,) in [0, n_classes)
    test         (M, D)
    k            200 with temperature 0.1 for the papers' weighted vote, 5 without for the plain one; at most N is used
    temperature  a vote weighs exp(cosine / temperature); None: every vote weighs the same, and a tie goes to the class
                 with the nearest neighbors
    """
    import torch
    import torch.nn.functional as F

    bank, queries = torch.as_tensor(as_floats(train)), torch.as_tensor(as_floats(test))
    targets = as_integers(labels)
    _check(bank.numpy(), targets, n_classes)
    if k < 1 or (temperature is not None and temperature <= 0):
        raise ValueError(f"k must be at least 1 and temperature positive, got {k} and {temperature}")
    bank, classes = F.normalize(bank, dim=1).float(), torch.as_tensor(targets)
    votes = []
    for part in F.normalize(queries, dim=1).float().split(batch):
        cosine, nearest = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        # Less one before the exponent: the same shares, and exp can't overflow. The plain vote's weights fall by less
        # than a vote in all, which decides ties and nothing else.
        weights = ((cosine - 1) / temperature).exp() if temperature else 1 + 1e-6 * cosine
        votes.append(torch.zeros(len(part), n_classes).scatter_add_(1, classes[nearest], weights))
    total = torch.cat(votes).double()
    return as_floats(total / total.sum(dim=1, keepdim=True))


def _check(features: Floats, labels: Integers, n_classes: int) -> None:
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels) or len(labels) == 0:
        raise ValueError(f"need features (N, D) and labels (N,) with N >= 1, got {features.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"labels must lie in [0, {n_classes}), got {labels.min()} to {labels.max()}")
