"""Distillation: a student learns from what a trained teacher says of images without labels.

Chen, Kornblith, Swersky, Norouzi & Hinton 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners"
(SimCLRv2), NeurIPS, arXiv:2006.10029; google-research/simclr (colabs/distillation_self_training.ipynb). The last of
their three steps: pre-train without labels, fine-tune on the few labels, distill.
Differs from it: SGD with a learning rate of 0.1 takes the place of LARS, which is made for batches of thousands and
does not feel the size of a loss. SGD does: the gradient shrinks with t, so at the temperature that the paper takes
where the student is the teacher's network anew (0.1; else 1.0, and they find the effect small) it learns at a tenth of
the pace unless the learning rate makes up for it. The weights that answer may be averaged.
"""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.guessing import soft_cross_entropy
from wazuka.functional.schedules import cosine
from wazuka.parts.averaged import AveragedWeights


def distillation_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """t^2 times the cross-entropy of softmax(student / t) against softmax(teacher / t) (Sec. 2; t^2 as in the code).

    teacher      (N, C)  logits; no gradient flows into them. -inf is a class that the teacher rules out
    student      (N, C)  logits of the same N views
    temperature  t > 0, of both: towards 0 the teacher's first guess is learned as a label
    returns      ()      nats, mean over images; its gradient vanishes where both say the same
    """
    goal = (teacher.detach() / temperature).softmax(dim=1)
    return temperature**2 * soft_cross_entropy(goal, student / temperature).mean()


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """The authors distill on ImageNet only; where they say nothing for small images, the comment says whose it is."""

    labeled_batch: int = 64
    unlabeled_ratio: int = 8     # 512 images a step: their batch on CIFAR-10 (README, pre-training)
    teacher_weight: float = 1.0  # alpha, Sec. 2; the labels count 1 - alpha, and 1 looks at no label
    temperature: float = 1.0     # the code's; see above
    averaging: float = 0.0       # decay of the weights used to answer; 0: the live ones, as in the paper
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.1, nesterov=False, weight_decay=1e-4, schedule=cosine)  # lr: ours
    )

    def __post_init__(self) -> None:
        if self.unlabeled_ratio < 1:
            raise ValueError(f"unlabeled_ratio must be at least 1, got {self.unlabeled_ratio}")
        if not 0 < self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight must lie in (0, 1], got {self.teacher_weight}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


class Distillation(Method):
    """A student before a frozen teacher; both see the same view, cropped and flipped.

    net      the student: images -> (N, classes) logits
    teacher  a trained Method, or a network of (N, classes) logits, for the same classes in the same order. It is
             copied, never learns and stays in eval mode, so its batch norm neither moves nor looks at the batch.
             None: the student can answer, as one does whose training is over, but not learn
    """

    def __init__(self, net: nn.Module, settings: DistillationSettings | None = None, teacher: nn.Module | None = None):
        super().__init__()
        self.net, self.settings = net, settings or DistillationSettings()
        self.teacher = None if teacher is None else copy.deepcopy(teacher).requires_grad_(False).eval()
        self.average = AveragedWeights(net, self.settings.averaging)

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        unlabeled = Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views={"view": "weak"})
        if s.teacher_weight == 1:
            return (unlabeled,)
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"), unlabeled)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        told = self._told(batch.view)
        if s.teacher_weight == 1:
            distilled = distillation_loss(told, self.net(batch.view), s.temperature)
            return distilled, as_tensor_parts(distilled=distilled)
        n = len(batch.images)
        logits = self.net(torch.cat([batch.images, batch.view]))
        supervised = F.cross_entropy(logits[:n], batch.labels)
        distilled = distillation_loss(told, logits[n:], s.temperature)
        total = (1 - s.teacher_weight) * supervised + s.teacher_weight * distilled
        return total, as_tensor_parts(distilled=distilled, supervised=supervised)

    def _told(self, images: Tensor) -> Tensor:
        """The teacher's logits, up to a constant of each image."""
        if self.teacher is None:
            raise ValueError("a student needs a teacher to learn from; give Distillation(..., teacher=...)")
        if isinstance(self.teacher, Method):
            return self.teacher.predict(images).log()
        logits: Tensor = self.teacher(images)
        return logits.float()

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
