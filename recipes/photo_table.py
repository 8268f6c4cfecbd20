"""Photos by their features: every head on every photo-like set, with 1, 4 and 16 labels a class.

All heads learn on the same features of EfficientNet-Lite0 (ImageNet's weights, 224 pixels, bfloat16 where that is
native), from the labeled photos and the pool of unlabeled ones. Judged twice: on the unlabeled photos of the pool,
which is what someone with a folder asks for, and on photos that no head has seen: the set's own test split, or 30 %
held out at random where it has none. cifar10's pool is 10,000 of its training images, drawn at random.

The measure is scikit-learn's LogisticRegression on the labeled features with its C chosen *by the labels of the very
photos it is judged on* (an oracle that nobody has). `consensus` is what `wazuka fit` takes; its constants were chosen
on other sets (docs/decisions.md). The regret of `consensus` is how far it stays behind the head that
happened to be best on that set and number of labels.

    python recipes/photo_table.py --out results/photo_table.json
    python recipes/photo_table.py --sets pacs/photo --labels 4 --seeds 0 1
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import record

from wazuka.app.backbones import Extractor, backbone_named, store_of, texture_of
from wazuka.app.catalog import entries
from wazuka.app.transfer import COMMON_SIDE, LEAST_LABELS, tells_more
from wazuka.contract import Head
from wazuka.data import ImageSet, holdout, make_draw, open_images
from wazuka.evaluation import paired_t, summarize

SETS = (
    *("pacs/photo", "pacs/art_painting", "pacs/cartoon", "pacs/sketch"),
    *("magnetic_tile", "textiles", "tiny_imagenet_100", "cifar10"),
)
POOLS = {"cifar10": 10000}  # drawn from the training images
STRENGTHS = [10.0**power for power in range(-5, 4)]
ORACLE = "logistic regression, C by oracle"


def split(name: str) -> tuple[ImageSet, ImageSet]:
    """Images to learn from, and images that stay unseen."""
    data = open_images(name, common=COMMON_SIDE, fit="squash")
    train, test = data.train, data.test
    if name in POOLS:
        train = train.subset(np.sort(np.random.default_rng(0).permutation(len(train))[: POOLS[name]]))
    if test is None:
        stays, held = holdout(train.labels, round(0.3 * len(train)), seed=0)
        train, test = train.subset(stays), train.subset(held)
    return train, test


def oracle(pool: np.ndarray, labels: np.ndarray, truth: np.ndarray, test: np.ndarray, test_truth: np.ndarray) -> Any:
    """(accuracy on the unlabeled pool, on the test images), each with the C that is best there."""
    from sklearn.linear_model import LogisticRegression

    known = labels >= 0
    # a rotation into the span of the labeled features changes no solution, and makes them short
    _, _, span = np.linalg.svd(pool[known].astype(np.float64), full_matrices=False)
    short, short_test, best = pool @ span.T, test @ span.T, [0.0, 0.0]
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = LogisticRegression(C=strength, max_iter=500).fit(short[known], labels[known])
        best[0] = max(best[0], float((fitted.predict(short[~known]) == truth[~known]).mean()))
        best[1] = max(best[1], float((fitted.predict(short_test) == test_truth).mean()))
    return best


def run(
    heads: list[str], features: dict[str, np.ndarray], train: ImageSet, test: ImageSet, each: int, seed: int,
    texture: Extractor,
) -> Any:  # fmt: skip
    draw = make_draw(train, per_class=each, seed=seed)
    labels, found = draw.apply(train).labels, {}
    started = time.perf_counter()
    both = oracle(features["train"], labels, train.labels, features["test"], test.labels)
    found[ORACLE] = (*both, time.perf_counter() - started)
    pool, asked = torch.from_numpy(features["train"]), torch.from_numpy(features["test"])
    for name in heads:
        found[name] = judged(entries()[name].kind(train.n_classes), pool, asked, labels, train, test)
    if "consensus" in heads and textured(features["train"], train, labels, each, texture):
        made = [store_of(texture).features(part, texture) for part in (train, test)]
        both = [torch.from_numpy(part.astype(np.float32)) for part in made]
        head = entries()["consensus"].kind(train.n_classes, extra=both[0].shape[1])
        wider = torch.cat([pool, both[0]], dim=1), torch.cat([asked, both[1]], dim=1)
        found["consensus"] = judged(head, *wider, labels, train, test)
    return found


def judged(head: Any, pool: Any, asked: Any, labels: np.ndarray, train: ImageSet, test: ImageSet) -> Any:
    """(accuracy on the unlabeled pool, on the test images, seconds of learning)"""
    started = time.perf_counter()
    probs = head.fit(pool, torch.from_numpy(labels.copy())).numpy()
    seconds = time.perf_counter() - started
    on_pool = float((probs.argmax(axis=1) == train.labels)[labels < 0].mean())
    return on_pool, float((head.predict(asked).numpy().argmax(axis=1) == test.labels).mean()), seconds


def textured(features: np.ndarray, train: ImageSet, labels: np.ndarray, each: int, texture: Extractor) -> bool:
    """Whether `wazuka fit` would look at surfaces too: the labels decide, as they do there."""
    if each < LEAST_LABELS:
        return False
    known = np.flatnonzero(labels >= 0)
    surfaces = store_of(texture).features(train.subset(known), texture).astype(np.float32)
    return tells_more(torch.from_numpy(features[known]), torch.from_numpy(surfaces), torch.from_numpy(labels[known]),
                      train.n_classes)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 4, 16], help="labels a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--heads", nargs="+", default=[n for n, e in entries().items() if issubclass(e.kind, Head)])
    parser.add_argument("--rows", type=Path, help="a file of finished rows, to go on from")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    backbone = backbone_named("auto")
    extractor, texture = (Extractor(view, torch.device("cpu")) for view in (backbone, texture_of(backbone)))
    rows: dict[str, Any] = json.loads(given.rows.read_text()) if given.rows and given.rows.exists() else {}
    for name in given.sets:
        train, test = split(name)
        store = store_of(extractor)
        both = {"train": train, "test": test}
        features = {part: store.features(images, extractor).astype(np.float32) for part, images in both.items()}
        for each in given.labels:
            for seed in given.seeds:
                key = f"{name} {each} {seed}"
                if key in rows and set(given.heads) <= set(rows[key]):
                    continue
                rows[key] = run(given.heads, features, train, test, each, seed, texture)
                if given.rows:
                    given.rows.write_text(json.dumps(rows))
            seen = [rows[f"{name} {each} {seed}"] for seed in given.seeds]
            line = " ".join(f"{head} {100 * np.mean([row[head][0] for row in seen]):.1f}" for head in seen[0])
            print(f"{name:20s} {each:3d}  {line}", flush=True)
    found = {part: summary(rows, given, place) for place, part in enumerate(("pool", "unseen"))}
    for part, told in found.items():
        print(part, json.dumps(told["overall"], indent=1))
    if given.out:
        record(given.out, found=found, backbone="efficientnet-lite0", size=extractor.backbone.size,
               precision=str(extractor.dtype), seeds=list(given.seeds))  # fmt: skip


def summary(rows: dict[str, Any], given: argparse.Namespace, place: int) -> dict[str, Any]:
    """Each set and number of labels, and what it comes to overall."""
    cells: dict[str, Any] = {}
    for name in given.sets:
        for each in given.labels:
            seen = [rows[f"{name} {each} {seed}"] for seed in given.seeds]
            values = {head: [row[head][place] for row in seen] for head in seen[0]}
            seconds = {head: round(float(np.mean([row[head][2] for row in seen])), 2) for head in values}
            cell = {head: {**summarize(v).to_dict(), "seconds": seconds[head]} for head, v in values.items()}
            if "consensus" in values and len(given.seeds) > 1:
                cell["consensus"]["over the oracle"] = paired_t(values["consensus"], values[ORACLE]).to_dict()
            cells[f"{name}, {each} a class"] = cell
    means = {cell: {head: float(np.mean(row["values"])) for head, row in told.items()} for cell, told in cells.items()}
    heads = [head for head in next(iter(means.values())) if head != ORACLE]
    overall = {}
    for head in heads:
        ratios = [(1 - m[head]) / max(1e-9, 1 - m[ORACLE]) for m in means.values()]
        behind = {cell: max(m[other] for other in heads) - m[head] for cell, m in means.items()}
        below = {cell: m[ORACLE] - m[head] for cell, m in means.items()}
        worst, most = max(below, key=below.__getitem__), max(behind, key=behind.__getitem__)
        overall[head] = {
            "mean accuracy": round(float(np.mean([m[head] for m in means.values()])), 4),
            "errors over the oracle's, mean of ratios": round(float(np.mean(ratios)), 4),
            "errors over the oracle's, ratio of sums": round(
                sum(1 - m[head] for m in means.values()) / sum(1 - m[ORACLE] for m in means.values()), 4
            ),
            "furthest below the oracle": [worst, round(below[worst], 4)],
            "regret, mean": round(float(np.mean(list(behind.values()))), 4),
            "regret, most": [most, round(behind[most], 4)],
        }
    return {"cells": cells, "overall": overall}


if __name__ == "__main__":
    main()
