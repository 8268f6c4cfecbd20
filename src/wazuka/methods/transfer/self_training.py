"""Self-training: fine-tune on labels and on strong views of unlabeled images, whose labels a teacher guessed before.

Xie, Luong, Hovy & Le 2020, "Self-training with Noisy Student improves ImageNet classification", CVPR, arXiv:1911.04252;
google-research/noisystudent (main.py, filter_unlabel.py, local_scripts/run_svhn.sh). Its soft guesses, its filter of
sure images, its balancing of classes and its sum of the two losses are followed; that it helps after transfer too is
from Zoph et al. 2020, "Rethinking Pre-training and Self-training", NeurIPS, arXiv:2006.06882.
`weighting="entropy"` counts each image by how sure its guess is, in place of the filter: Iscen, Tolias, Avrithis &
Chum 2019, "Label Propagation for Deep Semi-supervised Learning", CVPR, arXiv:1904.04725, Eq. 11; ahmetius/LP-DeepSSL.
Differs from it: the teacher's guesses are given once, from whatever made them (a head on frozen features); the student
starts pre-trained, and its noise is the strong view alone: no dropout, no stochastic depth; classes are balanced by
weights, where the authors copy images, and only if asked for, as unlabeled photos need not be balanced; an image that
is filtered out is drawn all the same and counts 0, with the weight it loses given to the others.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.guessing import sharpen, soft_cross_entropy
from wazuka.functional.schedules import staircase
from wazuka.nets import Backbone
from wazuka.parts.tuning import Tuned, Tuning


def sure_weights(guesses: Tensor, threshold: float) -> Tensor:
    """Whether each image passes the filter, scaled to a mean of 1 over the pool (filter_unlabel.py).

    guesses    (M, C)  probabilities
    threshold          least probability of the likeliest class, in [0, 1]
    returns    (M,)    0 where it is below the threshold; all 0 where it is for all
    """
    sure = (guesses.amax(dim=1) >= threshold).float()
    return sure / sure.mean().clamp_min(1 / len(sure))


def certainty(guesses: Tensor) -> Tensor:
    """1 - entropy / log C, divided by the largest in the pool (Iscen et al., Eq. 11; the division is the code's).

    guesses  (M, C)  probabilities
    returns  (M,)    in [0, 1]; all 0 where all guesses are flat
    """
    entropy = -torch.xlogy(guesses, guesses).sum(dim=1)
    sure = (1 - entropy / math.log(guesses.shape[1])).clamp_min(0)
    return sure / sure.max().clamp_min(1e-12)


def class_balance(guesses: Tensor, weights: Tensor) -> Tensor:
    """Weights by which every class that was guessed counts alike over the pool, by its likeliest class.

    guesses  (M, C)  probabilities
    weights  (M,)    at least 0, what each image counts so far
    returns  (M,)    their sum is that of `weights`
    """
    guess = guesses.argmax(dim=1)
    of_class = torch.zeros_like(guesses[0]).index_add(0, guess, weights)
    share = weights.sum() / (of_class > 0).sum().clamp_min(1)
    return weights * (share / of_class.clamp_min(1e-12))[guess]


@dataclass(frozen=True, kw_only=True)
class SelfTrainingSettings:
    """Sources: run_svhn.sh and filter_unlabel.sh; the optimizer is fine-tuning's, see fine_tune.py."""

    labeled_batch: int = 16
    unlabeled_ratio: int = 5        # unlabeled images per labeled one; the unlabeled loss counts as often
    view: Literal["plain", "weak", "strong"] = "strong"  # of labeled and unlabeled images: the student's noise
    temperature: float = 1.0        # guesses ~ p^(1 / t); 0: the likeliest class
    weighting: Literal["threshold", "entropy"] = "threshold"
    threshold: float = 0.3          # of the filter
    balanced: bool = False          # all guessed classes count alike
    unlabeled_weight: float = 1.0   # on top of the ratio
    tuning: Tuning = field(default_factory=Tuning)
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.001, nesterov=False, weight_decay=5e-4, schedule=staircase(2 / 3))
    )

    def __post_init__(self) -> None:
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if self.weighting not in ("threshold", "entropy"):
            raise ValueError(f'weighting must be "threshold" or "entropy", got {self.weighting!r}')
        if self.unlabeled_ratio < 1 or not self.unlabeled_weight >= 0 or not self.temperature >= 0:
            raise ValueError(
                "unlabeled_ratio must be at least 1, unlabeled_weight and temperature not negative, "
                f"got {self.unlabeled_ratio}, {self.unlabeled_weight} and {self.temperature}"
            )
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")


class SelfTraining(Method):
    """A student of labels and of guesses that were made before.

    net      pre-trained; it is tuned in place
    classes  C
    guesses  (M, C) probabilities of the unlabeled pool's M images, in its order
    """

    guesses: Tensor
    weights: Tensor

    def __init__(self, net: Backbone, classes: int, guesses: Tensor, settings: SelfTrainingSettings | None = None):
        super().__init__()
        self.settings = s = settings or SelfTrainingSettings()
        if guesses.ndim != 2 or guesses.shape[1] != classes:
            raise ValueError(f"guesses must be of shape (images, {classes}), got {tuple(guesses.shape)}")
        self.net = Tuned(net, classes, s.tuning)
        guesses = guesses.detach().float()
        weights = certainty(guesses) if s.weighting == "entropy" else sure_weights(guesses, s.threshold)
        self.register_buffer("weights", class_balance(guesses, weights) if s.balanced else weights)
        hard = F.one_hot(guesses.argmax(dim=1), classes).float()
        self.register_buffer("guesses", sharpen(guesses, s.temperature) if s.temperature > 0 else hard)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),
            Stream(
                pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views={"unlabeled": s.view}, index="rows"
            ),
        )

    def players(self) -> dict[Player, Optimizer]:
        return {self: self.net.optimizer(self.settings.optimizer)}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s, n = self.settings, len(batch.images)
        self.net.wake(progress)
        logits = self.net(torch.cat([batch.images, batch.unlabeled]))  # one pass, as in the authors' code
        supervised = F.cross_entropy(logits[:n], batch.labels)
        weights = self.weights[batch.rows]
        unlabeled = (weights * soft_cross_entropy(self.guesses[batch.rows], logits[n:])).mean()
        total = supervised + s.unlabeled_ratio * s.unlabeled_weight * unlabeled  # a sum over images, per labeled one
        return total, as_tensor_parts(supervised=supervised, unlabeled=unlabeled, weight=weights.mean())

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)
