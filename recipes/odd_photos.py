"""Which photos show none of the classes? Every detector, with few labels and a pool that holds odd photos.

Photos of known classes, a few of them labeled; of the pool's others, one in ten (--odd) shows something else: photos of
another set ("far"), or of classes of the same set that nobody has named ("near"). `consensus` learns from all of it on
the features of EfficientNet-Lite0 (224 pixels), a linear layer learns its answers, and detectors look at features and
logits. They are fitted on the labeled photos alone, or on the whole pool, odd ones included, with the classes that are
predicted there: nobody knows which photos are odd.

Told for each: AUROC on photos that nobody has seen, as many odd as known; and in the pool, where finding them is of
most use. Then, of the distance to the nearest labeled photo, which `wazuka fit` takes: the share of odd photos that
it estimates, whether its lower bound held, and the accuracy on known photos of the pool that leaving the odd ones
out gains. Nothing is chosen here by the results; what `fit` does was settled on other sets (docs/decisions.md).

    python recipes/odd_photos.py --out results/odd_photos.json
    python recipes/odd_photos.py --part "left out" --labels 4 16 --out results/odd_photos_left_out.json
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import record, summary
from torch import Tensor, nn

from wazuka.app.backbones import Extractor, backbone_named, store_of
from wazuka.app.start import start_from
from wazuka.app.transfer import COMMON_SIDE, Features, learn_apart
from wazuka.contract import Detector, Observation
from wazuka.data import open_images
from wazuka.evaluation.detection import auroc, normality
from wazuka.methods.transfer.consensus import Consensus
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.entropy import Entropy
from wazuka.methods.uncertainty.knn import KNN, KNNSettings
from wazuka.methods.uncertainty.mahalanobis import Mahalanobis, MahalanobisSettings
from wazuka.methods.uncertainty.max_logit import MaxLogit
from wazuka.methods.uncertainty.msp import MSP
from wazuka.methods.uncertainty.react import ReAct
from wazuka.methods.uncertainty.vim import ViM

POOL, ASKED = 1500, 400  # photos
NEAREST = 1e-6  # a share so small that it is one neighbor


@dataclass(frozen=True)
class Case:
    """known: a set; odd: another one, or None for classes of the same set; named: how many classes are known then."""

    known: str
    odd: str | None
    named: int = 0

    @property
    def name(self) -> str:
        return f"{self.known} / {self.odd or 'its other classes'}"


CASES = (
    Case("pacs/photo", "textiles"),
    Case("cifar10", "pacs/sketch"),
    Case("magnetic_tile", "pacs/photo"),
    Case("textiles", "magnetic_tile"),
    Case("pacs/photo", None, 4),
    Case("cifar10", None, 6),
    Case("tiny_imagenet_100", None, 20),
)
EACH: dict[str, Callable[[], Detector]] = {
    "softmax": MSP,
    "largest logit": MaxLogit,
    "entropy": Entropy,
    "energy": Energy,
    "ReAct": ReAct,
    "ViM": ViM,
    "Mahalanobis": Mahalanobis,
    "relative Mahalanobis": lambda: Mahalanobis(MahalanobisSettings(relative=True)),
    "nearest neighbor": lambda: KNN(KNNSettings(neighbors=NEAREST)),
    "KNN, 1 %": KNN,
}
UNFITTED = ("softmax", "largest logit", "entropy", "energy")


def photos(name: str, extractor: Extractor, most: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of a set's first split, at most so many photos, drawn at random."""
    images = open_images(name, common=COMMON_SIDE, fit="squash").train
    images = images.subset(images.labeled)
    if len(images) > most:
        images = images.subset(np.sort(np.random.default_rng(0).permutation(len(images))[:most]))
    made = store_of(extractor).features(images, extractor)
    return torch.from_numpy(np.asarray(made, dtype=np.float32)), torch.from_numpy(images.labels.copy())


@dataclass(frozen=True)
class Task:
    """pool: features, known photos first; truth (n,) of those; asked and others: unseen known and odd photos."""

    pool: Tensor
    truth: Tensor
    labels: Tensor
    asked: Tensor
    others: Tensor
    classes: int

    @property
    def unlabeled(self) -> Tensor:
        return self.labels < 0


def drawn(case: Case, sets: dict[str, tuple[Tensor, Tensor]], each: int, share: float, seed: int) -> Task:
    draw = np.random.default_rng(seed)
    features, truth = sets[case.known]
    if case.odd is None:
        named = torch.from_numpy(np.sort(draw.permutation(int(truth.max()) + 1)[: case.named]))
        inside = torch.isin(truth, named)
        odd, features = features[~inside], features[inside]
        truth = torch.searchsorted(named, truth[inside])
    else:
        odd = sets[case.odd][0]
    order = torch.from_numpy(draw.permutation(len(features)))
    features, truth = features[order], truth[order]
    odd = odd[torch.from_numpy(draw.permutation(len(odd)))]
    classes = int(truth.max()) + 1
    count = min(POOL, len(features) * 3 // 4)
    asked, pool, truth = features[count : count + ASKED], features[:count], truth[:count]
    labels = torch.full((count,), -1)
    for label in range(classes):
        labels[(truth == label).nonzero().flatten()[:each]] = label
    many = round(share / (1 - share) * count)
    many = min(many, len(odd) // 2)
    joined = torch.cat([labels, torch.full((many,), -1)])
    return Task(torch.cat([pool, odd[:many]]), truth, joined, asked, odd[many : many + ASKED], classes)


def scores(task: Task) -> dict[str, dict[str, float]]:
    """Detector -> AUROC, of unseen photos and in the pool."""
    with torch.no_grad():
        start = start_from(Features((task.pool.numpy(),)), task.labels, task.classes)
        last = nn.Linear(task.pool.shape[1], task.classes)
        last.weight.copy_(start.weight)
        last.bias.copy_(start.bias)

        def seen(features: Tensor) -> Observation:
            return Observation(last(features), features, head=last)

        fits: dict[str, Callable[[], Iterator[Observation]]] = {
            "labels": lambda: iter([seen(task.pool[~task.unlabeled])]),
            "pool": lambda: iter([seen(task.pool)]),
        }
        asked, others, inside = seen(task.asked), seen(task.others), seen(task.pool[task.unlabeled])
        known = int(task.unlabeled[: len(task.truth)].sum())
        found = {}
        for name, make in EACH.items():
            for of, batches in fits.items():
                if of == "pool" and name in UNFITTED:
                    continue
                detector = make().fit(batches)
                in_pool = normality(detector.score(inside))
                called = name if name in UNFITTED else f"{name}, {of}"
                found[called] = {
                    "unseen": auroc(normality(detector.score(asked)), normality(detector.score(others))),
                    "in the pool": auroc(in_pool[:known], in_pool[known:]),
                }
    return found


def left_out(task: Task) -> dict[str, float]:
    """What `fit` finds of odd photos, and what leaving them out does to the accuracy."""
    unlabeled = task.unlabeled[: len(task.truth)]

    def right(head: Consensus) -> float:
        answers = head.predict(task.pool[: len(task.truth)]).argmax(dim=1)
        return float((answers == task.truth)[unlabeled].float().mean())

    careless, careful, clean = (Consensus(task.classes) for _ in range(3))
    careless.fit(task.pool, task.labels)
    apart = learn_apart(careful, task.pool, task.labels)
    clean.fit(task.pool[: len(task.truth)], task.labels[: len(task.truth)])
    odd = len(task.pool) - len(task.truth)
    return {
        "share": odd / int(task.unlabeled.sum()), "estimated": apart.found.share, "at least": apart.found.at_least,
        "odd ones left out": float((apart.aside >= len(task.truth)).sum() / max(1, odd)),
        "known ones left out": float((apart.aside < len(task.truth)).sum() / int(unlabeled.sum())),
        "right without odd photos": right(clean), "right with them": right(careless), "right, left out": right(careful),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 4, 16], help="labels a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--odd", type=float, default=0.1, help="share of odd photos in the pool")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.3], help="for the estimate of them")
    parser.add_argument("--part", choices=["scores", "left out", "both"], default="both")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    extractor = Extractor(backbone_named("efficientnet-lite0"), torch.device("cpu"))
    names = {name for case in CASES for name in (case.known, case.odd) if name is not None}
    sets = {name: photos(name, extractor, 5000) for name in sorted(names)}
    rows: list[dict[str, Any]] = []
    for case in CASES:
        for each in given.labels:
            seeds = given.seeds if given.part != "left out" else []
            every = [scores(drawn(case, sets, each, given.odd, seed)) for seed in seeds] or [{}]
            found = {
                name: {where: summary([one[name][where] for one in every]) for where in ("unseen", "in the pool")}
                for name in every[0]
            }
            aside = {}
            for share in given.shares if given.part != "scores" else []:
                told = [left_out(drawn(case, sets, each, share, seed)) for seed in given.seeds]
                aside[share] = {name: summary([one[name] for one in told]) for name in told[0]}
                aside[share]["bound held"] = sum(one["at least"] <= one["share"] for one in told)
            rows.append({"case": case.name, "labels": each, "auroc": found, "left out": aside})
            best = sorted(found, key=lambda name: -found[name]["unseen"]["mean"]["value"])
            print(f"{case.name}, {each} labels a class: " + ", ".join(
                f"{name} {100 * found[name]['unseen']['mean']['value']:.1f}"
                f"/{100 * found[name]['in the pool']['mean']['value']:.1f}" for name in best), flush=True)  # fmt: skip
            for share, told in aside.items():
                print(f"   {share:.0%} odd: " + ", ".join(
                    f"{name} {value['mean']['value']:.3f}" for name, value in told.items() if name != "bound held"
                ) + f", bound held {told['bound held']} of {len(given.seeds)}", flush=True)  # fmt: skip
    means = {
        kind: {
            name: round(float(np.mean([row["auroc"][name][where]["mean"]["value"] for row in rows
                                       if row["case"].endswith("its other classes") == (kind == "near")])), 4)
            for name in rows[0]["auroc"]
        }
        for where in ("unseen",) for kind in ("near", "far")
    }  # fmt: skip
    for kind, row in means.items():
        best = sorted(row, key=lambda name: -row[name])
        print(kind, ", ".join(f"{name} {100 * row[name]:.1f}" for name in best))
    if given.out:
        record(given.out, backbone="efficientnet-lite0, 224 pixels", pool=POOL, asked=ASKED, odd=given.odd,
               seeds=given.seeds, means=means, rows=rows)  # fmt: skip


if __name__ == "__main__":
    main()
