"""Pre-train without labels, fine-tune on 40, distill: SimCLRv2's three steps on scikit-learn's digits.

Chen, Kornblith, Swersky, Norouzi & Hinton 2020 (NeurIPS, arXiv:2006.10029). Their pre-training is contrastive; here the
network tells quarter turns apart, under a projection head of three layers. Fine-tuning keeps the head's first layer, as
theirs does, and the result is the teacher; it teaches a network like it and one a quarter as wide, on the 1,297
training images without labels. The paper's claims are two: distilling to the same network gains over the teacher, and
to a smaller one it loses little. Beside them, on the same labels: both networks on the labels alone, and FixMatch.

All trainings take 300 steps, with SGD at a learning rate of 0.1 (pre-training: Adam at 1e-3), and answer with averaged
weights; the temperature is 1. The settings were set beforehand and not tuned. The seed draws 4 labels a class, starts
the networks and makes the views; the 500 test images are looked at when a training has ended.

    python recipes/distill_digits.py --seeds 0 1 2 3 4 --out results/distill_digits.json
"""

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from _digits import unlabeled
from _results import record, summary
from torch import Tensor, nn

from wazuka.augment import AffineStrong, Weak
from wazuka.contract import Method, Optimizer
from wazuka.data import draw_labels, open_images
from wazuka.data.streams import Batches, Pool
from wazuka.evaluation import paired_t, wilson
from wazuka.functional.schedules import cosine, cosine_7_16
from wazuka.functional.seeds import mix
from wazuka.methods.selfsup.rotation import Rotation, RotationSettings
from wazuka.methods.semi.distillation import Distillation, DistillationSettings
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.nets import ConvNet
from wazuka.training import Stepper, train

CLASSES, LABELS_PER_CLASS = 10, 4
POLICIES = {"weak": Weak(subpixel=True, shift=0.1), "strong": AffineStrong()}
RULE = Optimizer(lr=0.1, weight_decay=5e-4, schedule=cosine_7_16)
COMMON: dict[str, Any] = {"labeled_batch": 16, "averaging": 0.99, "optimizer": RULE}


def projection_head(features: int, turns: int = 4) -> nn.Sequential:
    """Three layers; the first is the head's [0]."""

    def layer() -> nn.Sequential:
        return nn.Sequential(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU())

    return nn.Sequential(layer(), layer(), nn.Linear(features, turns))


def trained(method: Method, pools: Mapping[str, Pool], seed: int, steps: int) -> Method:
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, Batches(method.streams(), pools, POLICIES, seed), steppers, total_steps=steps, seed=seed)
    method.eval()
    return method


def fresh(widths: list[int], seed: int) -> ConvNet:
    torch.manual_seed(mix(seed))
    return ConvNet(classes=CLASSES, widths=tuple(widths), momentum=0.1)


def teacher(pools: Mapping[str, Pool], seed: int, given: argparse.Namespace) -> Method:
    """Steps one and two: a network that knows turns, then the digits."""
    net = fresh(given.widths, seed)
    net.head = projection_head(net.feature_size)
    adam = Optimizer(algorithm="adam", lr=1e-3)
    trained(Rotation(net, RotationSettings(batch=64, optimizer=adam)), pools, seed, given.steps)
    net.head = nn.Sequential(net.head[0], nn.Linear(net.feature_size, CLASSES))  # type: ignore[index]
    return trained(Supervised(net, SupervisedSettings(view="weak", **COMMON)), pools, seed, given.steps)


@torch.inference_mode()
def accuracy(method: Method, test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    right = method.predict(test[0].float() / 255).argmax(dim=1) == test[1]
    return wilson(int(right.sum()), len(right)).to_dict()


def run_seed(seed: int, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    data = open_images("digits")
    assert data.test is not None
    kept = draw_labels(data.train.labels, per_class=LABELS_PER_CLASS, seed=seed)
    images, labels = torch.from_numpy(np.array(data.train.images)), torch.from_numpy(np.array(data.train.labels))
    pools = {"labeled": Pool(images[kept], labels[kept]), "unlabeled": unlabeled(images)}
    test = torch.from_numpy(np.array(data.test.images)), torch.from_numpy(np.array(data.test.labels))
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, method: Method, started: float) -> None:
        rows[name] = {"accuracy": accuracy(method, test), "seconds": round(time.perf_counter() - started, 1)}

    def alone(widths: list[int], view: str) -> Method:
        settings = SupervisedSettings(view=view, **COMMON)  # type: ignore[arg-type]
        return trained(Supervised(fresh(widths, seed), settings), pools, seed, given.steps)

    for view in ("weak", "strong"):
        row(f"labels alone, {view} views", alone(given.widths, view), time.perf_counter())
    row("smaller network, labels alone, weak views", alone(given.small, "weak"), time.perf_counter())
    started = time.perf_counter()
    settings = FixMatchSettings(unlabeled_ratio=6, alignment=True, **COMMON)
    row("FixMatch", trained(FixMatch(fresh(given.widths, seed), CLASSES, settings), pools, seed, given.steps), started)
    started = time.perf_counter()
    taught_by = teacher(pools, seed, given)
    row("pre-trained and fine-tuned", taught_by, started)
    rule = Optimizer(lr=0.1, weight_decay=1e-4, nesterov=False, schedule=cosine)
    distilling = DistillationSettings(**COMMON | {"optimizer": rule}, unlabeled_ratio=6)
    for name, widths in (("the same", given.widths), ("a smaller", given.small)):
        started = time.perf_counter()
        student = Distillation(fresh(widths, seed + 1), distilling, taught_by)
        row(f"distilled to {name} network", trained(student, pools, seed, given.steps), started)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--widths", type=int, nargs=2, default=[16, 32], help="of the teacher's stages")
    parser.add_argument("--small", type=int, nargs=2, default=[4, 8], help="of the smaller student's stages")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out")
    given = parser.parse_args()
    per_seed: dict[int, dict[str, Any]] = {}
    for seed in given.seeds:
        per_seed[seed] = run_seed(seed, given)
        words = [f"{name} {100 * row['accuracy']['value']:.1f}" for name, row in per_seed[seed].items()]
        seconds = sum(row["seconds"] for row in per_seed[seed].values())
        print(f"seed {seed}, %: {'; '.join(words)}; {seconds:.0f} s", flush=True)
    found = {
        name: summary([per_seed[seed][name]["accuracy"]["value"] for seed in given.seeds])
        for name in per_seed[given.seeds[0]]
    }
    for name, told in found.items():
        print(f"{name:>42}: mean {100 * told['mean']['value']:.1f} %, worst {100 * told['worst']:.1f} %")
    gains = {}
    if len(given.seeds) > 1:
        for name, other in (
            ("pre-trained and fine-tuned", "labels alone, weak views"),
            ("distilled to the same network", "pre-trained and fine-tuned"),
            ("distilled to a smaller network", "pre-trained and fine-tuned"),
            ("distilled to a smaller network", "smaller network, labels alone, weak views"),
            ("distilled to the same network", "FixMatch"),
        ):
            gains[f"{name} over {other}"] = paired_t(found[name]["values"], found[other]["values"]).to_dict()
    if given.out:
        settings = {name: value for name, value in vars(given).items() if name not in ("seeds", "out")}
        record(given.out, data="scikit-learn digits, 40 labels, 1,297 images to learn from",
               protocol="accuracy of the last step on the 500 test images, averaged weights", settings=settings,
               found=found, gains=gains, seeds=given.seeds, per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
