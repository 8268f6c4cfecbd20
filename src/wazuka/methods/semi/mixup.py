"""MixUp: learn mixtures of two images as mixtures of their two labels, guessed ones where there are none.

Zhang, Cisse, Dauphin & Lopez-Paz 2018, "mixup: Beyond Empirical Risk Minimization", ICLR, arXiv:1710.09412; made
semi-supervised as in google-research/mixmatch (mixup.py), whose numbers for CIFAR-10 are the defaults: labeled images
mix with labeled ones and unlabeled with unlabeled, each with its mirror place in the batch; every image draws a weight
of its own and keeps at least half of itself (the paper: one weight per batch, which may be small); guesses stay as
soft as they are.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.augment.mixing import mixing_weights, mixup
from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.guessing import soft_cross_entropy
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics


def mixed_with_reversed(images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mix the first image with the last, the second with the last but one, and so on, and their targets alike.

    images   (N, C, H, W)  float
    targets  (N, K)        probabilities
    weights  (N,)          in [0, 1]: how much of itself each keeps
    returns  the mixed images and targets
    """
    partners = torch.arange(len(images) - 1, -1, -1, device=images.device)
    return mixup(images, targets, partners, weights)


@dataclass(frozen=True, kw_only=True)
class MixUpSettings:
    """Sources: mixup.py and runs/table5.sh (SVHN: alpha 0.25)."""

    labeled_batch: int = 64
    unlabeled_ratio: int = 1    # unlabeled images per labeled one
    view: Literal["weak", "strong"] = "weak"
    alpha: float = 0.75         # of Beta(alpha, alpha), from which the weights come
    labels_alone: bool = False  # supervised mixup: unlabeled images are not asked for
    averaging: float = 0.999    # decay of the weights used to answer
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02))

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_ratio) < 1:
            raise ValueError("labeled_batch and unlabeled_ratio must be at least 1")
        if self.view not in ("weak", "strong"):
            raise ValueError(f'view must be "weak" or "strong", got {self.view!r}')
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")


class MixUp(Method):
    """One network that sees only mixed images when it learns; answers come from the averaged weights.

    net      images -> (N, classes) logits
    classes  C
    """

    def __init__(self, net: nn.Module, classes: int, settings: MixUpSettings | None = None):
        super().__init__()
        self.net, self.classes, self.settings = net, classes, settings or MixUpSettings()
        self.average = AveragedWeights(net, self.settings.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        labeled = Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels")
        if s.labels_alone:
            return (labeled,)
        return labeled, Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views={"unlabeled": s.view})

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        images, targets = self._mixed(batch.images, F.one_hot(batch.labels, self.classes).float())
        supervised = soft_cross_entropy(targets, self.net(images)).mean()  # this pass moves batch norm's statistics
        if self.settings.labels_alone:
            return supervised, as_tensor_parts(supervised=supervised)
        with frozen_statistics(self.net):
            with torch.no_grad():
                guesses = self.net(batch.unlabeled).softmax(dim=1)
            images, targets = self._mixed(batch.unlabeled, guesses)
            unlabeled = soft_cross_entropy(targets, self.net(images)).mean()
        return supervised + unlabeled, as_tensor_parts(supervised=supervised, unlabeled=unlabeled)

    def _mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        weights = mixing_weights(len(images), self.settings.alpha, generator, keep_first=True)
        return mixed_with_reversed(images, targets, weights)

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
