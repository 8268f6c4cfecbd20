"""ReMixMatch: align guesses with the class prior, anchor strong views to a weak view's guess, and tell rotations apart.

Berthelot, Carlini, Cubuk, Kurakin, Sohn, Zhang & Raffel 2020, arXiv:1911.09785, ICLR; google-research/remixmatch
(remixmatch_no_cta.py, cta/cta_remixmatch.py), followed where the paper is silent. Every pass is normalized by its own
batch, and only the last of the mixed ones moves batch norm's running statistics.
Differs from it: the views are made by the data stream; with an `unlabeled_ratio` above 1, not in the paper, the passes
grow and stay as many; image i is turned by i mod 4 quarters, there each quarter of the batch by another one (images
come in random order, so it is the same).

The paper's ablation, Table 3: `copies` (K); `premix_weight=0`; `rotation_weight=0`; `alignment=False`; "L2 unlabeled
loss" is `unlabeled_loss="squared", unlabeled_weight=75`; "no strong augmentation" is `anchoring=False`: all views are
weak and the guess is their mean, as in MixMatch. "No weak augmentation" is a matter of policies: let "weak" be strong.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.augment.ctaugment import CTAugment
from wazuka.augment.mixing import mixing_weights, mixup
from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.errors import UserError
from wazuka.functional.brier import squared_error
from wazuka.functional.guessing import align, sharpen, soft_cross_entropy
from wazuka.functional.schedules import linear_ramp
from wazuka.nets.backbone import Backbone, glorot_linear
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics
from wazuka.parts.interleaved import aside, interleaved
from wazuka.parts.running import RecentMean, RunningMean


def one_turn_each(images: Tensor) -> tuple[Tensor, Tensor]:
    """Image i turned counterclockwise by i mod 4 quarters, exactly: pixels are moved, never interpolated.

    images   (N, C, H, H)
    returns  (N, C, H, H)  in the same order
             (N,)          int64, how many quarter turns
    """
    height, width = images.shape[2:]
    if height != width:
        raise UserError(
            f"ReMixMatch turns its images, which must be square for that, and these are {height}x{width} pixels; open "
            "them with one number as their size, or set rotation_weight to 0."
        )
    turned = torch.empty_like(images)
    for turns in range(4):
        turned[turns::4] = torch.rot90(images[turns::4], turns, dims=(2, 3))
    return turned, torch.arange(len(images), device=images.device) % 4


@dataclass(frozen=True, kw_only=True)
class ReMixMatchSettings:
    """Defaults are the authors' for CIFAR-10 with 250 labels and more (cta/cta_remixmatch.py, runs/ssl/cifar10.sh);
    with 40 labels they take copies=1, rotation_weight=2, ramp=1/8.
    """

    labeled_batch: int = 64          # Sec. 4
    unlabeled_ratio: int = 1         # Alg. 1: as many unlabeled images as labeled ones
    copies: int = 8                  # K, strong views of each unlabeled image, Sec. 3.2
    anchoring: bool = True           # augmentation anchoring, Sec. 3.2; False: the mean of weak views guesses
    alignment: bool = True           # distribution alignment, Sec. 3.1
    temperature: float = 0.5         # T, Sec. 3.4; 1 does not sharpen
    alpha: float = 0.75              # of the Beta distribution that mixing weights come from, Sec. 4
    unlabeled_loss: Literal["cross_entropy", "squared"] = "cross_entropy"  # Eq. 3
    unlabeled_weight: float = 1.5    # lambda_U, Sec. 4; for "squared" 75
    premix_weight: float = 0.5       # lambda_U1, of the first strong view before mixing, Eq. 4
    rotation_weight: float = 0.5     # lambda_r, Eq. 5; not ramped
    ramp: float = 1 / 64             # share of the run in which the two weights above it rise: 2^14 of 2^20 steps
    averaging: float = 0.999         # decay of the weights used to answer, Sec. 4
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02)  # Sec. 4
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_ratio, self.copies) < 1:
            raise ValueError("labeled_batch, unlabeled_ratio and copies must be at least 1")
        if not (self.temperature > 0 and self.alpha > 0):
            raise ValueError(f"temperature and alpha must be above 0, got {self.temperature} and {self.alpha}")
        if self.unlabeled_loss not in ("cross_entropy", "squared"):
            raise ValueError(f'unlabeled_loss must be "cross_entropy" or "squared", got {self.unlabeled_loss!r}')
        if min(self.unlabeled_weight, self.premix_weight, self.rotation_weight) < 0:
            raise ValueError(
                "weights must not be negative, got unlabeled_weight, premix_weight and rotation_weight "
                f"{self.unlabeled_weight}, {self.premix_weight} and {self.rotation_weight}"
            )
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp must be a share of the run, in [0, 1], got {self.ramp}")


class ReMixMatch(Method):
    """One network with a second head for rotations; answers come from the averaged weights.

    net      a Backbone: images -> (N, classes) logits, and features for the second head
    classes  C
    learned  CTAugment, whose rates are learned from probe views; None: the strong policy is fixed
    """

    def __init__(
        self,
        net: Backbone,
        classes: int,
        settings: ReMixMatchSettings | None = None,
        learned: CTAugment | None = None,
    ):
        super().__init__()
        self.net, self.classes, self.settings = net, classes, settings or ReMixMatchSettings()
        s = self.settings
        self.learned = learned if s.anchoring else None
        self.rotation = glorot_linear(net.feature_size, 4) if s.rotation_weight > 0 else None
        self.average = AveragedWeights(net, s.averaging)
        self.guessed = RecentMean(classes)              # p_model, Sec. 3.1
        self.prior = RunningMean(classes, decay=0.999)  # p_data, estimated from the labels as they come
        self.learning_view = "strong" if s.anchoring else "weak"
        self.copies = [f"{self.learning_view}_{number}" for number in range(1, s.copies + 1)]

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        labeled = {"images": self.learning_view} | ({"probe": "probe"} if self.learned is not None else {})
        unlabeled = {"weak": "weak"} | dict.fromkeys(self.copies, self.learning_view)
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views=labeled, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=unlabeled),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s, labeled = self.settings, len(batch.images)
        views = [batch.weak, *(getattr(batch, name) for name in self.copies)]
        truth = F.one_hot(batch.labels, self.classes).float()
        looks = self._looks(views)
        guess = self._guess(looks[:1] if s.anchoring else looks, truth)

        images, targets = self._mixed([batch.images, *views], truth, guess)
        logits = interleaved(self.net, images, labeled, batches=1 + len(views), remembered=len(views))
        supervised = soft_cross_entropy(targets[:labeled], logits[:labeled]).mean()          # Eq. 3, first term
        error = soft_cross_entropy if s.unlabeled_loss == "cross_entropy" else squared_error
        unlabeled = error(targets[labeled:], logits[labeled:]).mean()                         # Eq. 3, second term
        ramp = linear_ramp(progress, s.ramp)
        total = supervised + ramp * s.unlabeled_weight * unlabeled
        parts = as_tensor_parts(supervised=supervised, unlabeled=unlabeled, confidence=guess.amax(dim=1).mean())
        if s.premix_weight > 0:
            premix = soft_cross_entropy(guess, looks[1]).mean()                               # Eq. 4
            total = total + ramp * s.premix_weight * premix
            parts |= as_tensor_parts(premix=premix)
        if self.rotation is not None:
            rotation = self._rotation_loss(self.rotation, views[1])                           # Eq. 5
            total = total + s.rotation_weight * rotation
            parts |= as_tensor_parts(rotation=rotation)
        if self.learned is not None:
            self._learn_augmentation(self.learned, batch)
        return total, parts

    def _looks(self, views: list[Tensor]) -> list[Tensor]:
        """Logits of the unmixed views that are needed: the weak one, the first copy to learn on, all to be averaged."""
        s = self.settings
        learning = s.premix_weight > 0
        looked_at = views[: 1 + learning] if s.anchoring else views
        return [aside(self.net, view, learning and number == 1) for number, view in enumerate(looked_at)]

    @torch.no_grad()
    def _guess(self, looks: list[Tensor], truth: Tensor) -> Tensor:
        """The mean guess (N, C), aligned and then sharpened: one target for all views of an image."""
        probs = torch.stack([logits.softmax(dim=1) for logits in looks]).mean(dim=0)
        if not self.settings.alignment:
            return sharpen(probs, self.settings.temperature)
        aligned = align(probs, self.guessed.value, self.prior.value)  # both are read before, and updated after
        self.guessed.update(probs.mean(dim=0))
        self.prior.update(truth.mean(dim=0))
        return sharpen(aligned, self.settings.temperature)

    def _mixed(self, views: list[Tensor], truth: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        """All images and targets, labeled ones first, each mixed with a random one of all and nearer to itself."""
        images, targets = torch.cat(views), torch.cat([truth, guess.repeat(len(views) - 1, 1)])
        weights = mixing_weights(len(images), self.settings.alpha, torch.default_generator, keep_first=True)
        partners = torch.randperm(len(images)).to(images.device, non_blocking=True)
        return mixup(images, targets, partners, weights)

    def _rotation_loss(self, head: nn.Module, images: Tensor) -> Tensor:
        turned, turns = one_turn_each(images)
        with frozen_statistics(self.net):
            features = self.net.features(turned)
        return F.cross_entropy(head(features).float(), turns)

    @torch.no_grad()
    def _learn_augmentation(self, learned: CTAugment, batch: Batch) -> None:
        # the averaged weights in eval mode, as in cta/lib/train.py; the probability of the truth is the proximity
        probs = self.predict(batch.probe)
        learned.update(batch.probe_draw, probs.gather(1, batch.labels[:, None])[:, 0])

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
