"""One way to learn from the prepared images: trained on all their labels, and asked about images it did not see."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wazuka.app.backbones import Extractor
from wazuka.app.catalog import Entry, planned_settings
from wazuka.app.learn import Learner, Watch
from wazuka.app.plan import Plan, plan_for
from wazuka.app.prepared import Prepared, parts_of
from wazuka.app.runs import Run
from wazuka.app.tuned import tuned_plan
from wazuka.contract import Method
from wazuka.data import ImageSet, folds

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from wazuka.app.transfer import Features
    from wazuka.app.trust import CrossFitted


@dataclass(frozen=True)
class Contender:
    """A method with its settings, about to learn.

    given   settings that the user named; the plan and the paper say the others
    flip    whether a mirrored image still is of its class; None: the plan decides
    parts   of the cross-validation where there are no test images; 0: none
    prefix  of the names of its trainings
    teacher a trained method, for those that learn from one
    tuned   the frozen network that is to be tuned, with the features it has of the training images; None: from
            scratch
    """

    item: Entry
    given: Mapping[str, Any]
    prepared: Prepared
    seed: int
    flip: bool | None
    parts: int
    fabric: "Fabric"
    precision: torch.dtype
    prefix: str = ""
    teacher: Method | None = None
    tuned: "tuple[Extractor, Features] | None" = None

    @cached_property
    def plan(self) -> Plan:
        if self.tuned is not None:
            return tuned_plan(self.tuned[0].backbone, self.flip, self.prepared.train.channels)
        return plan_for(*self.prepared.train.size, self.prepared.train.channels, self.flip)

    @cached_property
    def settings(self) -> Any:
        return planned_settings(self.item, self.plan.settings_for(self.item.name), self.given)

    @property
    def folds(self) -> int:
        """Trainings of half the length that measuring takes."""
        if self.prepared.test is not None or self.parts == 0:
            return 0
        parts = parts_of(self.prepared.train, self.parts)
        return parts if parts > 1 else 0

    def learner(self, train: ImageSet | None = None, seed: int | None = None) -> Learner:
        """Its network before the first step."""
        train, seed = train if train is not None else self.prepared.train, self.seed if seed is None else seed
        start = None
        if self.tuned is not None:
            from wazuka.app.start import start_from

            start = start_from(self.tuned[1], torch.from_numpy(train.labels.copy()), train.n_classes)
        return Learner(
            self.item, self.plan, self.settings, train, seed, self.fabric, self.precision, self.teacher, start
        )

    def train(self, learner: Learner, steps: int, watch: Watch, run: Run) -> "Trained":
        """Learn from all labels, then measure. Raises Interrupted after saving when `watch.stop()` says so."""
        seconds = learner.learn(steps, f"{self.prefix}final", watch, run, self.prepared.test)
        return Trained(learner, seconds, self._held_out(learner, steps, watch, run))

    def _held_out(self, learner: Learner, steps: int, watch: Watch, run: Run) -> np.ndarray | None:
        """Probabilities for `prepared.asked`, from networks that did not learn from them; None: no way."""
        train = self.prepared.train
        if self.prepared.test is not None:
            return learner.predict(self.prepared.test.images)
        if not self.folds:
            return None
        probs = np.zeros((len(train), train.n_classes), np.float32)
        for number, (_, held) in enumerate(folds(train.labels, self.folds, seed=self.seed)):
            # the held-out images stay, as unlabeled ones: so they will be when the user asks about them
            kept = np.setdiff1d(train.labeled, held)
            fold = self.learner(train.keep_labels(kept), self.seed + 1 + number)
            fold.learn(max(1, steps // 2), f"{self.prefix}fold-{number}", watch, run)
            probs[held] = fold.predict(train.images[held])
        return probs[train.labeled]


@dataclass(frozen=True)
class Trained:
    """probs: (N, classes) for `prepared.asked`, or None where nothing could be measured. cross: a head's cross-fitted
    answers to all labels, where they were asked for.
    """

    learner: Learner
    seconds: float
    probs: np.ndarray | None
    cross: "CrossFitted | None" = None
