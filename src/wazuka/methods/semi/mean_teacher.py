"""Mean Teacher: answer one view of an image as the average of one's own recent weights answers another.

Tarvainen & Valpola 2017, "Mean teachers are better role models", NIPS, arXiv:1703.01780, Sec. 2; as
google-research/remixmatch has it (mean_teacher.py), whose numbers for CIFAR-10 are the defaults.
Where they disagree, Google's code is followed: the weight rises linearly to 50 (CuriousAI/mean-teacher: as
exp(-5 (1 - t)^2) over 40,000 of 150,000 steps, to 100), and only the labeled pass moves batch norm's statistics.
In both, the teacher runs as in training, its batch norm by the batch at hand. Differs from both: the decay grows from
0.1 to `averaging` within the first steps, see parts/averaged.py (CuriousAI: 0.99 during the ramp, 0.999 after it).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.consistency import squared_consistency
from wazuka.functional.schedules import linear_ramp
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics


@dataclass(frozen=True, kw_only=True)
class MeanTeacherSettings:
    """Sources: mean_teacher.py and mixmatch's runs/table5.sh (SVHN: consistency_weight 150, weight decay 0.02)."""

    labeled_batch: int = 64
    unlabeled_ratio: int = 1          # unlabeled images per labeled one
    view: Literal["weak", "strong"] = "weak"
    consistency_weight: float = 50.0
    ramp: float = 0.4                 # share of the run in which that weight rises
    averaging: float = 0.999          # decay of the teacher's weights
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.2))

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_ratio) < 1:
            raise ValueError("labeled_batch and unlabeled_ratio must be at least 1")
        if self.view not in ("weak", "strong"):
            raise ValueError(f'view must be "weak" or "strong", got {self.view!r}')
        if not self.consistency_weight >= 0:
            raise ValueError(f"consistency_weight must not be negative, got {self.consistency_weight}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share of the run, in [0, 1], got {self.ramp}")


class MeanTeacher(Method):
    """A student that learns, and the teacher, its averaged weights, which guesses and gives the answers.

    net  the student: images -> (N, classes) logits
    """

    def __init__(self, net: nn.Module, settings: MeanTeacherSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or MeanTeacherSettings()
        self.teacher = AveragedWeights(net, self.settings.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s, pair = self.settings, {"first": self.settings.view, "second": self.settings.view}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=pair),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        supervised = F.cross_entropy(self.net(batch.images), batch.labels)  # this pass moves batch norm's statistics
        taught = self.teacher.as_in_training(batch.first)
        with frozen_statistics(self.net):
            student = self.net(batch.second)
        consistency = squared_consistency(student, target=taught).mean()
        total = supervised + s.consistency_weight * linear_ramp(progress, s.ramp) * consistency
        return total, as_tensor_parts(supervised=supervised, consistency=consistency)

    def after_step(self) -> None:
        self.teacher.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.teacher(images).softmax(dim=1)
