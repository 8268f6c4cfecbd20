"""The former run that a new one learns from: opened, held against the images, and kept from flattering the number."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from wazuka.app.catalog import Entry
from wazuka.app.learn import predict, takes_teacher, wants_teacher
from wazuka.app.model import Model, load
from wazuka.app.prepared import Prepared
from wazuka.app.runs import Run
from wazuka.data import ImageSet
from wazuka.errors import UserError


@dataclass(frozen=True)
class Teacher:
    """A finished run. name: its folder, as it was given; facts: its run.json."""

    name: str
    model: Model
    facts: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """JSON-able: what the student's run records, and must find unchanged when it is resumed."""
        weights = Run(self.model.folder).model.read_bytes()
        return {
            "run": self.name,
            "method": self.facts["method"],
            "labels": self.facts["n_labeled"],
            "test_accuracy": self.model.metrics.get("test_accuracy"),
            "weights": blake2b(weights, digest_size=16).hexdigest(),
        }

    def baseline(self, test: ImageSet, device: torch.device) -> dict[str, Any]:
        """A row of the report: how many of the test images it names right itself."""
        guesses = predict(self.model.method.to(device), test.images, device).argmax(axis=1)
        correct, seconds = int(np.sum(guesses == test.labels)), self.model.metrics.get("seconds", 0.0)
        return {"name": f"its teacher, {self.name}", "correct": correct, "n": len(test), "seconds": seconds}


def open_teacher(item: Entry, run: str | None) -> Teacher | None:
    """The run that the method `item` shall learn from; None: it needs none. Raises UserError."""
    if run is None:
        if takes_teacher(item):
            raise wants_teacher(item)
        return None
    if not takes_teacher(item):
        raise UserError(f"{item.name} learns without a teacher; leave --teacher out, or take --method distillation.")
    model = load(run)
    return Teacher(run, model, Run(model.folder).read("run.json"))


def before_teacher(
    prepared: Prepared, teacher: Teacher, seed: int, labels_per_class: int | None, fingerprint: str
) -> Prepared:
    """What was prepared, as it is with this teacher. Raises UserError where it does not fit the images.

    Without test images nothing is measured: each fold of a cross-validation hides labels that the teacher has seen.
    """
    model, train = teacher.model, prepared.train
    if model.classes != train.classes:
        raise UserError(
            f"The teacher {teacher.name} knows the classes {', '.join(model.classes)}, and the images show "
            f"{', '.join(train.classes)}; take one that was fitted on the same classes in the same order."
        )
    if model.channels != train.channels:
        kinds = {1: "gray", 3: "color"}
        raise UserError(
            f"The teacher {teacher.name} takes {kinds.get(model.channels, model.channels)} images, and these are "
            f"{kinds.get(train.channels, train.channels)}; take one that was fitted on images of this kind."
        )
    if model.size != train.size:
        (height, width), (ours, across) = model.size, train.size
        way = f"open them with --size {height}, or take" if height == width else "take"
        raise UserError(
            f"The teacher {teacher.name} takes images of {height} x {width} pixels, and these have {ours} x {across}; "
            f"{way} one that was fitted on images of this size."
        )
    if prepared.test is None:
        protocol = "not at all: there are no test images, and the teacher knows the labels that cross-validation hides"
        return dataclasses.replace(prepared, protocol=protocol)
    if prepared.data.test is None or not prepared.data.test.n_labeled:  # then they were held out at random
        _require_same_draw(prepared, teacher, (fingerprint, seed, labels_per_class))
    return prepared


def _require_same_draw(prepared: Prepared, teacher: Teacher, ours: tuple[str, int, int | None]) -> None:
    """Images held out to be measured on must have been held out from the teacher too."""
    data, its = prepared.data, teacher.facts["choices"]
    fingerprint, *_ = ours
    same_place = teacher.facts["fingerprint"] == fingerprint or teacher.facts["source"] == data.source
    if not same_place or ours == (teacher.facts["fingerprint"], its["seed"], its["labels_per_class"]):
        return
    kept = f"{its['labels_per_class']} labels a class" if its["labels_per_class"] else "all labels"
    raise UserError(
        f"The teacher {teacher.name} was fitted on another draw of {data.source} (seed {its['seed']}, {kept}), so it "
        "may know labels that this run is measured on; fit both on the same images with the same --seed and "
        "--labels-per-class."
    )
