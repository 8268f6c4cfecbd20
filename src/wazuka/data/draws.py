"""Who gets a label: few-label draws as the literature makes them, held-out sets, and folds.

All of them are made by a seed through numpy's RandomState, which numpy keeps frozen, so that a seed means the same
images on every machine and in every year. With one seed, the draw of 4 a class lies within the draw of 5.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wazuka.data.imageset import UNLABELED, ImageSet
from wazuka.errors import UserError

Balance = Literal["equal", "proportional"]
_FORMAT = "wazuka draw 1"


def draw_labels(
    labels: np.ndarray,
    *,
    per_class: int | None = None,
    total: int | None = None,
    seed: int,
    balance: Balance = "equal",
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Positions, ascending, of the images whose labels are kept.

    labels       (N,) integers, negative where there is none: those are never drawn
    per_class    labels for each class, or
    total        labels in all
    balance      "equal": the same number of each class (TorchSSL, USB; FixMatch on CIFAR)
                 "proportional": class frequencies, by the rule of google-research/remixmatch's scripts/create_split.py
                 (`proportional_counts`), as in the SVHN columns of MixMatch, ReMixMatch and FixMatch
    classes      names for messages

    Within each class the order is that of create_split.py (one RandomState of the seed shuffles class after class), so
    a seed draws the very images Google's papers drew if the data are in their order. Raises UserError.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels[labels >= 0], minlength=len(classes) if classes is not None else 0)
    wanted = _wanted(counts, per_class, total, balance, classes)
    order = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(wanted):
        members = np.flatnonzero(labels == label)
        order.shuffle(members)
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def proportional_counts(counts: np.ndarray, total: int) -> np.ndarray:
    """(C,) images of each class -> (C,) labels of each class: `total` times the class that lags behind most.

    Each time the class c is taken that maximizes counts_c / max(counts) - n_c / max(max(n), 1), where n are the labels
    given so far (google-research/remixmatch, scripts/create_split.py).
    """
    frequency = counts / counts.max()
    given = np.zeros(len(counts), dtype=np.int64)
    for _ in range(total):
        given[np.argmax(frequency - given / max(given.max(), 1))] += 1
    return given


def holdout(
    labels: np.ndarray, size: int | float, *, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split off labeled images, stratified by class: (positions that stay, positions held out), both ascending.

    size      how many labeled images to hold out, or which share of them, in (0, 1)
    groups    (N,) images of one group (one tile, one patient, one film) never fall on both sides; unlabeled images of a
              held-out group are dropped from both. The share held out is then met only roughly, to the nearest fold.

    Unlabeled images always stay, but for that. Raises UserError where the images do not suffice.
    """
    labels = np.asarray(labels)
    labeled = np.flatnonzero(labels != UNLABELED)
    share = size if 0 < size < 1 else size / max(len(labeled), 1)
    if not 0 < share < 1:
        raise UserError(f"can't hold out {size} of {len(labeled)} labeled images: ask for less than all of them")
    if groups is not None:
        return folds(labels, max(2, round(1 / share)), seed=seed, groups=groups)[0]
    count = round(share * len(labeled))
    smallest, n_classes = _smallest(labels[labeled])
    if smallest < 2 or min(count, len(labeled) - count) < n_classes:
        raise UserError(
            f"can't hold out {count} of {len(labeled)} labeled images with {n_classes} classes on both sides: "
            "label more images, at least two of each class"
        )
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(n_splits=1, test_size=count, random_state=seed)
    _, test = next(splitter.split(labeled, labels[labeled]))
    held = np.sort(labeled[test])
    return np.setdiff1d(np.arange(len(labels)), held), held


def folds(
    labels: np.ndarray, k: int, *, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """k stratified folds of the labeled images: [(positions that stay, positions held out)], each ascending.

    Every labeled image is held out once. Unlabeled images stay in every fold, except those whose group is held out.
    """
    labels = np.asarray(labels)
    labeled = np.flatnonzero(labels != UNLABELED)
    smallest, _ = _smallest(labels[labeled])
    if k < 2 or smallest < k:
        raise UserError(f"can't make {k} folds: each class needs at least {max(k, 2)} labels, one has {smallest}")
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    everything = np.arange(len(labels))
    found = []
    if groups is None:
        for _, test in StratifiedKFold(k, shuffle=True, random_state=seed).split(labeled, labels[labeled]):
            held = np.sort(labeled[test])
            found.append((np.setdiff1d(everything, held), held))
        return found
    groups = np.asarray(groups)
    if len(np.unique(groups[labeled])) < k:
        raise UserError(f"can't make {k} folds of {len(np.unique(groups[labeled]))} groups: ask for fewer folds")
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    for _, test in splitter.split(labeled, labels[labeled], groups[labeled]):
        held = np.sort(labeled[test])
        found.append((everything[~np.isin(groups, groups[held])], held))
    return found


@dataclass(frozen=True, eq=False)
class Draw:
    """A draw with all that is needed to redo or check it.

    indices    (M,) positions, ascending
    names      the images' names
    labels     their classes' names
    seed, rule how they were drawn
    """

    indices: np.ndarray
    names: tuple[str, ...]
    labels: tuple[str, ...]
    seed: int
    rule: str

    def apply(self, images: ImageSet) -> ImageSet:
        """Hide every label but those drawn. Images are found by name, so their order may have changed."""
        position = {name: i for i, name in enumerate(images.names)}
        missing = [name for name in self.names if name not in position]
        if missing:
            raise UserError(f"{len(missing)} images of the saved draw are not here, {missing[0]} among them")
        found = np.array([position[name] for name in self.names], dtype=np.int64)
        for index, name, label in zip(found, self.names, self.labels, strict=True):
            now = images.classes[images.labels[index]] if images.labels[index] != UNLABELED else "no label"
            if now != label:
                raise UserError(f'the saved draw has {name} as "{label}", but here it is "{now}": draw anew')
        return images.keep_labels(found)


def make_draw(
    images: ImageSet,
    *,
    per_class: int | None = None,
    total: int | None = None,
    seed: int,
    balance: Balance = "equal",
) -> Draw:
    """`draw_labels` for a set of images, with names, labels and the rule in words."""
    indices = draw_labels(
        images.labels, per_class=per_class, total=total, seed=seed, balance=balance, classes=images.classes
    )
    return Draw(
        indices=indices,
        names=tuple(images.names[i] for i in indices.tolist()),
        labels=tuple(images.classes[label] for label in images.labels[indices].tolist()),
        seed=seed,
        rule=f"{per_class} per class, {balance}" if per_class is not None else f"{total} in all, {balance}",
    )


def draw_to_json(draw: Draw) -> str:
    """Plain JSON that a person can read and any language can load."""
    rows = [
        {"index": index, "name": name, "label": label}
        for index, name, label in zip(draw.indices.tolist(), draw.names, draw.labels, strict=True)
    ]
    return json.dumps({"format": _FORMAT, "rule": draw.rule, "seed": draw.seed, "images": rows}, indent=1)


def draw_from_json(text: str | bytes) -> Draw:
    """The inverse of `draw_to_json`; raises UserError for anything else."""
    try:
        stored = json.loads(text)
        if stored["format"] != _FORMAT:
            raise KeyError(stored["format"])
        rows = stored["images"]
        return Draw(
            indices=np.array([int(row["index"]) for row in rows], dtype=np.int64),
            names=tuple(str(row["name"]) for row in rows),
            labels=tuple(str(row["label"]) for row in rows),
            seed=int(stored["seed"]),
            rule=str(stored["rule"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"this is not a saved draw of labels ({type(error).__name__}: {error})") from None


def _wanted(
    counts: np.ndarray, per_class: int | None, total: int | None, balance: Balance, classes: Sequence[str] | None
) -> np.ndarray:
    """How many labels each class gets; raises UserError where it has too few images."""
    n_classes = len(counts)
    if balance not in ("equal", "proportional"):
        raise UserError(f'balance must be "equal" or "proportional", got "{balance}"')
    if (per_class is None) == (total is None):
        raise UserError("say either how many labels per class, or how many in all")
    asked = per_class if per_class is not None else total
    assert asked is not None
    if asked < 1:
        raise UserError(f"the number of labels must be at least 1, got {asked}")
    if n_classes == 0 or counts.max() == 0:
        raise UserError("there are no labels to draw from")
    if balance == "proportional":
        wanted = proportional_counts(counts, asked if per_class is None else asked * n_classes)
    elif per_class is not None:
        wanted = np.full(n_classes, per_class)
    elif asked % n_classes:
        down = asked // n_classes * n_classes
        near = f"{down} or {down + n_classes}" if down else f"{n_classes}"
        raise UserError(
            f"{asked} labels can't be shared out equally among {n_classes} classes: take {near}, or draw proportionally"
        )
    else:
        wanted = np.full(n_classes, asked // n_classes)
    short = np.flatnonzero(wanted > counts)
    if len(short):
        label = int(short[0])
        name = f'"{classes[label]}"' if classes is not None else str(label)
        raise UserError(f"class {name} has {counts[label]} labeled images, too few to draw {wanted[label]}: draw fewer")
    return wanted


def _smallest(labels: np.ndarray) -> tuple[int, int]:
    """(images of the smallest class that has any, number of classes that have any)."""
    _, counts = np.unique(labels, return_counts=True)
    return (int(counts.min()), len(counts)) if len(counts) else (0, 0)
