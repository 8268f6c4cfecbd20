"""The main job, end to end: from pictures with a few labels to a trained classifier, its number, and its report."""

import dataclasses
import math
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import wazuka
from wazuka.app.backbones import Extractor, Pretrained, backbone_named, opened
from wazuka.app.catalog import entry, make_settings
from wazuka.app.contender import Contender, Trained
from wazuka.app.floor import FLOOR, Verdict, guessed_shares, judge
from wazuka.app.gallery import save_gallery
from wazuka.app.hub import best_present
from wazuka.app.insight import looks, shortcuts, without_looks
from wazuka.app.learn import Interrupted, Learner, Watch
from wazuka.app.model import Model, save_model
from wazuka.app.prepared import Prepared, parts_of, prepare
from wazuka.app.reporting import write_report
from wazuka.app.runs import FORMAT, Run, new_run, open_run, require_free
from wazuka.app.teacher import Teacher, before_teacher, open_teacher
from wazuka.app.transfer import (
    COMMON_SIDE,
    SCRATCH_SIDE,
    Apart,
    FeatureContender,
    FeatureLearner,
    Features,
    FrozenClassifier,
    Known,
    extracted,
    extractors_for,
    look_for_others,
    nearest_label,
    suits,
    typical_distance,
)
from wazuka.app.trust import learn_trust, unit
from wazuka.app.tuned import as_tuned, tunes
from wazuka.atomic import save_atomic, write_atomic
from wazuka.contract import Head, Method
from wazuka.data import Dataset, Draw, ImageSet, draw_from_json, draw_to_json, open_images
from wazuka.errors import UserError
from wazuka.evaluation import evaluate
from wazuka.evaluation.pool import pool_accuracy
from wazuka.training.processes import launch, precision_named

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

HEAD = "consensus"           # what learns on features where nobody says
FLOOR_HEAD = "linear_probe"  # what learns on the features of the labels alone
FLOOR_SHARE = 0.3  # about what learning from the labels alone costs, in trainings with unlabeled images


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user asked for; a resumed run must find it unchanged. See `fit`."""

    source: str
    labels: str | None = None
    labels_per_class: int | None = None
    seed: int = 0
    method: str = "auto"
    backbone: str = "auto"
    teacher: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    minutes: float | None = None
    size: int | None = None
    fit: str = "auto"
    flip: bool | None = None
    folds: int = 4
    floor: bool = True
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise UserError("--steps and --minutes both say how long to train; give one of them.")
        for name in ("steps", "minutes", "labels_per_class", "size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {value}.")
        if not 0 <= self.seed < 2**32:  # what numpy's generators take
            raise UserError(f"--seed must lie in 0..{2**32 - 1}, got {self.seed}.")
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"--folds must be 0 (no cross-validation) or at least 2, got {self.folds}.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UserError(f'--precision must be "auto", "float32" or "bfloat16", got {self.precision!r}.')

    def command(self, out: Path, resume: bool = False) -> str:
        """The command line that makes (or resumes) this run."""
        words = ["wazuka", "fit", self.source]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("source", "settings") or value == field.default:
                continue
            if field.name in ("flip", "floor"):
                words.append(f"--{field.name}" if value else f"--no-{field.name}")
            else:
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        for name, value in self.settings.items():
            words += ["--set", f"{name}={value}"]
        return shlex.join([*words, "--out", str(out), *(["--resume"] if resume else [])])


def fit(
    source: str,
    labels: str | None = None,
    *,
    labels_per_class: int | None = None,
    seed: int = 0,
    method: str = "auto",
    backbone: "str | Path | nn.Module | Pretrained" = "auto",
    teacher: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    size: int | None = None,
    fit: str = "auto",
    flip: bool | None = None,
    folds: int = 4,
    floor: bool = True,
    precision: str = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    opening: Any = None,
    baselines: Any = None,
) -> Model:
    """Train a classifier from a few labels and many images, measure it, and write the run.

    source            a folder, a label file, Parquet, or a public set's name (see `wazuka.images`)
    labels            a CSV file of `file,label` beside the folder
    labels_per_class  keep that many labels of each class, hide the others: to learn what few labels would do
    seed              decides the draw, the start and every augmentation
    method            "consensus", "fixmatch", ... (`wazuka methods`); "auto": consensus on a pre-trained network's
                      features, or FixMatch from scratch for small gray images; settings: its settings, by name
    backbone          a pre-trained network whose features heads learn on: "efficientnet-lite0", a folder or a name on
                      the hub ("facebook/dinov2-small"), a module of your own or a Pretrained, which `load` wants again;
                      "none": from scratch; "auto": as the method and the images suggest, the best that is present
    teacher           the folder of a finished run on the same classes, which "distillation" learns from
    steps, minutes    how long to train; neither: what the plan for images of this size says
    size              pixels images are brought to; fit: how ("crop", "pad", "squash"; "auto" squashes for a pre-trained
                      network, so that nothing is lost at the edges, and else crops)
    flip              whether a mirrored image still is of its class; None: yes for photos in color
    folds             of the cross-validation that measures a run without test images; 0: none
    floor             learn from the labels alone as well, to see whether the unlabeled images helped; where
                      cross-validation says that they did not, that classifier is the one to stay
    out               the run's folder; resume: go on with it
    watch             progress and stopping; opening: called with (images done, images in all) while decoding
    baselines         called with the finished Job, returns rows for the report's table: name, correct, n, seconds

    Raises UserError for wrong input, Interrupted when `watch.stop()` ended it.
    """
    own = None if isinstance(backbone, (str, Path)) else opened(backbone)
    choices = Choices(
        source=str(source), labels=None if labels is None else str(labels), labels_per_class=labels_per_class,
        seed=seed, method=method, backbone=str(backbone) if own is None else own.name,
        teacher=None if teacher is None else str(teacher),
        settings=dict(settings or {}), steps=steps, minutes=minutes, size=size, fit=fit, flip=flip, folds=folds,
        floor=floor, precision=precision,
    )  # fmt: skip
    # before any image is read: a typo should not cost minutes
    wanted = wanted_backbone(choices)
    if resume and out is not None and wanted != "none" and choices.backbone == "auto":
        wanted = _taken_before(Path(out).expanduser()) or wanted
    pretrained = None if wanted == "none" else own or backbone_named(wanted)
    if choices.method != "auto":
        make_settings(entry(choices.method), choices.settings)
    taught_by = open_teacher(entry(choices.method), choices.teacher) if choices.method != "auto" else None
    fabric = launch()
    # chosen by one process, or the others would find it taken and choose the next
    folder = Path(fabric.broadcast(str(out or free_folder(Path(str(source)).name or "run")))).expanduser()
    _look_ahead(folder, resume, fabric)
    shaped = choices.fit if choices.fit != "auto" else "crop" if pretrained is None else "squash"
    tuned = pretrained is not None and choices.method != "auto" and not issubclass(entry(choices.method).kind, Head)
    if tuned and pretrained is not None:
        pretrained = as_tuned(pretrained, fabric.device)
    data = open_images(
        choices.source, choices.labels, size=choices.size, fit=shaped, progress=opening,
        common=SCRATCH_SIDE if pretrained is None else pretrained.size if tuned else
        max(COMMON_SIDE, pretrained.size),
    )  # fmt: skip
    if min(data.train.size) < 2:
        raise UserError(f"Images of {data.train.size[0]} x {data.train.size[1]} pixels are too small to learn from: "
                        "take at least 2 a side.")  # fmt: skip
    if wanted == "auto" and not suits(data.train):
        pretrained = None
    method_name = named_method(choices, pretrained is not None)
    if choices.method == "auto":
        make_settings(entry(method_name), choices.settings)
    before = _begun(folder, choices, data) if resume else None
    fabric.barrier()  # or the first process would begin the run before the last has looked
    draw = _saved_draw(folder) if before and choices.labels_per_class else None
    prepared = prepare(data, choices.labels_per_class, choices.seed, choices.folds > 0, draw)
    if taught_by is not None:
        prepared = before_teacher(prepared, taught_by, choices.seed, choices.labels_per_class, fingerprint(data))
    watch, known = watch or Watch(), Known()
    extractors: tuple[Extractor, ...] | None = None
    if pretrained is not None:
        item = entry(method_name)
        try:
            if tuned:
                extractors = (Extractor(pretrained, fabric.device, choices.precision),)
                extracted(extractors[0], prepared.train, known, fabric, watch)
            else:
                extractors = extractors_for(pretrained, item, prepared, known, fabric, choices.precision, watch)
        except Interrupted:  # no run has begun, but the features that were extracted stay
            raise Interrupted(choices.command(folder, resume)) from None
    job = Job(choices, method_name, shaped, prepared, fabric, Run(folder), watch, taught_by, extractors, known)
    return job.work(before, baselines)


def wanted_backbone(choices: Choices) -> str:
    """"none", "auto" where the images are to decide, or a backbone's name. Raises UserError for what can't go together.
    """
    item = entry(choices.method) if choices.method != "auto" else None
    on_features = item is not None and issubclass(item.kind, Head)
    if choices.backbone == "none":
        if on_features or (item is not None and item.setting == "transfer"):
            raise UserError(f"--method {choices.method} learns on a pre-trained network's features; leave --backbone "
                            "none out.")  # fmt: skip
        return "none"
    if item is not None and not on_features:
        if item.setting == "transfer" and choices.backbone == "auto":
            return "efficientnet-lite0"
        if choices.backbone != "auto" and not tunes(item):
            raise UserError(f"{choices.method} brings a network of its own, or changes the last layer of the one it is "
                            "given; leave --backbone out.")  # fmt: skip
        return "none" if choices.backbone == "auto" else choices.backbone
    if choices.steps is not None:
        if on_features or choices.backbone != "auto":
            raise UserError("--steps is the length of a training from scratch; a pre-trained network's features are "
                            "learned in one go: leave it out.")  # fmt: skip
        return "none"
    return best_present(torch.cuda.is_available()) if on_features and choices.backbone == "auto" else choices.backbone


def named_method(choices: Choices, on_features: bool) -> str:
    """The method's name, where "auto" was chosen too."""
    return choices.method if choices.method != "auto" else HEAD if on_features else "fixmatch"


def free_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, ... where nothing is yet."""
    stem = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".-") or "run"
    number = 1
    while (folder := Path("runs") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return folder


def fingerprint(data: Dataset) -> str:
    """Of the images and their labels: what a resumed run must find as it was."""
    digest = blake2b(f"{data.fingerprint} {data.train.classes}".encode(), digest_size=16)
    for part in (data.train, data.test):
        if part is not None:
            digest.update(part.labels.tobytes())
    return digest.hexdigest()


def _look_ahead(folder: Path, resume: bool, fabric: "Fabric") -> None:
    """Refuse a folder that can't be had before any image is read, which may take minutes. Raises UserError."""
    if resume and not folder.exists():
        raise UserError(f"There is no run at {folder} to resume; leave --resume out to start it.")
    if not resume and fabric.is_global_zero:  # the others may come after it has taken the folder
        require_free(folder)


def _saved_draw(folder: Path) -> Draw:
    path = folder / "draw.json"
    try:
        return draw_from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}), so nobody knows which labels {folder} was "
                        "started with; fit it anew.") from error  # fmt: skip


def _taken_before(folder: Path) -> str | None:
    """The backbone that "auto" took when the run began: a better one may have come since. None where it took none."""
    if not (folder / "run.json").exists():
        return None
    net = open_run(folder).read("run.json").get("plan", {}).get("net", {})
    return str(net["backbone"]) if "backbone" in net else None


def _begun(folder: Path, choices: Choices, data: Dataset) -> dict[str, Any] | None:
    """What the run recorded at its start; None where it was killed before that. Raises UserError."""
    if not (folder / "run.json").exists():
        return None
    before: dict[str, Any] = open_run(folder).read("run.json")
    lost = [name for name in ("state", "choices", "resume", "fingerprint", "steps") if name not in before]
    if lost or not isinstance(before["choices"], dict):
        raise UserError(f"{folder}/run.json is damaged: {(lost or ['choices'])[0]} is lost there; fit it anew.")
    if before["state"] == "done":
        Run(folder).tidy()  # it may have been killed on the very last yard
        raise UserError(f"{folder} is finished: there is nothing to resume.")
    asked = _plain(dataclasses.asdict(choices))
    changed = [name for name, value in asked.items() if before["choices"].get(name) != value]
    if changed:
        said = ", ".join(f"{name} = {before['choices'].get(name)}" for name in changed)
        raise UserError(f"{folder} was started with {said}; resume it with: {before['resume']}")
    if before["fingerprint"] != fingerprint(data):
        raise UserError(
            f"The images or labels of {choices.source} have changed since {folder} was started; fit them anew."
        )
    return before


@dataclass
class Job:
    """One run being made; the steps of `work` are the story."""

    choices: Choices
    method: str
    fit: str
    prepared: Prepared
    fabric: "Fabric"
    run: Run
    watch: Watch
    teacher: Teacher | None = None
    extractors: tuple[Extractor, ...] | None = None
    known: Known = dataclasses.field(default_factory=dict)

    def work(self, before: dict[str, Any] | None, baselines: Any) -> Model:
        method: Any = self._contender(self.method, self.choices.settings)
        floor: Any = self._contender(self._floor, {}, "floor-") if self._wants_floor() else None
        learner = method.learner()
        steps = before["steps"] if before else self._steps(learner, method.folds, floor is not None)
        facts = self._facts(method, steps)
        if before is not None and any(before.get(name) != facts[name] for name in ("plan", "settings")):
            raise UserError(
                f"{self.run.folder} was started by a Wazuka that trains otherwise ({before.get('wazuka')}); "
                "resume it with that version, or fit it anew."
            )
        if before is not None and before.get("teacher") != facts["teacher"]:
            raise UserError(
                f"The teacher {self.choices.teacher} has changed since {self.run.folder} was started; fit it anew."
            )
        if before is None and self.fabric.is_global_zero:
            new_run(self.run.folder)  # not earlier: wrong input leaves nothing behind
            if self.prepared.draw is not None:
                write_atomic(self.run.folder / "draw.json", draw_to_json(self.prepared.draw))
            self.run.write("run.json", facts)  # last: a run that has it can be resumed
        try:
            others = self._others()
            trained = method.train(learner, steps, self.watch, self.run)
            if self.teacher is not None:
                learner.method.register_module("teacher", None)  # its work is done: the student is saved alone
            alone = floor.train(floor.learner(), steps, self.watch, self.run) if floor is not None else None
            verdict = self._verdict(trained, alone)
            if self.fabric.is_global_zero:
                self._write(facts, steps, trained, alone, verdict, baselines, others)
        except Interrupted:
            raise Interrupted(facts["resume"]) from None
        except KeyboardInterrupt:  # at once: what was saved before stays
            raise KeyboardInterrupt(facts["resume"]) from None
        self.fabric.barrier()
        train = self.prepared.train
        kept = alone if alone is not None and verdict is not None and verdict.floor_stays else trained
        return Model(
            kept.learner.method, train.classes, train.size, train.channels, self.fit,
            self.run.read("metrics.json"), self.fabric.device, self.run.folder,
        )  # fmt: skip

    def rival(self, method: str, settings: Mapping[str, Any]) -> tuple[np.ndarray, float]:
        """Train another method on the same labels, network and number of steps; its guesses for the test images
        (N,), and the seconds it took.
        """
        assert self.prepared.test is not None
        other = self._contender(method, settings)
        if isinstance(other, FeatureContender):
            trained = other.train(other.learner(), 1, self.watch, self.run)
            assert trained.probs is not None
            return trained.probs.argmax(axis=1), trained.seconds
        learner, seconds = self.learned(method, settings)
        return learner.predict(self.prepared.test.images).argmax(axis=1), seconds

    def learned(self, method: str, settings: Mapping[str, Any]) -> tuple[Learner | FeatureLearner, float]:
        """A method trained on the labels at hand, and the seconds it took."""
        other = self._contender(method, settings)
        if isinstance(other, FeatureContender):
            head = other.learner()
            return head, head.learn(self.watch, method)
        learner = other.learner()
        steps = self.choices.steps or other.plan.steps
        return learner, learner.learn(steps, f"{method}, {', '.join(map(str, settings.values()))}", self.watch)

    @property
    def _floor(self) -> str:
        """The method that learns from the labels alone; for a tuned network, what the frozen one's features give."""
        return FLOOR if self.extractors is None else HEAD if self.tunes else FLOOR_HEAD

    @property
    def tunes(self) -> bool:
        """Whether a pre-trained network is tuned, in place of a head learned on its features."""
        return self.extractors is not None and not issubclass(entry(self.method).kind, Head)

    def _contender(self, method: str, given: Mapping[str, Any], prefix: str = "") -> Contender | FeatureContender:
        if self.extractors is not None and issubclass(entry(method).kind, Head):
            return FeatureContender(
                entry(method), given, self.prepared, self.choices.seed, self.choices.folds, self.fabric,
                self.extractors, prefix, self.known, self.choices.folds if self.tunes else None,
            )  # fmt: skip
        taught_by = self.teacher.model.method if self.teacher is not None else None
        folds = self.choices.folds if taught_by is None else 0  # it knows the labels that a fold would hide
        return Contender(
            entry(method), given, self.prepared, self.choices.seed, self.choices.flip, folds, self.fabric,
            precision_named(self.choices.precision, self.fabric.device), prefix, taught_by, self._tuned(),
        )  # fmt: skip

    def _tuned(self) -> tuple[Extractor, Features] | None:
        if self.extractors is None:
            return None
        first = self.extractors[0]
        return first, Features((extracted(first, self.prepared.train, self.known, self.fabric, self.watch),))

    def _wants_floor(self) -> bool:
        """Whether the labels alone are learned too: where there are unlabeled images, and a number to compare.

        Not beside a student, who lives by all that its teacher knows: it is compared with the teacher.
        """
        train = self.prepared.train
        if self.teacher is not None:
            return False
        measured = self.prepared.test is not None or (self.choices.folds > 0 and parts_of(train, 2) > 1)
        unlabeled = train.n_labeled < len(train) or self.tunes
        return self.choices.floor and self.method != self._floor and measured and unlabeled

    def _verdict(self, trained: Trained, alone: Trained | None) -> Verdict | None:
        if alone is None or alone.probs is None or trained.probs is None:
            return None
        return judge(trained.probs, alone.probs, self.prepared.asked.labels, chooses=self.prepared.test is None)

    def _steps(self, learner: Any, folds: int, floor: bool) -> int:
        if self.extractors is not None and not self.tunes:
            return 1
        if self.choices.minutes is None:
            return self.choices.steps or learner.plan.steps
        each = float(self.fabric.broadcast(learner.seconds_per_step()))  # one number for all processes
        trainings = (1 + folds / 2) * (1 + FLOOR_SHARE if floor else 1)
        # a tenth is kept back for measuring, saving and a machine that slows down
        return max(1, int(0.9 * self.choices.minutes * 60 / each / trainings))

    def _facts(self, method: Any, steps: int) -> dict[str, Any]:
        train, data, settings = self.prepared.train, self.prepared.data, method.settings
        return {
            "format": FORMAT,
            "state": "started",
            "wazuka": wazuka.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": _device_name(self.fabric.device),
            "threads": torch.get_num_threads(),
            "processes": self.fabric.world_size,
            "precision": str(method.precision).removeprefix("torch."),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": self.choices.command(self.run.folder),
            "resume": self.choices.command(self.run.folder, resume=True),
            "choices": _plain(dataclasses.asdict(self.choices)),
            "method": method.item.name,
            "settings": _plain(dataclasses.asdict(settings)) if settings is not None else {},
            "teacher": self.teacher.describe() if self.teacher is not None else None,
            "plan": method.plan.describe(),
            "backbone": self.extractors[0].backbone.name if self.extractors is not None else None,
            "texture": isinstance(method, FeatureContender) and len(method.used) > 1,
            "steps": steps,
            "data": data.name,
            "source": data.source,
            "fingerprint": fingerprint(data),
            "classes": list(train.classes),
            "size": list(train.size),
            "channels": train.channels,
            "fit": self.fit,
            "n_labeled": train.n_labeled,
            "n_unlabeled": len(train) - train.n_labeled,
            "labels_per_class": train.class_counts().tolist(),
            "protocol": self.prepared.protocol,
            "measured": "test" if self.prepared.test is not None else "cross-validation",
            "seed": self.choices.seed,
            "skipped": [list(row) for row in data.skipped],
            "notes": list(data.notes),
            "duplicates": self.prepared.duplicates,
        }

    def _write(
        self,
        facts: dict[str, Any],
        steps: int,
        trained: Trained,
        alone: Trained | None,
        verdict: Verdict | None,
        baselines: Any,
        others: Apart | None,
    ) -> None:
        """Everything a finished run holds; the state becomes "done" last."""
        kept, other, name = trained, alone, "the same network on the labels alone"
        if self.tunes:
            name = f"{self._floor} on the network's features, without tuning it"
        if alone is not None and verdict is not None and verdict.floor_stays:
            kept, other, name = alone, trained, f"{facts['method']} on labels and unlabeled images together"
            facts = facts | {"method": self._floor, "settings": _plain(dataclasses.asdict(alone.learner.settings)),
                             "kept": "labels alone", "plan": alone.learner.plan.describe()}  # fmt: skip
        train, asked = self.prepared.train, self.prepared.asked
        facts = self._with_trust(facts, kept)
        if isinstance(kept.learner.method, FrozenClassifier):
            facts = facts | {"notes": [*facts["notes"], *without_looks(kept.learner.method.extractors)]}
        save_model(self.run, kept.learner.method)
        train_probs = kept.learner.predict(train.images)
        metrics: dict[str, Any] = {
            "test_accuracy": None, "test_accuracy_interval": None, "n_test": 0,
            "n_labeled": facts["n_labeled"], "n_unlabeled": facts["n_unlabeled"], "seconds": round(kept.seconds, 2),
            "images_per_second": round(steps * kept.learner.images_per_step / max(kept.seconds, 1e-9), 1),
            "steps": steps, "method": facts["method"], "seed": facts["seed"], "protocol": facts["protocol"],
        }  # fmt: skip
        if kept.probs is not None:
            evaluation = evaluate(kept.probs, asked.labels, asked.classes)
            metrics["test_accuracy"] = evaluation.accuracy.value
            metrics["test_accuracy_interval"] = [evaluation.accuracy.low, evaluation.accuracy.high]
            metrics["n_test"] = evaluation.n
            metrics["evaluation"] = evaluation.to_dict()
        aside = self._set_aside(kept, metrics, others)
        asked_of = np.setdiff1d(train.unlabeled, aside)
        if isinstance(kept.learner, FeatureLearner):
            metrics["n_learned_from"] = len(asked_of)  # of the unlabeled ones
        if len(asked_of):
            metrics["guessed_shares"] = guessed_shares(train_probs[asked_of])
            if isinstance(kept.learner.method, FrozenClassifier):
                told = (kept.cross.probs, kept.cross.labels) if kept.cross is not None else (None, None)
                metrics["estimate"] = pool_accuracy(train_probs[asked_of], *told).to_dict()
        rows = baselines(self) if baselines is not None else []
        if self.teacher is not None and self.prepared.test is not None:
            rows.append(self.teacher.baseline(self.prepared.test, self.fabric.device))
        if verdict is not None and other is not None and other.probs is not None and (len(asked_of) or self.tunes):
            metrics["unlabeled"] = verdict.to_dict() | ({"tuned": True} if self.tunes else {})
            correct = int((other.probs.argmax(axis=1) == asked.labels).sum())
            rows.append({"name": name, "correct": correct, "n": len(asked), "seconds": round(other.seconds, 2)})
        if rows:
            metrics["baselines"] = rows
        held_out = (kept.probs, asked) if kept.probs is not None else None
        method = kept.learner.method
        if isinstance(method, FrozenClassifier):
            metrics["shortcuts"] = shortcuts(method, train, self.choices.source, self.choices.seed)
        self.run.write("metrics.json", metrics)
        left_out = isinstance(kept.learner, FeatureLearner)
        self._write_predictions(held_out, train_probs, aside if left_out else aside[:0])
        self._write_gallery(held_out, train_probs, method, aside)
        self.run.write("run.json", facts)  # not done yet, but what the report tells of is in it
        write_report(self.run)
        self.run.write("run.json", facts | {"state": "done", "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        self.run.tidy()

    def _others(self) -> Apart | None:
        """Photos of something else, before a training that leaves none out."""
        if self.extractors is not None and not self.tunes:
            return None
        return look_for_others(self.prepared.train, self.fabric, self.watch)

    def _set_aside(self, kept: Trained, metrics: dict[str, Any], others: Apart | None) -> np.ndarray:
        """Positions of photos that seem to show none of the classes, the oddest first; what was found of them goes to
        the metrics. A head has left them out of its learning, no other method has.
        """
        learner, done = kept.learner, ""
        if isinstance(learner, FeatureLearner):
            others = learner.apart
        if others is None:
            return np.zeros(0, np.int64)
        if len(others.aside) and isinstance(learner, FeatureLearner):
            many = len(others.aside)
            done = f"{many:,} photo{' was' if many == 1 else 's were'} left out of the learning."
        elif len(others.aside):
            done = "It learned from them all the same: take them out, or fit with --method ds3l (it weighs them down)."
        metrics["others"] = others.found.to_dict() | {"told": others.found.told(), "done": done}
        return others.aside

    def _with_trust(self, facts: dict[str, Any], kept: Trained) -> dict[str, Any]:
        """Learn how far a head's answers can be taken at their word; from here on its probabilities are calibrated."""
        method, train = kept.learner.method, self.prepared.train
        if not isinstance(method, FrozenClassifier):
            return facts
        features = kept.learner.contender.features(train, self.watch)  # type: ignore[attr-defined]
        labeled, others = features[train.labeled], features[train.unlabeled[:1000]]
        typical = typical_distance(nearest_label(others, unit(labeled)))
        method.trust = trust = learn_trust(kept.cross, labeled, train.classes, typical)
        if kept.probs is not None:
            kept.probs[:] = trust.calibrated(kept.probs)
        told = {"temperature": trust.temperature, "siblings": len(trust.siblings), "sets": trust.told}
        return facts | {"trust": told}

    def _write_gallery(
        self, held_out: tuple[np.ndarray, ImageSet] | None, train_probs: np.ndarray, method: Method, aside: np.ndarray
    ) -> None:
        test_probs, tested = held_out if held_out is not None else (None, None)
        train = self.prepared.train
        marked = []
        if isinstance(method, FrozenClassifier):
            seen = (tested, test_probs) if tested is not None and test_probs is not None else (train, train_probs)
            marked = looks(method, *seen)
        save_gallery(self.run.folder / "gallery.parquet", train, train_probs, tested, test_probs, marked, aside)

    def _write_predictions(
        self, held_out: tuple[np.ndarray, ImageSet] | None, train_probs: np.ndarray, aside: np.ndarray
    ) -> None:
        """One row an image: where it stood, its label where it has one, the guess, and all probabilities."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        train, parts = self.prepared.train, []
        roles = np.where(train.labels >= 0, "labeled", "unlabeled").astype(object)
        roles[aside] = "set aside"
        sources = [(roles, train, train_probs)]
        if held_out is not None:
            role = "test" if self.prepared.test is not None else "cross-validated"
            sources.insert(0, (np.full(len(held_out[1]), role), held_out[1], held_out[0]))
        names = [*train.classes, None]
        for role_of, images, probs in sources:
            guesses = probs.argmax(axis=1)
            parts.append(
                pa.table(
                    {
                        "file": pa.array([str(name) for name in images.names]),
                        "role": pa.array(role_of.tolist()),
                        "label": pa.array([names[label] for label in images.labels.tolist()], pa.string()),
                        "predicted": pa.array([train.classes[guess] for guess in guesses.tolist()]),
                        "probability": pa.array(probs.max(axis=1)),
                        "probabilities": pa.ListArray.from_arrays(
                            np.arange(0, probs.size + 1, probs.shape[1], dtype=np.int32), pa.array(probs.ravel())
                        ),
                    }
                )
            )
        save_atomic(self.run.predictions, lambda path: pq.write_table(pa.concat_tables(parts), path))


def _plain(value: Any) -> Any:
    """As JSON will give it back: tuples as lists, functions by name."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return getattr(value, "__name__", repr(value)) if callable(value) else value


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
