"""What makes the fewest image passes, and the shortest wait, to a given accuracy? `fit`'s defaults come from here.

Short trainings of FixMatch as `wazuka fit` plans it, each with one thing changed: optimizer and schedule, network,
batch ratio, threshold curriculum. Judged on labels of training images that no training sees, with seeds from 100 on;
test images are never opened. Four labels a class (CIFAR-10: 25).

    python recipes/shorten.py digits --seeds 100 101 102 103 --out results/shorten_digits.json
    python recipes/shorten.py mnist --seeds 100 101 --out results/shorten_mnist.json
    python recipes/shorten.py fashion_mnist --seeds 100 101 --out results/shorten_fashion_mnist.json
    python recipes/shorten.py cifar10 --seeds 100 101 --only sgd muon --out results/shorten_cifar10.json
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import record, summary

from wazuka.app.catalog import entry, planned_settings
from wazuka.app.learn import Learner
from wazuka.app.plan import Plan, plan_for
from wazuka.contract import Optimizer
from wazuka.data import ImageSet, make_draw, open_images
from wazuka.functional.schedules import cosine, cosine_7_16, rise_and_fall
from wazuka.training.processes import launch, precision_named

PER_CLASS = {"cifar10": 25}
JUDGED = {"digits": 297}  # training images that are kept out, to judge by; else 5,000


def sgd(lr: float, schedule: Any = cosine_7_16) -> Optimizer:
    return Optimizer(lr=lr, weight_decay=5e-4, schedule=schedule)


def muon(lr: float, schedule: Any = rise_and_fall) -> Optimizer:
    return Optimizer(algorithm="muon", lr=lr, momentum=0.95, weight_decay=0.02, schedule=schedule)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs from the plan: settings, the method, the first convolution's stride, the number of steps (times)."""

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: str = "fixmatch"
    stride: int | None = None
    times: float = 1.0


VARIANTS = {
    "as planned (Muon 0.02, up and down)": Variant(),
    "muon 0.01, up and down": Variant({"optimizer": muon(0.01)}),
    "muon 0.04, up and down": Variant({"optimizer": muon(0.04)}),
    "muon 0.01, cosine 7/16": Variant({"optimizer": muon(0.01, cosine_7_16)}),
    "sgd 0.1, cosine 7/16": Variant({"optimizer": sgd(0.1)}),
    "sgd 0.1, cosine": Variant({"optimizer": sgd(0.1, cosine)}),
    "sgd 0.2, up and down": Variant({"optimizer": sgd(0.2, rise_and_fall)}),
    "sgd 0.1, cosine 7/16, full resolution": Variant({"optimizer": sgd(0.1)}, stride=1),
    "adamw 0.002, cosine 7/16": Variant(
        {"optimizer": Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02, schedule=cosine_7_16)}
    ),
    "full resolution, a quarter of the steps": Variant(stride=1, times=0.25),
    "half as many unlabeled images, twice the steps": Variant({"unlabeled_ratio": 3}, times=2.0),
    "the paper's hard guesses": Variant({"guesser": "live", "threshold": 0.95, "temperature": 0.0}),
    "FlexMatch's thresholds": Variant(method="flexmatch"),
    "FreeMatch's thresholds": Variant(method="freematch"),
    "SoftMatch's weights": Variant(method="softmatch"),
}


def apart(name: str, seed: int) -> tuple[ImageSet, ImageSet]:
    """(training images with a few labels, labeled images to judge by), both from the training images."""
    train = open_images(name).train
    rows = np.random.RandomState(seed).permutation(len(train))
    judged = rows[: JUDGED.get(name, 5000)]
    rest = train.subset(np.sort(rows[len(judged) :]))
    return make_draw(rest, per_class=PER_CLASS.get(name, 4), seed=seed).apply(rest), train.subset(judged)


def run(name: str, variant: Variant, seed: int, steps: int) -> tuple[float, float, int]:
    """Share of the judging images named right, seconds of training, images that went through the network."""
    train, judged = apart(name, seed)
    plan: Plan = plan_for(*train.size, train.channels)
    item = entry(variant.method)
    settings = dataclasses.replace(planned_settings(item, plan.settings_for(item.name), {}), **variant.settings)
    if variant.stride is not None:
        plan = dataclasses.replace(plan, stride=variant.stride)
    fabric = launch("cpu" if not torch.cuda.is_available() else "auto")
    learner = Learner(item, plan, settings, train, seed, fabric, precision_named("auto", fabric.device))
    started, count = time.perf_counter(), round(steps * variant.times)
    learner.learn(count)
    seconds = time.perf_counter() - started
    right = learner.predict(judged.images).argmax(axis=1) == judged.labels
    return float(right.mean()), seconds, count * learner.images_per_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist", "fashion_mnist", "cifar10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="+", help="variants whose name has one of these words")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if min(given.seeds) < 100:
        parser.error("seeds below 100 are for results; choices are made with others")
    found: dict[str, Any] = {}
    for label, variant in VARIANTS.items():
        if given.only and not any(word in label.lower() for word in given.only):
            continue
        rows = [run(given.data, variant, seed, given.steps) for seed in given.seeds]
        found[label] = {**summary([row[0] for row in rows]), "seconds": summary([row[1] for row in rows])["median"],
                        "images": rows[0][2]}  # fmt: skip
        mean, each = 100 * found[label]["mean"]["value"], " ".join(f"{100 * row[0]:.1f}" for row in rows)
        print(f"{label:>48}: {mean:.2f} ({each}), {found[label]['seconds']:.0f} s, {rows[0][2]:,} images", flush=True)
        if given.out:
            protocol = "accuracy on training images kept out of the training; no test image was opened"
            record(given.out, data=given.data, steps=given.steps, seeds=given.seeds, found=found, protocol=protocol)


if __name__ == "__main__":
    main()
