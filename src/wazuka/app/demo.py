"""`wazuka demo`: 40 labels on scanned digits, beside what the same labels give without Wazuka. `wazuka demo textiles`:
30 labels on photos of cloth from a factory.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wazuka.app.console import clock, share, showing_progress, span, table
from wazuka.app.job import Job, fit, free_folder
from wazuka.app.learn import Watch, stopping_on_signals
from wazuka.evaluation import wilson

if TYPE_CHECKING:
    from wazuka.data import ImageSet

PER_CLASS = 4
CLOTHS_PER_CLASS = 10


def demo(out: Path | None, seed: int, name: str = "digits") -> None:
    """Train, compare, print the table and the report's path."""
    folder = out or free_folder("demo" if name == "digits" else f"demo-{name}")
    if name == "textiles":
        _textiles(folder, seed)
        return
    print("1,797 scanned digits of 8x8 pixels: 40 labels, 1,257 images without, 500 held out for testing.")
    with showing_progress() as console, stopping_on_signals() as stop:
        model = fit(
            "digits", labels_per_class=PER_CLASS, seed=seed, out=folder, watch=Watch(console.step, stop),
            opening=console.opening, baselines=baselines,
        )  # fmt: skip
    metrics = model.metrics
    rows = [
        [row["name"], *_measured(row["correct"], row["n"]), clock(row["seconds"])] for row in metrics["baselines"]
    ]
    low, high = metrics["test_accuracy_interval"]
    mine = f"Wazuka ({metrics['method']}): 40 labels and 1,257 images without"
    rows.append([mine, share(metrics["test_accuracy"]), span(low, high), clock(metrics["seconds"])])
    print()
    table("Accuracy on the 500 test images", ["learned from", "accuracy", "95 % interval", "training"], rows)
    print(f"\nReport: {folder / 'report.html'}")


def _textiles(folder: Path, seed: int) -> None:
    """Cloth with a fault in a few pixels, with another weave, or as it should be."""
    print("2,000 photos of cloth (nominal, local fault, global fault): 10 labels of each, 600 held out for testing.")
    with showing_progress() as console, stopping_on_signals() as stop:
        model = fit("textiles", labels_per_class=CLOTHS_PER_CLASS, seed=seed, out=folder,
                    watch=Watch(console.step, stop), opening=console.opening)  # fmt: skip
    metrics = model.metrics
    rows = [[row["name"], *_measured(row["correct"], row["n"]), clock(row["seconds"])]
            for row in metrics.get("baselines", ())]  # fmt: skip
    mine = f"Wazuka ({metrics['method']}): 30 labels and {metrics['n_unlabeled']:,} photos without"
    low, high = metrics["test_accuracy_interval"]
    rows.append([mine, share(metrics["test_accuracy"]), span(low, high), clock(metrics["seconds"])])
    print()
    table(f"Accuracy on the {metrics['n_test']} photos held out", ["learned from", "accuracy", "95 % interval", "time"],
          rows)  # fmt: skip
    print(f"\nReport: {folder / 'report.html'}")


def baselines(job: Job) -> list[dict[str, Any]]:
    """What 40 labels give otherwise: two classics of scikit-learn, and the same network on the labels alone."""
    train, test = job.prepared.train, job.prepared.test
    assert test is not None
    rows = [
        _row("logistic regression: 40 labels", test, *_logistic_regression(train, test)),
        _row("label spreading: 40 labels and 1,257 images without", test, *_label_spreading(train, test)),
    ]
    weak = job.rival("supervised", {"view": "weak"})  # the strong views are the floor of every run
    return [*rows, _row("the same network, weak augmentation: 40 labels", test, *weak)]


def _logistic_regression(train: "ImageSet", test: "ImageSet") -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    started = time.perf_counter()
    known = train.labeled
    fitted = LogisticRegression(max_iter=2000).fit(_pixels(train)[known], train.labels[known])
    return fitted.predict(_pixels(test)), time.perf_counter() - started


def _label_spreading(train: "ImageSet", test: "ImageSet") -> tuple[np.ndarray, float]:
    from sklearn.semi_supervised import LabelSpreading

    started = time.perf_counter()
    fitted = LabelSpreading(kernel="knn", n_neighbors=7).fit(_pixels(train), train.labels)
    return fitted.predict(_pixels(test)), time.perf_counter() - started


def _pixels(images: "ImageSet") -> np.ndarray:
    return images.images.reshape(len(images), -1) / 255.0


def _row(name: str, test: "ImageSet", guesses: np.ndarray, seconds: float) -> dict[str, Any]:
    correct = int((guesses == test.labels).sum())
    return {"name": name, "correct": correct, "n": len(test), "seconds": round(seconds, 2)}


def _measured(correct: int, n: int) -> tuple[str, str]:
    estimate = wilson(correct, n)
    return share(estimate.value), span(estimate.low, estimate.high)
