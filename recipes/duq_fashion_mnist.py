"""Fashion-MNIST is known, MNIST is odd: DUQ, one softmax network, five of them, and MC dropout.

The network is the one of DUQ's repository (y0ast/deterministic-uncertainty-quantification, utils/cnn_duq.py): three
convolutions with batch norm and a layer of 256. All methods see the same training images, drawn by the seed, equally
often (each member of the ensemble as often as a lone network), by DUQ's rule for this set: SGD 0.05, momentum 0.9,
decay 1e-4, a fifth of the rate after each third of the run. Odd images get the known ones' normalization: it is the
network's first layer. Nothing is chosen by MNIST or by a test label here; DUQ's penalty of 0.05 is the paper's, which
chose it by NotMNIST.

DUQ's centroids keep 0.999 of themselves a step there, over 14,000 steps, which is 14 times what they remember. A run
of fewer steps keeps less (--decay): 0.99 suits 500, as in the paper's two moons with 690.

What to look for (van Amersfoort et al. 2020, arXiv:2003.02037, 60,000 images 30 times): AUROC DUQ 0.955, ensemble
0.861, softmax 0.843, each within about 0.007; 92.4 % named right by DUQ. The logarithm of DUQ's largest kernel is
max_logit's score.

    python recipes/duq_fashion_mnist.py --seeds 0 1 2 3 4 --out results/duq_fashion_mnist.json

Interrupted, it goes on with the method where it was. Two commands with the same --runs may share the seeds; a last one
with all of them gathers what they found.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import record, summary
from torch import Tensor, nn

from wazuka.app.catalog import entries
from wazuka.atomic import write_atomic
from wazuka.augment import Plain
from wazuka.contract import Detector, Method, Optimizer
from wazuka.data import open_images
from wazuka.data.streams import Batches, Pool
from wazuka.evaluation import evaluate, paired_t
from wazuka.evaluation.detection import aurc, detection
from wazuka.evaluation.observing import fit_all, score_all
from wazuka.functional.schedules import staircase
from wazuka.functional.seeds import generator_from, mix
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.methods.uncertainty.deep_ensemble import DeepEnsemble, DeepEnsembleSettings
from wazuka.methods.uncertainty.duq import DUQ, DUQSettings
from wazuka.methods.uncertainty.mc_dropout import MCDropout, MCDropoutSettings
from wazuka.nets import Backbone, Normalize
from wazuka.training import Stepper, train

CLASSES, SIDE, MEMBERS = 10, 28, 5
PUBLISHED = {"DUQ": 0.955, "ensemble of 5": 0.861, "softmax": 0.843}  # AUROC
MAIN = {"DUQ": "max_logit", "DUQ, no penalty": "max_logit", "ensemble of 5": "entropy"}  # the paper's; others: msp


class Convolutions(Backbone):
    """utils/cnn_duq.py: conv3x3-norm-ReLU-pool to 64, 128 and 128 channels, the last one unpadded, linear 256, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize, layers, inputs = Normalize((0.2861,), (0.3530,)), [], 1
        for width, margin in ((64, 1), (128, 1), (128, 0)):
            layers += [nn.Conv2d(inputs, width, 3, padding=margin), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * 2 * 128, 256), nn.ReLU())
        self.feature_size, self.head = 256, nn.Linear(256, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        return self.layers(self.normalize(images))


def contenders(given: argparse.Namespace) -> dict[str, Callable[[], Method]]:
    rule = Optimizer(lr=0.05, nesterov=False, weight_decay=1e-4, schedule=staircase(1 / 3, 2 / 3, factor=0.2))
    size = given.batch
    duq = replace(DUQSettings.fashion_mnist(), labeled_batch=size, decay=given.decay, optimizer=rule)
    several = DeepEnsembleSettings(labeled_batch=size, members=MEMBERS, view="plain", optimizer=rule)
    dropout = MCDropoutSettings(labeled_batch=size, view="plain", optimizer=rule)
    alone = SupervisedSettings(labeled_batch=size, view="weak", averaging=0.0, optimizer=rule)
    made: dict[str, Callable[[], Method]] = {
        "softmax": lambda: Supervised(Convolutions(), alone),
        "ensemble of 5": lambda: DeepEnsemble(Convolutions, several),
        "MC dropout": lambda: MCDropout(Convolutions(), dropout),
        "DUQ": lambda: DUQ(Convolutions(), CLASSES, duq),
        "DUQ, no penalty": lambda: DUQ(Convolutions(), CLASSES, replace(duq, gradient_penalty=0.0)),
    }
    return {name: made[name] for name in given.methods}


def subset(images: np.ndarray, labels: np.ndarray, count: int, *seed: int) -> tuple[Tensor, Tensor]:
    """`count` images drawn without replacement, for sets are rarely shuffled: MNIST's first half is the easier one."""
    rows = torch.randperm(len(labels), generator=generator_from(*seed))[:count].numpy()
    return torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])


def floats(images: Tensor, size: int = 250) -> Iterable[Tensor]:
    return (part.float() / 255 for part in images.split(size))


def learned(make: Callable[[], Method], pool: Pool, seed: int, given: argparse.Namespace) -> tuple[Method, float]:
    """And images a second, each member's counted."""
    torch.manual_seed(mix(seed))
    method = make()
    if not isinstance(method, DUQ):  # faster, but not where gradients are differentiated
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    batches = Batches(method.streams(), {"labeled": pool}, {"weak": Plain(), "plain": Plain()}, seed)
    steps, started = given.passes * len(pool.images) // given.batch, time.perf_counter()
    train(method, batches, steppers, total_steps=steps, seed=seed)
    seen = steps * method.streams()[0].batch  # type: ignore[union-attr]
    return method.eval(), seen / (time.perf_counter() - started)


def detectors(names: list[str], net: nn.Module) -> dict[str, Detector]:
    """Those of these names that have what they need."""
    kinds = {name: entries()[name].kind for name in names if name != "disagreement" or hasattr(net, "passes")}
    return {name: kind() for name, kind in kinds.items()}  # type: ignore[misc]


Data = dict[str, tuple[Tensor, Tensor]]  # "train", "known", "odd" -> images, labels


def run(make: Callable[[], Method], seed: int, data: Data, given: argparse.Namespace) -> dict[str, Any]:
    train_images, labels = data["train"]
    method, speed = learned(make, Pool(train_images, labels), seed, given)
    net = method.average.net if isinstance(method, Supervised) else method  # with `observe`, as all others
    usual, truth = data["known"]
    with torch.no_grad():
        probs = torch.cat([method.predict(part) for part in floats(usual)]).double().numpy()
    told = evaluate(probs, truth, [str(label) for label in range(CLASSES)], draws=20)
    scoring = detectors(given.detectors, net)
    fit_all(scoring.values(), net, lambda: floats(train_images))
    known, odd = (score_all(scoring, net, floats(images)) for images in (usual, data["odd"][0]))
    right = probs.argmax(axis=1) == truth.numpy()
    return {
        "accuracy": told.accuracy.value,
        "ece": told.ece.value,
        "nll": told.nll.value,
        "scores": {
            name: {
                **{figure: getattr(found, figure).value for figure in ("auroc", "fpr95", "aupr_in", "aupr_out")},
                "aurc": aurc(-known[name].double().numpy(), right),
            }
            for name in scoring
            for found in [detection(known[name], odd[name], draws=20)]
        },
        "images_per_second": round(speed, 1),
    }


def run_seed(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """What was found, from the folder where it was found before."""
    fashion, digits = open_images("fashion_mnist"), open_images("mnist")
    assert fashion.test is not None
    assert digits.test is not None
    data: Data = {
        "train": subset(fashion.train.images, fashion.train.labels, given.train_images, seed),
        "known": subset(fashion.test.images, fashion.test.labels, given.test_images, 0),
        "odd": subset(digits.test.images, digits.test.labels, given.test_images, 1),
    }
    folder = given.runs / f"{given.train_images}x{given.passes}_{given.batch}_{given.decay}" / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, make in contenders(given).items():
        path = folder / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            write_atomic(path, json.dumps(run(make, seed, data, given), indent=1))
        found[name] = json.loads(path.read_text())
        scores = ", ".join(f"{score} {100 * told['auroc']:.1f}" for score, told in found[name]["scores"].items())
        print(f"seed {seed}, {name}: {100 * found[name]['accuracy']:.1f} % right; AUROC, % {scores}; "
              f"{found[name]['images_per_second']:.0f} images/s", flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=["softmax", "ensemble of 5", "MC dropout", "DUQ"],
                        choices=["softmax", "ensemble of 5", "MC dropout", "DUQ", "DUQ, no penalty"])  # fmt: skip
    parser.add_argument("--detectors", nargs="+", default=["msp", "entropy", "max_logit", "energy", "disagreement"])
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--test-images", type=int, default=5000, help="of each test set")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--decay", type=float, default=0.99, help="of DUQ's centroids")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes/duq_fashion_mnist"))
    parser.add_argument("--out")
    given = parser.parse_args()
    per_seed = {seed: run_seed(seed, given) for seed in given.seeds}
    found: dict[str, Any] = {}
    for name in given.methods:
        rows = [per_seed[seed][name] for seed in given.seeds]
        found[name] = {figure: summary([row[figure] for row in rows]) for figure in ("accuracy", "ece", "nll")}
        found[name]["scores"] = {
            score: {figure: summary([row["scores"][score][figure] for row in rows]) for figure in told}
            for score, told in rows[0]["scores"].items()
        }
        if name in PUBLISHED:
            found[name]["published_auroc"] = PUBLISHED[name]
        words = [f"{score} {100 * told['auroc']['mean']['value']:.1f}" for score, told in found[name]["scores"].items()]
        print(f"{name:>15}: {100 * found[name]['accuracy']['mean']['value']:.1f} % right; AUROC, % {', '.join(words)}")
    gains = {}
    if len(given.seeds) > 1 and "DUQ" in found and "max_logit" in found["DUQ"]["scores"]:
        ours = found["DUQ"]["scores"]["max_logit"]["auroc"]["values"]
        for name in found:
            score = MAIN.get(name, "msp")
            if name != "DUQ" and score in found[name]["scores"]:
                gains[name] = paired_t(ours, found[name]["scores"][score]["auroc"]["values"]).to_dict()
    if given.out:
        record(given.out, data="Fashion-MNIST known, MNIST odd, with Fashion-MNIST's normalization",
               protocol="AUROC of known and odd test images; fpr95: odd images accepted where 95 % of the known are",
               settings={name: getattr(given, name) for name in
                         ("train_images", "passes", "test_images", "batch", "decay")},
               found=found, duq_over=gains, seeds=given.seeds, per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
