"""SLA: learn what an image shows and how it was turned as one label, so that turning it confuses nothing.

Lee, Hwang & Shin 2020, "Self-supervised Label Augmentation via Input Transformations", ICML, arXiv:1910.05872;
hankook/SLA (trainers.py, augmentations.py, train.py). It learns from the labeled images alone. The rows of the paper's
tables: SLA+AG is the default, SLA+SI has aggregate=False, SLA+SD mode="distilled"; of what it is compared with, MT is
mode="multitask", DA "augmented", the baseline "plain". The code has no trainer for MT and DA: they follow Sec. 2.1.
Differs from it: weight decay reaches kernels only; the last step answers, where the code keeps the checkpoint that is
best on 5,000 held-out labels; the weights that answer may be averaged.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.nets import Backbone
from wazuka.parts.averaged import AveragedWeights

Mode = Literal["joint", "distilled", "multitask", "augmented", "plain"]
View = Literal["weak", "strong"]

TURNS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3)}  # quarter turns, counterclockwise
COLORS = {  # where each channel comes from, in the order of augmentations.py
    1: ((0, 1, 2),),
    3: ((0, 1, 2), (1, 2, 0), (2, 0, 1)),
    6: tuple(itertools.permutations(range(3))),
}


def transformed(images: Tensor, turns: int, colors: int) -> Iterator[Tensor]:
    """The M = turns x colors copies of the images, one (N, C, H, W) after the other; the first is untouched.

    Pixels are moved and never interpolated: quarter turns, and in each of them exchanges of the color channels.
    """
    for turn in TURNS[turns]:
        turned = torch.rot90(images, turn, dims=(2, 3))
        for order in COLORS[colors]:
            yield turned if order == (0, 1, 2) else torch.stack([turned[:, channel] for channel in order], dim=1)


def joint_labels(labels: Tensor, copies: int) -> Tensor:
    """(N,) classes -> (N M,): y M + j for copy j of an image of class y, the copies of one image side by side."""
    return (labels[:, None] * copies + torch.arange(copies, device=labels.device)).flatten()


def aggregated(logits: Tensor, copies: int) -> Tensor:
    """What an image's copies say together of its class: the mean over j of copy j's logits for (class, j) (Sec. 2.2).

    logits   (N M, C M)  of the joint labels, the copies of one image side by side
    returns  (N, C)      logits: they are averaged, not the probabilities
    """
    return logits.unflatten(0, (-1, copies)).unflatten(2, (-1, copies)).diagonal(dim1=1, dim2=3).mean(dim=2)


def self_distillation_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """t^2 KL(softmax(teacher / t) || softmax(student / t)) (Sec. 2.2; t^2 as in trainers.py).

    teacher  (N, C)  logits, aggregated; no gradient flows into them
    student  (N, C)  logits of the untouched images
    returns  ()      nats, mean over images
    """
    goal = (teacher.detach() / temperature).log_softmax(dim=1)
    said = (student / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(said, goal, reduction="batchmean", log_target=True)


@dataclass(frozen=True, kw_only=True)
class SLASettings:
    """Defaults are the authors' for CIFAR-10 (train.py), there with ResNet-32 and 80,000 steps."""

    labeled_batch: int = 128  # images a step; each counts M times
    view: View = "weak"       # crop and flip, made before the transformations
    turns: int = 4            # rotation: 1 (none), 2 or 4 quarter turns
    colors: int = 1           # color permutation of RGB images: 1 (none), 3 or 6; with turns, all pairs of both
    mode: Mode = "joint"      # what is learned
    aggregate: bool = True    # "joint" answers from all M copies, at M times the cost; False: from the image itself
    summed: bool = False      # the joint loss counts M times (--with-large-loss, for ImageNet and iNaturalist)
    temperature: float = 1.0  # T of "distilled"
    averaging: float = 0.0    # decay of the weights used to answer; 0: the live ones, as in the paper
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.1, nesterov=False, weight_decay=1e-4, schedule=tenths)
    )

    def __post_init__(self) -> None:
        if self.turns not in TURNS or self.colors not in COLORS:
            raise ValueError(f"turns must be 1, 2 or 4 and colors 1, 3 or 6, got {self.turns} and {self.colors}")
        for name, words in (("mode", get_args(Mode)), ("view", get_args(View))):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @property
    def copies(self) -> int:
        """M, as many as there are transformations."""
        return self.turns * self.colors


def tenths(progress: float) -> float:
    """The learning rate falls to a tenth after 50 and 75 % of the run."""
    return 0.1 ** sum(progress >= step for step in (0.5, 0.75))


class TwoHeads(nn.Module):
    """A network's own head and another one on the same features: images -> ((N, classes), (N, more)) logits."""

    def __init__(self, net: Backbone, more: int):
        super().__init__()
        self.net, self.other = net, nn.Linear(net.feature_size, more)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(images)
        return self.net.head(features).float(), self.other(features).float()


class SLA(Method):
    """Cross-entropy over all copies of each image, in one pass; batch norm sees them together.

    net      a Backbone of C classes; "joint" takes its head away and gives it one of C M outputs
    classes  C
    shape    (C, H, W) of the images, to tell at once that they can't be turned or recolored; None: not checked
    """

    def __init__(
        self,
        net: Backbone,
        classes: int,
        settings: SLASettings | None = None,
        shape: tuple[int, int, int] | None = None,
    ):
        super().__init__()
        self.settings = s = settings or SLASettings()
        if shape is not None and s.mode != "plain":
            channels, height, width = shape
            if s.turns == 4 and height != width:
                raise ValueError(f"four turns need square images, and these are {height}x{width} pixels; set turns=2")
            if s.colors > 1 and channels != 3:
                raise ValueError(f"colors={s.colors} permutes 3 channels, and the images have {channels}; set colors=1")
        self.net: nn.Module = net
        if s.mode == "joint":
            net.head = nn.Linear(net.feature_size, classes * s.copies)
        elif s.mode in ("distilled", "multitask"):
            self.net = TwoHeads(net, s.copies if s.mode == "multitask" else classes * s.copies)
        self.average = AveragedWeights(self.net, s.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        mode, m = self.settings.mode, self.settings.copies
        if mode == "plain":
            plain = F.cross_entropy(self.net(batch.images), batch.labels)
            return plain, as_tensor_parts(supervised=plain)
        copies = torch.stack(list(self._transformed(batch.images)), dim=1).flatten(0, 1)  # one image's side by side
        if mode == "augmented":
            augmented = F.cross_entropy(self.net(copies), batch.labels.repeat_interleave(m))
            return augmented, as_tensor_parts(supervised=augmented)
        if mode == "multitask":
            classes, kinds = self.net(copies)
            supervised = F.cross_entropy(classes, batch.labels.repeat_interleave(m))
            told = F.cross_entropy(kinds, joint_labels(torch.zeros_like(batch.labels), m))  # j alone
            return supervised + told, as_tensor_parts(supervised=supervised, transformation=told)
        if mode == "joint":
            joint = self._joint_loss(self.net(copies), batch.labels)
            return joint, as_tensor_parts(joint=joint)
        said, logits = self.net(copies)
        alone = said[::m]  # the class head learns from the untouched images only
        joint = self._joint_loss(logits, batch.labels)
        supervised = F.cross_entropy(alone, batch.labels)
        distilled = self_distillation_loss(aggregated(logits, m), alone, self.settings.temperature)
        total = joint + supervised + distilled
        return total, as_tensor_parts(joint=joint, supervised=supervised, distilled=distilled)

    def _joint_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        m = self.settings.copies
        loss = F.cross_entropy(logits, joint_labels(labels, m))
        return m * loss if self.settings.summed else loss

    def _transformed(self, images: Tensor) -> Iterator[Tensor]:
        return transformed(images, self.settings.turns, self.settings.colors)

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        mode, m = self.settings.mode, self.settings.copies
        if mode == "joint" and self.settings.aggregate:  # one copy at a time, for all at once could fill the memory
            said = [self.average(copy)[:, j::m] for j, copy in enumerate(self._transformed(images))]
            return torch.stack(said).mean(dim=0).softmax(dim=1)
        logits = self.average(images)
        if mode == "joint":
            return logits[:, ::m].softmax(dim=1)
        return (logits[0] if mode in ("distilled", "multitask") else logits).softmax(dim=1)
