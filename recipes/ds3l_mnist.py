"""Unlabeled images of unknown classes on MNIST: do they harm, and does DS3L see to it that they don't?

The authors' MNIST protocol (Guo et al. 2020, ICML; guolz-ml/DS3L, load_dataset.py and train.py): 0 to 5 are the known
classes with 10 labels each; of 20,000 unlabeled images, a share shows 6 to 9, which no label names, and the labeled
ones are not among them. Their network: two 3x3 convolutions of 16 and 32 channels, each with 3x3 max-pooling and ReLU,
dropout of one half, a linear layer; no batch norm. Tested on the test images of the known classes, after the last step.

Beside each other, on the same draws from the same start: the labels alone; the Pi-model (DS3L with equal weights); and
DS3L. Then what hidden classes tell, which nothing else looks at. Three figures say how often an image of a known class
is put above one of an unknown class (AUROC, one half is chance): by the weigher; by the classifier's confidence, which
is the most that a weigher of its probabilities could easily use; and by the lesson that the weigher is given, the
descent of the labeled loss with the weight of this image, -dL_meta/dw, taken at equal weights.
Differs from the authors', for a run is 100 to 200 times shorter: images of 14x14 pixels in [0, 1] (28x28 in [0, 255]);
views moved by up to 1.4 pixels (the same image twice, told apart by dropout alone); Adam of 1e-3 (SGD of 1e-3, which
on their inputs is the longer step); the consistency's weight is full after 40 % of the run (at its end); rates of the
weigher and of the step that is looked through as below (6e-5 and 1e-3). These were chosen on 5,000 training images
that nothing learns from, with seed 100 (--choose); `results/ds3l_mnist.json` has what else was tried.

    python recipes/ds3l_mnist.py --seeds 0 1 2 3 4 --out results/ds3l_mnist.json
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _results import record, summary
from torch import Tensor, nn

from wazuka.augment import Weak
from wazuka.contract import Method, Optimizer
from wazuka.data import open_images
from wazuka.data.streams import Batches, Pool
from wazuka.evaluation import paired_t, wilson
from wazuka.evaluation.detection import auroc
from wazuka.functional.seeds import mix
from wazuka.methods.semi.ds3l import DS3L, DS3LSettings
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.nets import Backbone
from wazuka.training import Stepper, train

SIDE, KNOWN, LABELS_PER_CLASS, UNLABELED, HELD_BACK = 14, 6, 10, 20_000, 5_000
POLICIES = {"weak": Weak(subpixel=True, shift=0.1)}
TRIED = (  # seed 100, accuracy in % on held-back training images; the labels alone 94.3 (1,000 steps), 95.5 (2,000)
    "ramp 1.0, 2,000 steps: Pi-model 97.2 with none and 92.5 with 60 % unknown",
    "ramp 1.0, 1,000 steps: Pi-model 96.7 with none and 94.0 with 60 % unknown",
    "ramp 1.0, 1,000 steps, inner_lr 1e-3, weigher_lr 1e-2, 60 % unknown: DS3L 93.6; weights 1.00 for all, AUROC 0.38",
    "ramp 0.4, 1,000 steps, 60 % unknown: Pi-model 93.7",
    "ramp 0.4, 1,000 steps, inner_lr 0.1, weigher_lr 2e-3, 60 % unknown: DS3L 94.4; weights 0.19 to 0.49, AUROC 0.70",
    "AUROC of the lessons of 1,200 images on the Pi-model's network, ramp 0.4, 60 % unknown, after 300 / 600 / 1,000"
    " steps: inner_lr 1e-3 0.50 / 0.51 / 0.54; 1e-2 0.51 / 0.53 / 0.55; 0.1 0.56 / 0.58 / 0.54; 0.5 0.56 / 0.56 / 0.51",
)


class TwoConvolutions(Backbone):
    """The authors' network for MNIST (wideresnet.py, CNN), for images of SIDE x SIDE."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in ((1, 16), (16, 32)):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5))
        self.feature_size = 32 * ((SIDE + 3) // 4) ** 2
        self.head = nn.Linear(self.feature_size, KNOWN)

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images)


def draw(seed: int, unknown: float, choose: bool) -> tuple[dict[str, Pool], Tensor]:
    """The seed's pools "labeled", "unlabeled", "test", and which of the unlabeled images are of known classes.

    Labels are the same for every share. choose: "test" are HELD_BACK training images, and the test images stay closed.
    """
    data = open_images("mnist", size=SIDE)
    images, labels = (torch.from_numpy(np.array(part)) for part in (data.train.images, data.train.labels))
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    held_back, order = order[:HELD_BACK], order[HELD_BACK:]
    by_class = [order[labels[order] == label] for label in range(10)]
    of_each = round(UNLABELED * (1 - unknown)) // KNOWN
    of_others = (UNLABELED - KNOWN * of_each) // (10 - KNOWN)
    labeled = torch.cat([rows[:LABELS_PER_CLASS] for rows in by_class[:KNOWN]])
    known = torch.cat([rows[LABELS_PER_CLASS:][:of_each] for rows in by_class[:KNOWN]])
    rows = torch.cat([known, *(others[:of_others] for others in by_class[KNOWN:])])
    if choose:
        test_images, test_labels = images[held_back], labels[held_back]
    else:
        assert data.test is not None
        test_images, test_labels = (torch.from_numpy(np.array(part)) for part in (data.test.images, data.test.labels))
    tested = test_labels < KNOWN
    pools = {
        "labeled": Pool(images[labeled], labels[labeled]),
        "unlabeled": Pool(images[rows], torch.full((len(rows),), -1)),
        "test": Pool(test_images[tested], test_labels[tested]),
    }
    return pools, labels[rows] < KNOWN


def learned(kind: str, pools: Mapping[str, Pool], seed: int, given: argparse.Namespace) -> Method:
    rule = Optimizer(algorithm="adam", lr=given.lr)
    torch.manual_seed(mix(seed))  # all start from the same network
    net = TwoConvolutions()
    method: Method
    if kind == "labels alone":
        method = Supervised(net, SupervisedSettings(labeled_batch=50, view="weak", averaging=0.0, optimizer=rule))
    else:
        weigher = Optimizer(algorithm="adam", lr=given.weigher_lr)
        settings = DS3LSettings(
            learn_weights=kind == "DS3L", optimizer=rule, weigher=weigher, ramp=given.ramp, inner_lr=given.inner_lr
        )
        method = DS3L(net, KNOWN, settings)
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, Batches(method.streams(), pools, POLICIES, seed), steppers, total_steps=given.steps, seed=seed)
    return method.eval()


@torch.inference_mode()
def measured(method: Method, pools: Mapping[str, Pool], of_known: Tensor) -> dict[str, Any]:
    right = method.predict(pools["test"].images.float() / 255).argmax(dim=1) == pools["test"].labels
    found: dict[str, Any] = {"accuracy": wilson(int(right.sum()), len(right)).to_dict()}
    if isinstance(method, DS3L):
        probs = method.predict(pools["unlabeled"].images.float() / 255)
        known_above = {"by confidence": probs.amax(dim=1)}
        if method.settings.learn_weights:
            known_above["by weight"] = weights = method.weigher(probs)
            found["weights"] = {"least": float(weights.min()), "mean": float(weights.mean()),
                                "largest": float(weights.max())}  # fmt: skip
        if not of_known.all():
            found["known_above_unknown"] = {
                name: auroc(value[of_known].numpy(), value[~of_known].numpy()) for name, value in known_above.items()
            }
    return found


class FreeWeights(nn.Module):
    """In the weigher's place: a weight of its own for every image of a batch, all 1."""

    def __init__(self, images: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(images))

    def forward(self, probs: Tensor) -> Tensor:
        return self.weights


def lessons(method: DS3L, pools: Mapping[str, Pool], of_known: Tensor, seed: int, batches: int = 24) -> dict[str, Any]:
    """What the labels say of single images: -dL_meta/dw at equal weights, in fresh batches after the training."""
    judge = DS3L(method.net, KNOWN, replace(method.settings, learn_weights=True)).train()
    labeled, unlabeled = judge.streams()
    draws = Batches((labeled, replace(unlabeled, index="rows")), pools, POLICIES, mix(seed, 1))
    gains, known = [], []
    for step in range(batches):
        torch.manual_seed(mix(seed, step))
        batch = draws(step)
        judge.weigher = free = FreeWeights(len(batch.rows))  # type: ignore[assignment]
        _, outer, _ = next(judge.moves(batch, progress=1.0))
        gains.append(-torch.autograd.grad(outer, free.weights)[0])
        known.append(of_known[batch.rows])
    gain, is_known = torch.cat(gains), torch.cat(known)
    return {
        "known_above_unknown": auroc(gain[is_known].numpy(), gain[~is_known].numpy()),
        "difference_of_means_over_sd": float((gain[is_known].mean() - gain[~is_known].mean()) / gain.std()),
        "sd": float(gain.std()),
        "images": len(gain),
    }


def run_seed(seed: int, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Row -> what was found; the labels alone are the same for every share."""
    rows: dict[str, dict[str, Any]] = {}
    for unknown in given.unknown:
        pools, of_known = draw(seed, unknown, given.choose)
        for kind in ("labels alone", "Pi-model", "DS3L"):
            name = kind if kind == "labels alone" else f"{kind}, {100 * unknown:.0f} % unknown"
            if name in rows:
                continue
            started = time.process_time()
            method = learned(kind, pools, seed, given)
            seconds = round(time.process_time() - started, 1)
            rows[name] = {**measured(method, pools, of_known), "cpu_seconds": seconds}
            if isinstance(method, DS3L) and not of_known.all():
                rows[name]["lessons"] = lessons(method, pools, of_known, seed)
            print(f"seed {seed}, {name}: {rows[name]}", flush=True)
    return rows


def together(per_seed: Mapping[int, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Every row over the seeds, and the differences between rows, seed by seed."""
    seeds, found, gains = list(per_seed.values()), {}, {}
    for name in seeds[0]:
        rows = [seed[name] for seed in seeds]
        found[name] = {"accuracy": summary([row["accuracy"]["value"] for row in rows])}
        if "known_above_unknown" in rows[0]:
            ways = {way: [row["known_above_unknown"][way] for row in rows] for way in rows[0]["known_above_unknown"]}
            ways["by lesson"] = [row["lessons"]["known_above_unknown"] for row in rows]
            found[name]["known_above_unknown"] = {way: summary(values) for way, values in ways.items()}
    values = {name: row["accuracy"]["values"] for name, row in found.items()}
    for name, safe in values.items():
        if len(seeds) > 1 and name.startswith("DS3L"):
            pi = name.replace("DS3L", "Pi-model")
            gains[f"{pi} over labels alone"] = paired_t(values[pi], values["labels alone"]).to_dict()
            gains[f"{name} over labels alone"] = paired_t(safe, values["labels alone"]).to_dict()
            gains[f"{name} over {pi}"] = paired_t(safe, values[pi]).to_dict()
    return {"found": found, "gains": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--unknown", type=float, nargs="+", default=[0.0, 0.3, 0.6], help="shares of unknown classes")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--ramp", type=float, default=0.4)
    parser.add_argument("--lr", type=float, default=1e-3, help="the classifier's")
    parser.add_argument("--weigher-lr", type=float, default=2e-3)
    parser.add_argument("--inner-lr", type=float, default=0.1)
    parser.add_argument("--choose", action="store_true", help="test on training images that were held back")
    parser.add_argument("--out")
    given = parser.parse_args()
    per_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for seed in given.seeds:
        per_seed[seed] = run_seed(seed, given)
        if given.out:  # after every seed, so that an interrupted run leaves those that it finished
            record(given.out, data=f"MNIST at {SIDE}x{SIDE}; 0 to 5 known, 6 to 9 unknown",
                   protocol="accuracy of the last step on the test images of the known classes",
                   settings={name: value for name, value in vars(given).items() if name not in ("out", "seeds")},
                   tried=TRIED, **together(per_seed), seeds=list(per_seed), per_seed=per_seed)  # fmt: skip
    for name, told in together(per_seed)["found"].items():
        above = told.get("known_above_unknown", {})
        more = [f"known above unknown {way} {value['mean']['value']:.2f}" for way, value in above.items()]
        mean, worst = 100 * told["accuracy"]["mean"]["value"], 100 * told["accuracy"]["worst"]
        print("; ".join([f"{name:>24}: mean {mean:.2f} %, worst {worst:.2f} %", *more]))


if __name__ == "__main__":
    main()
