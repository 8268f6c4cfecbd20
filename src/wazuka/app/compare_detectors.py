"""`wazuka compare DATA --odd OTHER`: which detector tells DATA's images from OTHER's, by the same trained network?

One training for each seed, one look at each image for all detectors, and a table with intervals.
"""

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wazuka.app.backbones import Extractor, opened
from wazuka.app.catalog import Entry, entries, entry, make_settings
from wazuka.app.compare import finished_before, plot, shared_evenly, stage_named
from wazuka.app.console import clock, share, showing_progress, span, table
from wazuka.app.job import Choices, Job, fingerprint, named_method
from wazuka.app.learn import Interrupted, Learner, Watch, stopping_on_signals
from wazuka.app.prepared import prepare
from wazuka.app.runs import Run
from wazuka.app.transfer import COMMON_SIDE, SCRATCH_SIDE, FeatureLearner, suits
from wazuka.atomic import write_atomic
from wazuka.contract import Detector, Head, Method, Observation
from wazuka.data import Dataset, ImageSet, open_images
from wazuka.errors import UserError
from wazuka.evaluation import Summary, summarize, wilson
from wazuka.evaluation.detection import detection
from wazuka.evaluation.observing import fit_all, score_all
from wazuka.training.processes import launch

ALL = ("msp", "max_logit", "energy", "entropy", "odin", "react", "vim", "mahalanobis", "knn", "gram")
ON_FEATURES = ("msp", "max_logit", "entropy", "mahalanobis", "knn")  # what a head's answers and features suffice for
BATCH = 200
MOST = 5000  # images that are scored, of either kind

Kinds = dict[str, tuple[Entry, dict[str, str]]]


class Answers(nn.Module):
    """A frozen network and the head that learned on it, as something to observe."""

    def __init__(self, learner: FeatureLearner):
        super().__init__()
        self.learner = learner

    def observe(self, images: Tensor) -> Observation:
        pixels = (images * 255).round().to(torch.uint8).numpy()
        features = self.learner.contender.features_of(pixels)[:]
        return Observation(self.learner.method.answers(features)[0].clamp_min(1e-12).log(), features)


def compare_detectors(
    source: str,
    odd: str,
    detectors: Sequence[str],
    labels: int,
    seeds: int,
    steps: int | None,
    out: Path | None,
    method: str = "auto",
    backbone: Any = "auto",
    fitted_on: str = "labeled",
) -> dict[str, Any]:
    """Train `method` on every seed, let every detector tell test images from those of `odd`, print the table, write
    results.json and auroc.svg; returns the results.

    detectors  names, with settings as in "knn:neighbors=0.05"; none: all that the method can serve
    fitted_on  "labeled": on the images whose labels are known; "pool": on all that it learned from, with the classes
               that it predicts
    """
    if seeds < 1 or labels < 1:
        raise UserError(f"--labels and --seeds must be positive, got {labels} and {seeds}.")
    if fitted_on not in ("labeled", "pool"):
        raise UserError(f'--fitted-on must be "labeled" or "pool", got {fitted_on!r}.')
    folder = out or Path("runs") / f"detectors-{Path(source).name}"
    with showing_progress() as console, stopping_on_signals() as stop:
        item = entry(method) if method != "auto" else None
        on_features = item is not None and issubclass(item.kind, Head)
        given = not (isinstance(backbone, str) and backbone in ("auto", "none"))
        if item is not None and not on_features and (given or item.setting == "transfer"):
            raise UserError("Detectors don't look into tuned networks: take a head such as consensus for --methods, or "
                            "a method that learns from scratch, without --backbone.")  # fmt: skip
        if on_features and not given and backbone == "none":
            raise UserError(f"{method} learns on a pre-trained network's features; leave --backbone none out.")
        wanted_network = on_features or (item is None and (given or backbone == "auto"))
        pretrained = opened(backbone) if wanted_network else None
        side = SCRATCH_SIDE if pretrained is None else max(COMMON_SIDE, pretrained.size)
        data = open_images(
            source, progress=console.opening, common=side, fit="crop" if pretrained is None else "squash"
        )
        if item is None and not suits(data.train):
            pretrained = None
        per_class = shared_evenly(data, labels)
        kinds = wanted(detectors or (ALL if pretrained is None else ON_FEATURES), pretrained is not None)
        others = open_images(
            odd, size=data.train.size, channels=data.train.channels, progress=console.opening,
            fit="crop" if pretrained is None else "squash", check=False,
        )  # fmt: skip
        strange = others.test if others.test is not None and len(others.test) else others.train
        chosen = Choices(source=data.name, method=method, steps=steps)
        name = named_method(chosen, pretrained is not None)
        asked = {"data": source, "odd": odd, "fingerprint": fingerprint(data), "labels": labels, "steps": steps,
                 "method": name, "fitted_on": fitted_on}  # fmt: skip
        if pretrained is not None:
            asked["backbone"] = [pretrained.name, pretrained.key()]
        results, fabric = finished_before(folder, asked), launch()
        extractors = (Extractor(pretrained, fabric.device),) if pretrained is not None else None
        for seed in range(seeds):
            done = [row for row in results["runs"] if row["seed"] == seed]
            missing = {called: one for called, one in kinds.items() if called not in {row["detector"] for row in done}}
            if not missing:
                continue
            again = _command(asked, list(kinds), seeds, folder)
            if stop():
                raise Interrupted(again)
            watch = Watch(stage_named(console, f"{name}, seed {seed}"), stop)
            try:
                results["runs"] += _one(
                    data, strange, name, per_class, seed, steps, fabric, folder, watch, extractors, missing, fitted_on
                )
            except Interrupted:
                raise Interrupted(again) from None
            write_atomic(folder / "results.json", json.dumps(results, indent=1))
    return _report(results, list(kinds), seeds, folder)


def wanted(names: Sequence[str], on_features: bool) -> Kinds:
    """Name as it was given -> detector and settings. Raises UserError for one that is none, or can't be served."""
    found, known = {}, {name: item for name, item in entries().items() if issubclass(item.kind, Detector)}
    for name in names:
        bare, given = _parted_detector(name)
        if bare not in known:
            raise UserError(f"There is no detector {bare!r}; there are {', '.join(sorted(known))}.")
        if on_features and bare not in ON_FEATURES:
            raise UserError(f"{bare} looks into the network and at its last layer; on the features of a pre-trained "
                            f"network there are {', '.join(ON_FEATURES)}.")  # fmt: skip
        make_settings(known[bare], given)
        found[name] = (known[bare], given)
    return found


def _parted_detector(name: str) -> tuple[str, dict[str, str]]:
    bare, _, rest = name.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(":")] if rest else []
    if any(not equals for _, equals, _ in pairs):
        raise UserError(f"A detector's settings are written as in knn:neighbors=0.05, got {name}.")
    return bare, {key: value for key, _, value in pairs}


def _one(
    data: Dataset, strange: ImageSet, method: str, per_class: int, seed: int, steps: int | None, fabric: Any,
    folder: Path, watch: Watch, extractors: tuple[Extractor, ...] | None, kinds: Kinds, fitted_on: str,
) -> list[dict[str, Any]]:  # fmt: skip
    prepared = prepare(data, per_class, seed, False, None)
    if prepared.test is None:
        raise UserError(f"{data.name} has no test images, and too few labeled ones to hold some out for a comparison.")
    choices = Choices(source=data.name, labels_per_class=per_class, seed=seed, method=method, steps=steps)
    job = Job(choices, method, choices.fit, prepared, fabric, Run(folder), watch, extractors=extractors)
    learner, seconds = job.learned(method, {})
    net, train = looking(learner), prepared.train
    known = train.images[train.labeled] if fitted_on == "labeled" else train.images
    detectors = {name: _made(item, given) for name, (item, given) in kinds.items()}
    fit_all(detectors.values(), net, lambda: batches(known, fabric.device))
    usual = score_all(detectors, net, batches(_some(prepared.test.images), fabric.device))
    odd = score_all(detectors, net, batches(_some(strange.images), fabric.device))
    correct = int((learner.predict(prepared.test.images).argmax(axis=1) == prepared.test.labels).sum())
    rows = []
    for name in detectors:
        found = detection(usual[name].double().cpu().numpy(), odd[name].double().cpu().numpy(), draws=100)
        rows.append({"detector": name, "seed": seed, "correct": correct, "n": len(prepared.test),
                     "seconds": round(seconds, 2), **found.to_dict()})  # fmt: skip
    return rows


def _made(item: Entry, given: dict[str, str]) -> Detector:
    settings = make_settings(item, given)
    made = item.kind(settings) if settings is not None else item.kind()
    assert isinstance(made, Detector)
    return made


def looking(learner: Learner | FeatureLearner) -> nn.Module:
    """The network that answers, as something to observe. Raises UserError where it can't be looked into."""
    if isinstance(learner, FeatureLearner):
        return Answers(learner)
    method: Method = learner.method
    for candidate in (method, getattr(getattr(method, "average", None), "net", None), getattr(method, "net", None)):
        if isinstance(candidate, nn.Module) and hasattr(candidate, "observe"):
            return candidate.eval()
    raise UserError(f"{learner.item.name} has no single network to look into; take another of --methods.")


def batches(images: np.ndarray | Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    """uint8 (N, C, H, W) -> float in [0, 1], a few at a time."""
    pixels = np.asarray(images)
    for start in range(0, len(pixels), BATCH):
        yield torch.from_numpy(np.array(pixels[start : start + BATCH])).to(device).float() / 255


def _some(images: np.ndarray) -> np.ndarray:
    """At most MOST of them, evenly spread."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(np.int64))
    return images[rows]


def _report(results: dict[str, Any], names: list[str], seeds: int, folder: Path) -> dict[str, Any]:
    summaries: dict[str, Summary] = {}
    rows = []
    for name in names:
        own = [row for row in results["runs"] if row["detector"] == name and row["seed"] < seeds]
        own.sort(key=lambda row: row["seed"])
        summaries[name] = summary = summarize([row["auroc"]["value"] for row in own])
        interval = summary.mean
        low, high = interval.low, interval.high
        if not math.isfinite(low):
            low, high = own[0]["auroc"]["low"], own[0]["auroc"]["high"]
        fpr = float(np.mean([row["fpr95"]["value"] for row in own]))
        rows.append([name, share(summary.median), share(summary.mean.value), span(low, high), share(summary.worst),
                     share(fpr)])  # fmt: skip
    rows.sort(key=lambda row: -summaries[row[0]].mean.value)
    first = [row for row in results["runs"] if row["detector"] == names[0] and row["seed"] < seeds]
    right = wilson(sum(row["correct"] for row in first), sum(row["n"] for row in first))
    title = (
        f"{results['data']} told from {results['odd']} by {results['method']}, {results['labels']} labels, {seeds} "
        f"seeds; {share(right.value)} named right, {clock(sum(row['seconds'] for row in first) / len(first))} each"
    )
    table(title, ["detector", "AUROC, median", "mean", "95 % interval", "worst", "FPR at 95 % TPR"], rows)
    print("AUROC: how often an odd image looks odder than a known one (50.0 %: by luck). FPR at 95 % TPR: odd images "
          "that pass where 95 % of the known ones do.")  # fmt: skip
    results["summary"] = {name: summary.to_dict() for name, summary in summaries.items()}
    write_atomic(folder / "results.json", json.dumps(results, indent=1))
    write_atomic(folder / "auroc.svg", plot(title.split(";")[0], summaries, "AUROC, %"))
    print(f"\nPlot: {folder / 'auroc.svg'}\nNumbers: {folder / 'results.json'}")
    return results


def _command(asked: dict[str, Any], names: list[str], seeds: int, folder: Path) -> str:
    words = ["wazuka", "compare", asked["data"], "--odd", asked["odd"], "--methods", asked["method"]]
    words += ["--detectors", ",".join(names), "--labels", str(asked["labels"]), "--seeds", str(seeds)]
    words += ["--steps", str(asked["steps"])] if asked["steps"] else []
    words += ["--backbone", asked["backbone"][0]] if "backbone" in asked else []
    return shlex.join([*words, "--fitted-on", asked["fitted_on"], "--out", str(folder)])
