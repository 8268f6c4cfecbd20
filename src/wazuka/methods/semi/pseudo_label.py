"""Pseudo-Label: where the network is sure of an unlabeled image, learn its own guess as if it were the label.

Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML
workshop; as google-research/remixmatch has it (pseudo_label.py), whose numbers for CIFAR-10 are the defaults. The
paper itself knows no threshold (that is 0), and its weight rises from 0 at epoch 100 to 3 at epoch 600.
Differs from it: a guess at the threshold itself is used (there: only above it).

With `negative_weight` it also learns which classes an image is *not*, from a second view (NS3L: Chen, Shah &
Kyrillidis 2020, arXiv:1911.05166; johnchenresearch/NS3L). There the network augments what it is given, so that the
second pass sees the images anew; here the data stream makes that view. Its threshold is given as a share of 1 / C.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.guessing import confident_guess_loss, negative_sampling_loss
from wazuka.functional.schedules import linear_ramp
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics


@dataclass(frozen=True, kw_only=True)
class PseudoLabelSettings:
    """Sources: pseudo_label.py and mixmatch's runs/table5.sh (SVHN: unlabeled_weight 2); ns3l.py."""

    labeled_batch: int = 64
    unlabeled_ratio: int = 1       # unlabeled images per labeled one
    view: Literal["weak", "strong"] = "weak"
    threshold: float = 0.95
    unlabeled_weight: float = 1.0
    ramp: float = 0.4              # share of the run in which the weights of both unlabeled losses rise
    negative_weight: float = 0.0   # of NS3L's loss; 0: neither the loss nor the pass for it
    negative_share: float = 0.4    # classes guessed below negative_share / C are negative; ns3l.py: 0.04 of 10 classes
    averaging: float = 0.999       # decay of the weights used to answer
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02))

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_ratio) < 1:
            raise ValueError("labeled_batch and unlabeled_ratio must be at least 1")
        if self.view not in ("weak", "strong"):
            raise ValueError(f'view must be "weak" or "strong", got {self.view!r}')
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative (above 1 no guess is used), got {self.threshold}")
        if not (self.unlabeled_weight >= 0 and self.negative_weight >= 0):
            raise ValueError(
                f"unlabeled_weight and negative_weight must not be negative, got {self.unlabeled_weight}, "
                f"{self.negative_weight}"
            )
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share of the run, in [0, 1], got {self.ramp}")
        if not 0 < self.negative_share < 1:
            raise ValueError(
                f"negative_share must lie in (0, 1), else all classes could be negative, got {self.negative_share}"
            )


class PseudoLabel(Method):
    """One network that takes its own sure guesses for labels; answers come from the averaged weights.

    net      images -> (N, classes) logits
    classes  C
    """

    def __init__(self, net: nn.Module, classes: int, settings: PseudoLabelSettings | None = None):
        super().__init__()
        self.net, self.classes, self.settings = net, classes, settings or PseudoLabelSettings()
        self.average = AveragedWeights(net, self.settings.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        guessed = {"unlabeled": s.view} | ({"again": s.view} if s.negative_weight > 0 else {})
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=guessed),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s, risen = self.settings, linear_ramp(progress, self.settings.ramp)
        supervised = F.cross_entropy(self.net(batch.images), batch.labels)  # this pass moves batch norm's statistics
        with frozen_statistics(self.net):
            logits = self.net(batch.unlabeled)
        guesses = logits.detach().softmax(dim=1)
        unlabeled, used = confident_guess_loss(guesses, logits, s.threshold)
        total = supervised + s.unlabeled_weight * risen * unlabeled
        parts = as_tensor_parts(supervised=supervised, unlabeled=unlabeled, used=used)
        if s.negative_weight > 0:
            negative = self._negative_loss(guesses, batch)
            total = total + s.negative_weight * risen * negative
            parts |= as_tensor_parts(negative=negative)
        return total, parts

    def _negative_loss(self, guesses: Tensor, batch: Batch) -> Tensor:
        """NS3L's loss, from a second pass; a mean over all images of the step, where the labeled ones count as zero."""
        with frozen_statistics(self.net):
            logits = self.net(batch.again)
        losses = negative_sampling_loss(guesses, logits, self.settings.negative_share / self.classes)
        return losses.sum() / (len(batch.images) + len(losses))

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
