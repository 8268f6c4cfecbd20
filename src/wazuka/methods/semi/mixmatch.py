"""MixMatch: guess a label from several weak views, sharpen it, and mix all images and labels with each other.

Berthelot, Carlini, Goodfellow, Papernot, Oliver & Raffel 2019, arXiv:1905.02249, NeurIPS; google-research/mixmatch.
Equation numbers are the paper's. As in the code, every pass is normalized by its own batch, and only the first of the
mixed ones moves batch norm's running statistics.
Differs from it: the views are made by the data stream, whose unlabeled images contain the labeled ones (as in the
authors' later work; there they do not); with an `unlabeled_ratio` above 1, not in the paper, the passes grow and stay
as many. `negative_weight` adds what an image is *not* (NS3L: Chen, Shah & Kyrillidis 2020, arXiv:1911.05166), on the
views as they are before mixing: their guessing passes then keep a gradient, which spares the second pass.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.augment.mixing import mixing_weights, mixup
from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.brier import squared_error
from wazuka.functional.guessing import negative_sampling_loss, sharpen, soft_cross_entropy
from wazuka.functional.schedules import linear_ramp
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.interleaved import aside, interleaved


@dataclass(frozen=True, kw_only=True)
class MixMatchSettings:
    """Defaults are the authors' for CIFAR-10 (runs/table1.sh); SVHN takes an unlabeled_weight of 250."""

    labeled_batch: int = 64          # Sec. 4.1
    unlabeled_ratio: int = 1         # Alg. 1: as many unlabeled images as labeled ones
    views: int = 2                   # K, Sec. 3.5
    temperature: float = 0.5         # T, Sec. 3.5; 1 does not sharpen
    alpha: float = 0.75              # of the Beta distribution that mixing weights come from, Sec. 3.5
    unlabeled_weight: float = 75.0   # lambda_U, Sec. 4.2.1
    ramp: float = 1 / 64             # share of the run in which that weight rises, mixmatch.py: 2^14 of 2^20 steps
    negative_weight: float = 0.0     # of the NS3L term, ramped alike; 0: plain MixMatch
    negative_share: float = 0.4      # a class guessed below this share of 1 / C is a negative: 0.04 of 10, ns3l.py
    averaging: float = 0.999         # decay of the weights used to answer, Sec. 4.1
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02)  # Sec. 4.1, mixmatch.py
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_ratio, self.views) < 1:
            raise ValueError("labeled_batch, unlabeled_ratio and views must be at least 1")
        if not (self.temperature > 0 and self.alpha > 0):
            raise ValueError(f"temperature and alpha must be above 0, got {self.temperature} and {self.alpha}")
        if self.unlabeled_weight < 0 or self.negative_weight < 0:
            raise ValueError(
                f"weights must not be negative, got unlabeled_weight {self.unlabeled_weight} and negative_weight "
                f"{self.negative_weight}"
            )
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp must be a share of the run, in [0, 1], got {self.ramp}")
        if not 0 < self.negative_share < 1:
            raise ValueError(
                f"negative_share must lie in (0, 1), else every class could be a negative, got {self.negative_share}"
            )


class MixMatch(Method):
    """One network; every image is mixed with a random one of all; answers come from the averaged weights.

    net      images -> (N, classes) logits
    classes  C
    """

    def __init__(self, net: nn.Module, classes: int, settings: MixMatchSettings | None = None):
        super().__init__()
        self.net, self.classes, self.settings = net, classes, settings or MixMatchSettings()
        self.average = AveragedWeights(net, self.settings.averaging)
        self.views = {f"weak_{number}": "weak" for number in range(1, self.settings.views + 1)}

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=self.views),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s, labeled = self.settings, len(batch.images)
        views = [getattr(batch, name) for name in self.views]
        looks = [aside(self.net, view, learning=s.negative_weight > 0) for view in views]
        guess = torch.stack([logits.detach().softmax(dim=1) for logits in looks]).mean(dim=0)  # Eq. 6
        images, targets = self._mixed(batch, views, sharpen(guess, s.temperature))              # Eq. 7 to 11
        logits = interleaved(self.net, images, labeled, batches=1 + s.views, remembered=0)
        supervised = soft_cross_entropy(targets[:labeled], logits[:labeled]).mean()             # Eq. 3
        unlabeled = squared_error(targets[labeled:], logits[labeled:]).mean()                   # Eq. 4
        ramp = linear_ramp(progress, s.ramp)
        total = supervised + ramp * s.unlabeled_weight * unlabeled                              # Eq. 5
        parts = as_tensor_parts(supervised=supervised, unlabeled=unlabeled, confidence=guess.amax(dim=1).mean())
        if s.negative_weight > 0:
            threshold = s.negative_share / self.classes
            negative = torch.stack([negative_sampling_loss(guess, look, threshold) for look in looks]).mean()
            total = total + ramp * s.negative_weight * negative
            parts |= as_tensor_parts(negative=negative)
        return total, parts

    def _mixed(self, batch: Batch, views: list[Tensor], guess: Tensor) -> tuple[Tensor, Tensor]:
        """All images and targets, labeled ones first, each mixed with a random one of all and nearer to itself."""
        images = torch.cat([batch.images, *views])
        targets = torch.cat([F.one_hot(batch.labels, self.classes).to(guess.dtype), guess.repeat(len(views), 1)])
        weights = mixing_weights(len(images), self.settings.alpha, torch.default_generator, keep_first=True)
        partners = torch.randperm(len(images)).to(images.device, non_blocking=True)
        return mixup(images, targets, partners, weights)

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
