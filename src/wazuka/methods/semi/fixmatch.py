"""FixMatch: guess a label from a weak view, learn it on a strong view.

Sohn et al. 2020, arXiv:2001.07685; google-research/fixmatch. Equation numbers are the paper's.
Differs from it: the views are made by the data stream, not here; distribution alignment (the paper's Sec. 5,
ReMixMatch's Sec. 3.1) is an option. So are two changes that paid on small images, see docs/decisions.md: the averaged
weights may guess (`guesser`), as Mean Teacher's do, and guesses may stay soft (`temperature`), as UDA's and
ReMixMatch's do. Two settings trade exactness for speed, chiefly on a CPU, see benchmarks/fixmatch_step.py:
`frugal` backpropagates only through images that have a loss of their own, see parts/onlookers.py;
`joint=False` guesses in a pass of its own, without gradient: batch norm then normalizes the two passes apart, and its
running statistics are those of the pass that learns. With both, a strong view whose guess was rejected only looks on.
The passes themselves, which FixMatch shares with its heirs, are in parts/passes.py.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.augment.ctaugment import CTAugment
from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.guessing import align, confident_guess_loss, sharpened_guess_loss
from wazuka.functional.schedules import cosine_7_16
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.passes import weak_to_strong
from wazuka.parts.running import RecentMean, RunningMean


@dataclass(frozen=True, kw_only=True)
class FixMatchSettings:
    labeled_batch: int = 64        # B, Sec. 4
    unlabeled_ratio: int = 7       # mu, Sec. 4
    threshold: float = 0.95        # tau, Sec. 2.2
    unlabeled_weight: float = 1.0  # lambda_u, Sec. 2.2
    alignment: bool = False        # distribution alignment, Sec. 5
    guesser: Literal["live", "average"] = "live"  # whose weights guess; "average" needs no joint pass
    temperature: float = 0.0       # 0: hard guesses, Sec. 2.2; above: sharpened soft ones
    joint: bool = True             # one forward pass over all views, as the authors' code has it
    frugal: bool = False           # no backward pass through images without a loss
    averaging: float = 0.999       # decay of the weights used to answer, Sec. 4
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.03, weight_decay=5e-4, schedule=cosine_7_16)  # Sec. 4, App. B
    )

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative (above 1 no guess is used), got {self.threshold}")
        if self.unlabeled_ratio < 1 or self.unlabeled_weight < 0:
            raise ValueError("unlabeled_ratio must be at least 1 and unlabeled_weight not negative")
        if self.guesser not in ("live", "average"):
            raise ValueError(f'guesser must be "live" or "average", got {self.guesser!r}')
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative (0: hard guesses), got {self.temperature}")


class FixMatch(Method):
    """One network, two views of each unlabeled image; answers come from the averaged weights.

    net      images -> (N, classes) logits
    classes  C
    learned  CTAugment, whose rates are learned from probe views; None: the strong policy is fixed (RandAugment)
    """

    def __init__(
        self,
        net: nn.Module,
        classes: int,
        settings: FixMatchSettings | None = None,
        learned: CTAugment | None = None,
    ):
        super().__init__()
        self.net, self.settings, self.learned = net, settings or FixMatchSettings(), learned
        self.average = AveragedWeights(net, self.settings.averaging)
        self.guessed = RecentMean(classes)           # p_model, ReMixMatch Sec. 3.1
        self.prior = RunningMean(classes, decay=0.999)  # p_data, estimated from the labels as they come

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        labeled = {"images": "weak"} | ({"probe": "probe"} if self.learned is not None else {})
        guessed = {"weak": "weak", "strong": "strong"}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views=labeled, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=guessed),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        labeled, strong, guesses, _ = weak_to_strong(
            self.net, batch, lambda weak: self._judge(weak, batch.labels),
            joint=s.joint, frugal=s.frugal, average=self.average if s.guesser == "average" else None,
        )  # fmt: skip
        supervised = F.cross_entropy(labeled, batch.labels)  # Eq. 3
        if s.temperature == 0:
            unlabeled, used = confident_guess_loss(guesses, strong, s.threshold)  # Eq. 4
        else:
            unlabeled, used = sharpened_guess_loss(guesses, strong, s.threshold, s.temperature)
        total = supervised + s.unlabeled_weight * unlabeled  # Sec. 2.2
        if self.learned is not None:
            self._learn_augmentation(self.learned, batch)
        return total, as_tensor_parts(supervised=supervised, unlabeled=unlabeled, used=used)

    def _judge(self, weak: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The guesses, and which of them the loss will use."""
        guesses = self._guess(weak, labels)
        return guesses, guesses.amax(dim=1) >= self.settings.threshold

    @torch.no_grad()
    def _guess(self, weak: Tensor, labels: Tensor) -> Tensor:
        probs = weak.softmax(dim=1)
        if not self.settings.alignment:
            return probs
        aligned = align(probs, self.guessed.value, self.prior.value)  # both are read before, and updated after
        self.guessed.update(probs.mean(dim=0))
        self.prior.update(F.one_hot(labels, probs.shape[1]).float().mean(dim=0))
        return aligned

    @torch.no_grad()
    def _learn_augmentation(self, learned: CTAugment, batch: Batch) -> None:
        # the averaged weights in eval mode, as in cta/lib/train.py; the probability of the truth is the proximity
        probs = self.predict(batch.probe)
        learned.update(batch.probe_draw, probs.gather(1, batch.labels[:, None])[:, 0])

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
