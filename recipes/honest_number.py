"""Does the expected accuracy that `wazuka fit` prints hold the truth as often as it says?

For each photo-like set, several draws of labels: the estimate for the unlabeled photos, from the labels alone, with
its 90 % interval, beside the share of these photos that the classifier in fact names right (their labels are known
here, and enter nothing else). Pools are at most --pool photos, drawn at random.

    python recipes/honest_number.py --out results/honest_number.json
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import record
from photo_table import SETS, split

from wazuka.app.backbones import Extractor, backbone_named, store_of
from wazuka.app.catalog import entries
from wazuka.app.trust import CrossFitted, learn_trust
from wazuka.data import folds, make_draw
from wazuka.evaluation import wilson
from wazuka.evaluation.pool import pool_accuracy

PARTS = 5


def one(features: np.ndarray, truth: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], seed: int) -> Any:
    """(estimate, the pool's true accuracy) of a draw, made as `wazuka fit` makes it."""
    table, kind = torch.from_numpy(features), entries()["consensus"].kind
    probs = kind(len(classes)).fit(table, torch.from_numpy(labels)).numpy()
    known, cross = np.flatnonzero(labels >= 0), None
    parts = min(PARTS, int(np.bincount(labels[known], minlength=len(classes)).min()))
    if parts > 1:
        held_out, turn, heads = np.zeros_like(probs), np.zeros(len(labels), np.int64), []
        for number, (_, held) in enumerate(folds(labels, parts, seed=seed)):
            kept = labels.copy()
            kept[held] = -1
            heads.append(kind(len(classes)))
            held_out[held], turn[held] = heads[-1].fit(table, torch.from_numpy(kept)).numpy()[held], number
        cross = CrossFitted(held_out[known], labels[known], turn[known], tuple(heads))
    trust = learn_trust(cross, table[known], classes)
    told = (cross.probs, cross.labels) if cross is not None else (None, None)
    unlabeled = labels < 0
    estimate = pool_accuracy(trust.calibrated(probs[unlabeled]), *told)
    return estimate, float((probs.argmax(axis=1) == truth)[unlabeled].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[name for name in SETS if name != "tiny_imagenet_100"])
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 4, 10], help="labels a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--pool", type=int, default=600)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    extractor, rows = Extractor(backbone_named("auto"), torch.device("cpu")), []
    for name in given.sets:
        train, _ = split(name)
        everything = store_of(extractor).features(train, extractor).astype(np.float32)
        for each in given.labels:
            for seed in given.seeds:
                labels = make_draw(train, per_class=each, seed=seed).apply(train).labels
                others = np.random.default_rng(seed).permutation(np.flatnonzero(labels < 0))[: given.pool]
                chosen = np.sort(np.concatenate([np.flatnonzero(labels >= 0), others]))
                told, true = one(everything[chosen], train.labels[chosen], labels[chosen].copy(), train.classes, seed)
                rows.append({"set": name, "labels a class": each, "seed": seed, "true": true, **told.to_dict()})
            seen = [row for row in rows if row["set"] == name and row["labels a class"] == each]
            print(f"{name:20s} {each:3d}", summary(seen), flush=True)
    found = {str(each): summary([row for row in rows if row["labels a class"] == each]) for each in given.labels}
    found["all"] = summary(rows)
    found["with 2 labels a class or more"] = summary([row for row in rows if row["labels a class"] > 1])
    for each, told in found.items():
        print(each, told)
    if given.out:
        record(given.out, found=found, rows=rows, level=0.9, pool=given.pool, parts=PARTS)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the interval held the truth, how wide it was, and how far the estimate was off."""
    if not rows:
        return {}
    held = wilson(sum(row["low"] <= row["true"] <= row["high"] for row in rows), len(rows))
    return {
        "covered": round(held.value, 3), "interval": [round(held.low, 3), round(held.high, 3)], "draws": len(rows),
        "width": round(float(np.mean([row["high"] - row["low"] for row in rows])), 3),
        "off by": round(float(np.mean([abs(row["value"] - row["true"]) for row in rows])), 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
