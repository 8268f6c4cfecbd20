"""Pictures nobody sorted: half of the unlabeled ones show classes without a label, or the classes are 50 to 1.

What a practitioner's folder looks like. `wazuka fit` must not fall below what the labels alone give. Three pools of the
same set: even (all classes, equally often), unknown (6 classes have labels; half of the unlabeled images show the other
4), tail (the most frequent class has 50 times the images of the rarest; the order of classes is drawn). Four labels a
class in each. `wazuka fit` sees no test images, so cross-validation on the labels decides whether the classifier with
or without unlabeled images stays. Then the test images of the known classes, equally many of each, are asked once:

    with       the method that learns from labeled and unlabeled images together
    alone      the same network on the labels alone, strong views: the floor
    kept       whichever `wazuka fit` kept

    python recipes/uncurated_pool.py digits --seeds 0 1 2 3 4 --steps 600 --out results/uncurated_digits.json
    python recipes/uncurated_pool.py fashion_mnist --seeds 0 1 2 3 4 --steps 300 --pool 6000 \\
        --out results/uncurated_fashion_mnist.json
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _results import record, summary

import wazuka
from wazuka.app.model import Model
from wazuka.data import open_images
from wazuka.evaluation import paired_t

PER_CLASS, UNKNOWN_SHARE, TAIL = 4, 0.5, 50
SCENES = ("even", "unknown", "tail")


def all_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels."""
    data = open_images(name)
    assert data.test is not None
    return data.train.images, data.train.labels, data.test.images, data.test.labels


def counts_of(scene: str, classes: int, most: int, pool: int | None, order: np.ndarray) -> tuple[list[int], np.ndarray]:
    """(classes that have labels, how many images of each class the pool holds)."""
    known = sorted(order[: round(0.6 * classes)].tolist()) if scene == "unknown" else list(range(classes))
    shares = np.zeros(classes)
    if scene == "tail":
        shares[order] = TAIL ** (-np.arange(classes) / (classes - 1))
    elif scene == "even":
        shares[:] = 1
    else:
        shares[:] = UNKNOWN_SHARE / (classes - len(known))
        shares[known] = (1 - UNKNOWN_SHARE) / len(known)
    size = min(most / shares.max(), (pool or np.inf) / shares.sum())
    return known, np.maximum(np.round(shares * size).astype(int), PER_CLASS)


def draw(name: str, scene: str, seed: int, pool: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels (-1: none) to learn from; test images of the known classes and their labels."""
    images, labels, test_images, test_labels = all_of(name)
    chance, classes = np.random.RandomState(seed), int(labels.max()) + 1
    rows = chance.permutation(len(labels))
    by_class = [rows[labels[rows] == label] for label in range(classes)]
    known, counts = counts_of(scene, classes, min(map(len, by_class)), pool, chance.permutation(classes))
    taken = np.concatenate([by_class[label][: counts[label]] for label in range(classes)])
    kept = np.concatenate([by_class[label][:PER_CLASS] for label in known])
    shown = np.where(np.isin(taken, kept), np.searchsorted(known, labels[taken]), -1)
    fewest = min(int((test_labels == label).sum()) for label in known)
    asked = np.concatenate([np.flatnonzero(test_labels == label)[:fewest] for label in known])
    return images[taken], shown, test_images[asked], np.searchsorted(known, test_labels[asked])


def run(name: str, scene: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    images, shown, asked, truth = draw(name, scene, seed, given.pool)
    folder = Path(tempfile.mkdtemp())
    try:
        np.savez(folder / "pool.npz", images=images, labels=shown)
        started = time.perf_counter()

        def fit(out: str, **more: Any) -> Model:
            return wazuka.fit(str(folder / "pool.npz"), seed=seed, steps=given.steps, out=folder / out, **more)

        def right(model: Model) -> float:
            return float((model.predict_proba(asked).argmax(axis=1) == truth).mean())

        kept = fit("kept")
        told = kept.metrics["unlabeled"]
        whole = time.perf_counter() - started
        if told["stays"] == "labels alone":
            other = fit("other", floor=False, folds=0)
            rows = {"with": right(other), "alone": right(kept)}
        else:
            other = fit("other", method="supervised", folds=0)
            rows = {"with": right(kept), "alone": right(other)}
        return {**rows, "kept": right(kept), "stays": told["stays"], "cross_validated": told,
                "unlabeled": len(shown) - int((shown >= 0).sum()), "seconds": round(whole, 1)}  # fmt: skip
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist", "fashion_mnist", "cifar10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scenes", nargs="+", default=SCENES, choices=SCENES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pool", type=int, help="images to learn from, at most")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    per_seed: dict[str, list[dict[str, Any]]] = {scene: [] for scene in given.scenes}
    for seed in given.seeds:
        for scene in given.scenes:
            row = run(given.data, scene, seed, given)
            per_seed[scene].append({"seed": seed, **row})
            print(f"seed {seed}, {scene}: with {100 * row['with']:.1f} %, alone {100 * row['alone']:.1f} %, "
                  f"kept {100 * row['kept']:.1f} % ({row['stays']}), {row['seconds']:.0f} s", flush=True)  # fmt: skip
    found: dict[str, Any] = {}
    for scene, rows in per_seed.items():
        found[scene] = {kind: summary([row[kind] for row in rows]) for kind in ("with", "alone", "kept")}
        if len(rows) > 1:
            gain = paired_t([row["kept"] for row in rows], [row["alone"] for row in rows])
            found[scene]["kept over alone"] = gain.to_dict()
        means = {kind: 100 * found[scene][kind]["mean"]["value"] for kind in ("with", "alone", "kept")}
        print(f"{scene:>8}: " + ", ".join(f"{kind} {value:.1f} %" for kind, value in means.items()))
    if given.out:
        record(given.out, data=given.data, settings={"labels_per_class": PER_CLASS, "steps": given.steps,
               "pool": given.pool, "unknown_share": UNKNOWN_SHARE, "tail": TAIL},
               protocol="accuracy on test images of the known classes, as many of each; asked once", found=found,
               per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
