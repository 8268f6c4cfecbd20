"""Small images of two classes that a network learns in seconds: bars across, bars down."""

from pathlib import Path

import numpy as np

from wazuka.app.job import Choices, Job
from wazuka.app.learn import Watch
from wazuka.app.prepared import prepare
from wazuka.app.runs import Run
from wazuka.data import open_images
from wazuka.training.processes import launch

NAMES = np.array(["across", "down"])


def stripes(count: int, seed: int = 0, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(count, side, side) uint8 and (count,) labels, 0 across and 1 down, in turn."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    place, bright = draw.integers(1, side - 1, count), draw.integers(120, 226, count)
    images = draw.integers(0, 30, (count, side, side), dtype=np.uint8)
    for image, label, where, light in zip(images, labels, place, bright, strict=True):
        (image.T if label else image)[where] += np.uint8(light)
    return images, labels


def few(labels: np.ndarray, per_class: int = 3) -> np.ndarray:
    """The same labels, with all but the first of each class hidden as -1."""
    kept = np.full_like(labels, -1)
    for label in np.unique(labels):
        which = np.flatnonzero(labels == label)[:per_class]
        kept[which] = label
    return kept


def striped_file(folder: Path, train: int = 40, test: int = 20, per_class: int | None = None) -> Path:
    """A .npz file of stripes with test images, or without if `test` is 0."""
    images, labels = stripes(train)
    arrays = {"x_train": images, "y_train": labels if per_class is None else few(labels, per_class)}
    if test:
        arrays["x_test"], arrays["y_test"] = stripes(test, seed=1)
    path = folder / "stripes.npz"
    np.savez(path, **arrays)
    return path


def striped_job(folder: Path, data: Path, watch: Watch | None = None, **choices) -> Job:
    """A job on that file that may begin."""
    made = Choices(source=str(data), **({"steps": 2, "folds": 0, "method": "fixmatch"} | choices))
    opened = open_images(str(data), cache=False)
    prepared = prepare(opened, made.labels_per_class, made.seed, made.folds > 0, None)
    return Job(made, made.method, "crop", prepared, launch("cpu"), Run(folder), watch or Watch())
