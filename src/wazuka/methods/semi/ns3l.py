"""NS3L: tell the network which classes an unlabeled image is not, and leave open which one it is.

Chen, Shah & Kyrillidis 2020, "Negative sampling in semi-supervised learning", ICML, arXiv:1911.05166;
johnchenresearch/NS3L (ns3l.py). The paper adds the term to other methods, which have it as `negative_weight`; here it
stands alone on supervised learning. Its code is a piece for a harness (perrying/realistic-ssl-evaluation-pytorch) whose
networks augment in every training pass, so that negatives come from one random view and another one learns.
Differs from it:
- `guess_view` and `learn_view` may be of different strength; both weak is the code's, a strong learner FixMatch's way;
- guesses come from a pass of their own, normalized by its own batch and without gradient; labeled images and learning
  views share the other pass, which alone moves batch norm's running statistics;
- the threshold is a share of 1 / C, to serve any number of classes: 0.04 of 10 classes is 0.4.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.guessing import negative_sampling_loss
from wazuka.functional.schedules import gaussian_ramp
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics


@dataclass(frozen=True, kw_only=True)
class NS3LSettings:
    """The code gives the threshold, its harness the form of the ramp; batches, averaging and optimizer are those of
    the baselines of google-research/mixmatch, to compare with.
    """

    labeled_batch: int = 64
    unlabeled_ratio: int = 1       # unlabeled images per labeled one
    guess_view: Literal["weak", "strong"] = "weak"  # which view makes the negatives
    learn_view: Literal["weak", "strong"] = "weak"  # which view learns them
    negative_share: float = 0.4    # of 1 / C: a class guessed below it is a negative one
    negative_weight: float = 1.0   # ours: the code names none
    ramp: float = 0.4              # share of the run in which the weight rises: 200,000 of 500,000 steps
    averaging: float = 0.999       # decay of the weights used to answer
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02))

    def __post_init__(self) -> None:
        if self.labeled_batch < 1 or self.unlabeled_ratio < 1:
            raise ValueError("labeled_batch and unlabeled_ratio must be at least 1")
        for name, view in (("guess_view", self.guess_view), ("learn_view", self.learn_view)):
            if view not in ("weak", "strong"):
                raise ValueError(f'{name} must be "weak" or "strong", got {view!r}')
        if not 0 < self.negative_share < 1:
            raise ValueError(
                f"negative_share must lie in (0, 1), else all classes could be negative, got {self.negative_share}"
            )
        if not self.negative_weight >= 0:
            raise ValueError(f"negative_weight must not be negative, got {self.negative_weight}")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp is a share of the run and must lie in (0, 1], got {self.ramp}")


class NS3L(Method):
    """One network, two views of each unlabeled image; answers come from the averaged weights.

    net      images -> (N, classes) logits
    classes  C
    """

    def __init__(self, net: nn.Module, classes: int, settings: NS3LSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or NS3LSettings()
        self.threshold = self.settings.negative_share / classes
        self.average = AveragedWeights(net, self.settings.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        views = {"guessing": s.guess_view, "learning": s.learn_view}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=views),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s, n = self.settings, len(batch.images)
        guesses = self._guess(batch.guessing)
        logits = self.net(torch.cat([batch.images, batch.learning]))
        supervised = F.cross_entropy(logits[:n], batch.labels)
        # a mean over all images, where the labeled ones count as zero
        negative = negative_sampling_loss(guesses, logits[n:], self.threshold).sum() / len(logits)
        total = supervised + gaussian_ramp(progress, s.ramp) * s.negative_weight * negative
        used = (guesses < self.threshold).any(dim=1).float().mean()  # share of the images that are told anything
        return total, as_tensor_parts(supervised=supervised, unlabeled=negative, used=used)

    @torch.no_grad()
    def _guess(self, images: Tensor) -> Tensor:
        with frozen_statistics(self.net):
            probs = self.net(images).softmax(dim=1)
        torch.clear_autocast_cache()  # it holds weights that were cast without a gradient
        return probs

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
