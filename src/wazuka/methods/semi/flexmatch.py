"""FlexMatch: FixMatch with a lower threshold for classes that are learned less.

Zhang et al. 2021, "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS,
arXiv:2110.08263; TorchSSL/TorchSSL and microsoft/Semi-supervised-learning (algorithms/flexmatch), which agree and are
followed where the paper is silent. What was last guessed surely of each unlabeled image is recorded; how much of the
record a class holds says how well it is learned. In a step the mask is read off the record first, and the record
changed after. It is changed by guesses that pass the fixed threshold, never the flexible one.
At the start nothing is recorded, all thresholds are 0 and every guess is learned: that is intended.
The record takes the classes to be about equally frequent: a rare one keeps a low threshold. On SVHN the authors' own
figures fall below FixMatch's.
Differs from the code: while all images are recorded as one class it keeps the thresholds it had; here they follow.
The passes and their options are FixMatch's, see parts/passes.py.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.processes import gathered
from wazuka.functional.schedules import cosine_7_16
from wazuka.functional.weighted_guesses import weighted_guess_loss
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.passes import weak_to_strong

Curve = Literal["convex", "linear", "concave"]


def learning_effect(record: Tensor, classes: int, warm_up: bool) -> Tensor:
    """How well each class is learned, beta: how often it is recorded, beside the class recorded most.

    record   (N,)  int64, the class last recorded for each unlabeled image; -1 for none yet
    warm_up        the images without a record count as one more class in "most": while they are the majority, no
                   class passes for well learned
    returns  (C,)  in [0, 1]; all 0 while nothing is recorded, all 1 when all classes are recorded equally often
    """
    counts = record.new_zeros(classes + 1).scatter_add_(0, record + 1, torch.ones_like(record))
    most = (counts if warm_up else counts[1:]).max()
    return counts[1:] / most.clamp_min(1)


def flexible_mask(guesses: Tensor, effect: Tensor, threshold: float, mapping: Curve) -> Tensor:
    """Which guesses reach the threshold of the class they name, M(beta) * tau.

    guesses    (N, C)  probabilities
    effect     (C,)    beta, in [0, 1]
    threshold          tau, in [0, 1]: the threshold of the class learned best
    mapping            M: "convex" b / (2 - b), slow at first; "linear" b; "concave" ln(1 + b) / ln 2, fast at first
    returns    (N,)    bool
    """
    confidence, guess = guesses.max(dim=1)
    if mapping == "convex":
        effect = effect / (2 - effect)
    elif mapping == "concave":
        effect = effect.log1p() / math.log(2)
    return confidence >= threshold * effect[guess]


def recorded(record: Tensor, rows: Tensor, sure: Tensor) -> Tensor:
    """The record after a batch.

    record   (N,)  as in `learning_effect`
    rows     (M,)  int64, which images of the pool were guessed
    sure     (M,)  int64, the class guessed surely, or -1, which changes nothing; of an image that comes twice the
                   later sure guess counts
    returns  (N,)  a new tensor
    """
    place = torch.arange(len(rows), device=rows.device)
    latest = torch.full_like(record, -1).scatter_reduce_(0, rows, torch.where(sure >= 0, place, -1), "amax")
    return torch.where(latest >= 0, sure[latest.clamp_min(0)], record)


@dataclass(frozen=True, kw_only=True)
class FlexMatchSettings:
    labeled_batch: int = 64        # B, as FixMatch
    unlabeled_ratio: int = 7       # mu, as FixMatch
    threshold: float = 0.95        # tau, the largest threshold, and the fixed one of the record
    mapping: Curve = "convex"      # M, the non-linear mapping function
    warm_up: bool = True           # threshold warm-up: images not recorded count as a class
    unlabeled_weight: float = 1.0  # lambda_u
    guesser: Literal["live", "average"] = "live"  # whose weights guess; "average" needs no joint pass
    temperature: float = 0.0       # 0: hard guesses, as the authors; above: sharpened soft ones (theirs: 0.5)
    joint: bool = True             # one forward pass over all views, as the authors' code has it
    frugal: bool = False           # no backward pass through images without a loss
    averaging: float = 0.999       # decay of the weights used to answer
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.03, weight_decay=5e-4, schedule=cosine_7_16)  # as FixMatch
    )

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        if self.mapping not in ("convex", "linear", "concave"):
            raise ValueError(f'mapping must be "convex", "linear" or "concave", got {self.mapping!r}')
        if self.unlabeled_ratio < 1 or self.unlabeled_weight < 0:
            raise ValueError("unlabeled_ratio must be at least 1 and unlabeled_weight not negative")
        if self.guesser not in ("live", "average"):
            raise ValueError(f'guesser must be "live" or "average", got {self.guesser!r}')
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative (0: hard guesses), got {self.temperature}")


class FlexMatch(Method):
    """One network, and a record of what it was sure of; answers come from the averaged weights.

    net        images -> (N, classes) logits
    classes    C
    unlabeled  how many images the unlabeled pool holds
    """

    record: Tensor

    def __init__(self, net: nn.Module, classes: int, unlabeled: int, settings: FlexMatchSettings | None = None):
        super().__init__()
        self.net, self.classes, self.settings = net, classes, settings or FlexMatchSettings()
        self.average = AveragedWeights(net, self.settings.averaging)
        self.register_buffer("record", torch.full((unlabeled,), -1))

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        guessed = {"weak": "weak", "strong": "strong"}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=guessed, index="rows"),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        labeled, strong, guesses, used = weak_to_strong(
            self.net, batch, lambda weak: self._judge(weak, batch.rows),
            joint=s.joint, frugal=s.frugal, average=self.average if s.guesser == "average" else None,
        )  # fmt: skip
        supervised = F.cross_entropy(labeled, batch.labels)
        unlabeled = weighted_guess_loss(guesses, strong, used, s.temperature)
        total = supervised + s.unlabeled_weight * unlabeled
        return total, as_tensor_parts(supervised=supervised, unlabeled=unlabeled, used=used.float().mean())

    def _judge(self, weak: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        s, guesses = self.settings, weak.softmax(dim=1)
        used = flexible_mask(guesses, learning_effect(self.record, self.classes, s.warm_up), s.threshold, s.mapping)
        confidence, guess = guesses.max(dim=1)
        sure = torch.where(confidence >= s.threshold, guess, -1)  # by the fixed threshold, and after the mask was made
        self.record.copy_(recorded(self.record, *gathered(torch.stack([rows, sure], dim=1)).unbind(dim=1)))
        return guesses, used

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
