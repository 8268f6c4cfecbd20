"""Does something else than the object give the class away? Few labels leave a network free to learn just that.

The same simple classifier names the labeled photos, cross-validated, from what should not suffice: their border, their
surroundings, their colors, their patches in disorder, their files. What it gets right is held against luck by a
permutation test, corrected for the number of checks (see `permutation`). A check that finds nothing says what it would
have found. One that finds something says what there is, not that it is wrong: grass is green.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wazuka.evaluation.arrays import Floats, Integers, as_floats, as_integers
from wazuka.evaluation.intervals import Estimate, mean_of_shares, wilson
from wazuka.explain.impoverish import KINDS, Images, color_features, impoverish
from wazuka.explain.metadata import CATEGORIES, metadata_table
from wazuka.explain.permutation import (
    LEAST,
    balanced_accuracy,
    column_similarity,
    holm,
    least_p_value,
    p_value,
    predictions,
    similarity,
    stratified_folds,
)

LEVEL = 0.05    # the chance of one false alarm or more among all checks made together is at most this
DRAWS = 499     # orders of the labels by luck
PHOTOS = 400    # most photos looked at: so many tell a shortcut from luck, and each goes through the network four times
NEARLY = 0.8    # share of the whole photos' lead over chance from which on a part gives "nearly all"
TOGETHER = "all"  # the columns of a table as one

SUBJECTS = {
    "border": ("The border alone (an eighth on each side)", "names"),
    "surroundings": ("The surroundings alone (the middle hidden)", "name"),
    "colors": ("The colors alone", "name"),
    "patches": ("The patches in disorder", "name"),
    "file": ("The file alone, without its picture,", "names"),
}
ADVICE = {
    "border": "a frame, a ruler or the place gives the class away, unless the object reaches that far. "
    "Photograph every class in the same places, or crop to the object.",
    "surroundings": "what lies around the object gives the class away, unless the object is larger than the middle. "
    "Photograph every class in the same surroundings.",
    "colors": "in other light or on another ground new photos may be named wrong, unless color is what makes the "
    "class. Photograph every class in the same light.",
    "patches": "texture and small parts suffice, no shape is needed. That is right where the material is the class; "
    "elsewhere expect mistakes on new textures.",
    "taken": "the classes were photographed at different times, and light or weather may give them away. "
    "Take photos of every class on every occasion.",
    "camera": "the classes were photographed with different cameras, whose pictures differ. "
    "Take photos of every class with every camera.",
    "orientation": "the camera was held differently. Take photos of every class both ways.",
    "width": "the classes come in different sizes, and how sharp a photo is gives them away once all are made alike. "
    "Bring all to one size and crop from one source.",
    "bytes": "the classes differ in sharpness, noise or compression, or come from different sources. "
    "Take all from one source, or save all anew in the same way.",
    "modified": "harmless if the files were copied or sorted class by class; if it is when they were taken, light or "
    "weather may give the class away.",
    "number": "harmless if the files were numbered after sorting; if it is the order in which they were taken, "
    "the classes were taken one after the other, and light or weather may give them away.",
    "prefix": "harmless if the files were named after sorting; if names tell the camera or the source, "
    "take photos of every class from every one.",
    "folder": "harmless if the folders were made class by class; if a folder is an occasion or a source, "
    "take photos of every class from every one.",
    TOGETHER: "the classes come from different sources or occasions. Mix them when you take more photos.",
}
ADVICE["height"] = ADVICE["width"]
COLUMNS = {
    "taken": "when it was taken",
    "camera": "the camera",
    "orientation": "how the camera was held",
    "width": "the width in pixels",
    "height": "the height in pixels",
    "bytes": "the size in bytes",
    "modified": "when it was last changed",
    "number": "the number in its name",
    "prefix": "the letters its name begins with",
    "folder": "its folder",
    TOGETHER: "all it tells together",
}


@dataclass(frozen=True)
class Shortcut:
    """What one check found. Accuracies are balanced: the mean over the classes of the share named right.

    name        "border", "surroundings", "patches", "colors", "file", or what `check` was told
    accuracy    cross-validated; NaN: not checked
    chance      what guessing gets right
    whole       what the same classifier gets right from the whole photos; NaN: not asked
    p_value     how often luck does as well in any of the checks made together (Holm); NaN: not checked
    noticeable  any accuracy above this would have been noticed; NaN: not checked
    columns     of a table: those that tell the classes apart beyond luck on their own, the best one first
    sentence    for a person
    """

    name: str
    accuracy: Estimate
    chance: float
    whole: float
    p_value: float
    noticeable: float
    columns: tuple[str, ...]
    sentence: str

    @property
    def found(self) -> bool:
        """Whether luck is ruled out, at a level of 5 % over all checks made together."""
        return self.p_value <= LEVEL

    @property
    def share(self) -> float:
        """How much of the whole photos' lead over chance it has: 1 is all of it; NaN where that can't be said."""
        lead = self.whole - self.chance
        return (self.accuracy.value - self.chance) / lead if lead > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        numbers = {key: getattr(self, key) for key in ("chance", "whole", "share", "p_value", "noticeable")}
        return {
            "name": self.name,
            "accuracy": self.accuracy.to_dict(),
            **{key: number if math.isfinite(number) else None for key, number in numbers.items()},
            "columns": list(self.columns),
            "found": self.found,
            "sentence": self.sentence,
        }


def shortcut_checks(
    extract: Callable[[Images], Any],
    images: Images,
    labels: Any,
    classes: Sequence[str],
    paths: Sequence[Path | str] | None = None,
    seed: int = 0,
) -> list[Shortcut]:
    """All checks, held against luck together.

    extract  the frozen network: (n, C, H, W) uint8 -> (n, D) features; called four times
    images   (N, C, H, W)  uint8; only those looked at are read
    labels   (N,)          positions in `classes`; -1: unlabeled
    classes  names, by which a folder or file name that merely spells the label out is known
    paths    the N original files; None: not checked
    seed     of the photos looked at, the patches, the folds and the orders by luck
    """
    labels = as_integers(labels)
    if len(images) != len(labels) or (paths is not None and len(paths) != len(labels)):
        raise ValueError(f"images, labels and paths must be of one length, got {len(images)} and {len(labels)}")
    names = [*KINDS, "colors", *([] if paths is None else ["file"])]
    rows = looked_at(labels, seed)
    own = np.unique(labels[rows], return_inverse=True)[1]
    if too_few(np.bincount(own), len(names)):
        return [unchecked(name, labels, len(names)) for name in names]
    photos = np.ascontiguousarray(images[rows])
    evidence = [measure(extract(impoverish(photos, kind, seed)), own, seed) for kind in KINDS]
    evidence.append(measure(color_features(photos), own, seed))
    if paths is not None:
        files = [Path(paths[row]) for row in rows]
        columns, table = metadata_table(files)
        trivial = spelled_out(files, [classes[label] for label in labels[rows]])
        telling = [k for k, column in enumerate(columns) if column not in trivial]
        evidence.append(measure(table[:, telling], own, seed, [columns[k] for k in telling]))
    whole = cross_validated(similarity(as_floats(extract(photos))), own, seed)
    adjusted = holm([one.p_value for one in evidence])
    return [told(name, one, p, len(names), whole) for name, one, p in zip(names, evidence, adjusted, strict=True)]


def check(name: str, features: Any, labels: Any, seed: int = 0, columns: Sequence[str] | None = None) -> Shortcut:
    """One check on its own: do these numbers tell the classes apart beyond luck?

    name      for the sentence
    features  (N, D)  finite numbers, taken as one; or with `columns` a table (N, K), NaN where unknown
    labels    (N,)    whole numbers; -1: unlabeled
    seed      of the photos looked at, the folds and the orders by luck
    columns   names of the K columns of a table, each of which is tried on its own too
    """
    labels, features = as_integers(labels), as_floats(features)
    rows = looked_at(labels, seed)
    own = np.unique(labels[rows], return_inverse=True)[1]
    if too_few(np.bincount(own), checks=1):
        return unchecked(name, labels, checks=1)
    evidence = measure(features[rows], own, seed, columns)
    return told(name, evidence, evidence.p_value, checks=1, whole=math.nan)


# What is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What was measured, before it is put in words.

    columns     of a table, those that vary, then TOGETHER; of features none
    accuracies  (G,)  of each of them
    by_luck     (B,)  of the best of them, for each order of the labels by luck
    estimate    of the best one, with its interval
    chance      1 / C
    """

    columns: tuple[str, ...]
    accuracies: Floats
    by_luck: Floats
    estimate: Estimate
    chance: float

    @property
    def p_value(self) -> float:
        """How often luck does as well in this check alone."""
        return p_value(self.accuracies.max(), self.by_luck)

    def beyond_luck(self, checks: int) -> tuple[str, ...]:
        """The best column, then the others that stand out on their own among all columns of all checks."""
        order = np.argsort(-self.accuracies, kind="stable")
        others = [k for k in order[1:] if checks * p_value(self.accuracies[k], self.by_luck) <= LEVEL]
        return tuple(self.columns[k] for k in (order[0], *others)) if self.columns else ()


def looked_at(labels: Integers, seed: int) -> Integers:
    """Rows of the photos that the checks look at: of classes with LEAST labels or more, the same number of each where
    there are more than PHOTOS; ascending.
    """
    generator = np.random.default_rng([seed, 0])
    names, counts = np.unique(labels[labels >= 0], return_counts=True)
    names = names[counts >= LEAST]
    names = generator.permutation(names)[: PHOTOS // LEAST]
    each = max(LEAST, PHOTOS // max(1, len(names)))
    rows = [generator.permutation(np.flatnonzero(labels == name))[:each] for name in names]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *rows]))


def measure(features: Any, labels: Integers, seed: int, columns: Sequence[str] | None = None) -> Evidence:
    """Cross-validate on the true labels and on DRAWS orders by luck.

    features  (N, D)  finite; or with `columns` a table (N, K), NaN where unknown
    labels    (N,)    in [0, C), with LEAST photos of each class
    """
    features = as_floats(features)
    if columns is None:
        if features.ndim != 2 or not np.isfinite(features).all():
            raise ValueError("features must be (N, D) and finite; a table with gaps needs its columns' names")
        grams = {TOGETHER: similarity(features)}
    else:
        grams = table_similarities(features, labels.max() + 1, columns)
    generator = np.random.default_rng([seed, 1])
    folds = stratified_folds(labels, generator)
    true = np.arange(len(labels))
    orders = np.stack([true, *(generator.permutation(len(labels)) for _ in range(DRAWS))])
    guesses = np.stack([predictions(gram, labels, folds, orders) for gram in grams.values()])  # (G, 1 + B, N)
    shares = balanced_accuracy(guesses, labels[orders])
    best = int(shares[:, 0].argmax())
    return Evidence(
        columns=tuple(grams) if columns is not None else (),
        accuracies=shares[:, 0],
        by_luck=shares[:, 1:].max(axis=0),
        estimate=with_interval(guesses[best, 0], labels),
        chance=1 / (labels.max() + 1),
    )


def table_similarities(table: Floats, classes: int, columns: Sequence[str]) -> dict[str, Floats]:
    """How alike the photos are by each column that isn't the same for all, and by all of them: names -> (N, N)."""
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise ValueError(f"a table of {len(columns)} columns must be (N, {len(columns)}), got {table.shape}")
    grams = {
        column: column_similarity(values, classes, ordered=column not in CATEGORIES)
        for column, values in zip(columns, table.T, strict=True)
        if len(np.unique(values)) > 1  # unknown counts as one value
    }
    nothing = np.zeros((len(table), len(table)))
    return {**grams, TOGETHER: sum(grams.values(), nothing) / max(1, len(grams))}


def cross_validated(gram: Floats, labels: Integers, seed: int) -> float:
    """Balanced accuracy on the true labels alone, over the folds of `measure`."""
    folds = stratified_folds(labels, np.random.default_rng([seed, 1]))
    guesses = predictions(gram, labels, folds, np.arange(len(labels))[None])
    return float(balanced_accuracy(guesses, labels[None])[0])


def with_interval(guesses: Integers, labels: Integers) -> Estimate:
    """Balanced accuracy of guesses (N,) on labels (N,), with an interval that takes the photos for independent."""
    classes = [guesses[labels == name] == name for name in range(labels.max() + 1)]
    return mean_of_shares([wilson(int(right.sum()), len(right)) for right in classes])


def spelled_out(files: Sequence[Path], names: Sequence[str]) -> set[str]:
    """Columns of the metadata that are no news, for most files carry the name of their class; names: of each file's."""
    plain = [(file, letters(name)) for file, name in zip(files, names, strict=True)]
    in_folder = [bool(name) and name in map(letters, file.parent.parts) for file, name in plain]
    in_name = [bool(name) and name in letters(file.stem) for file, name in plain]
    columns = {"folder"} if np.mean(in_folder) > 0.5 else set()
    if np.mean(in_name) > 0.5:
        columns |= {"prefix", "number"} if any(map(str.isdigit, "".join(names))) else {"prefix"}
    return columns


def letters(name: str) -> str:
    """What a name says, however it is written: "artpainting" of Art_Painting."""
    return "".join(filter(str.isalnum, name.lower()))


# In words ----------------------------------------------------------------------------------------------------------


def too_few(counts: Integers, checks: int) -> bool:
    """Whether even a perfect shortcut might not stand out from luck; counts (C,) photos of each class."""
    # Half the level: luck is drawn, and draws scatter.
    return len(counts) < 2 or checks * least_p_value(counts.tolist()) > LEVEL / 2


def unchecked(name: str, labels: Integers, checks: int) -> Shortcut:
    """What is said where there are too few labels; labels (N,), those of all photos."""
    classes = max(2, len(np.unique(labels[labels >= 0])))
    needed = next(n for n in range(LEAST, 100) if not too_few(np.full(classes, n), checks))
    nothing = Estimate(math.nan, 0.0, 1.0, how="mover-wilson")
    sentence = f"Too few labels to check the {name}: it takes {needed} a class."
    return Shortcut(name, nothing, math.nan, math.nan, math.nan, math.nan, (), sentence)


def told(name: str, evidence: Evidence, p: float, checks: int, whole: float) -> Shortcut:
    """Evidence in words.

    p       its p-value, corrected for all checks made together
    checks  how many these are
    whole   balanced accuracy on the whole photos; NaN: not asked
    """
    accuracy, chance = evidence.estimate, evidence.chance
    columns = evidence.beyond_luck(checks) if p <= LEVEL else ()
    bar = float(np.sort(evidence.by_luck)[-int(LEVEL / checks * (1 + DRAWS))])
    if p <= LEVEL:
        sentence = found_sentence(name, accuracy.value, chance, whole, columns)
    else:
        sentence = nothing_sentence(name, accuracy.value, chance, bar)
    return Shortcut(name, accuracy, chance, whole, p, bar, columns, sentence)


def found_sentence(name: str, accuracy: float, chance: float, whole: float, columns: Sequence[str]) -> str:
    """What was found, what it means and what to do about it; columns: of a table, the best one first."""
    subject, verb = subject_of(name)
    if accuracy > whole:
        beside = f"more than the whole photos, {percent(whole)}; chance {percent(chance)}"
    elif accuracy - chance >= NEARLY * (whole - chance):
        beside = f"about as many as the whole photos, {percent(whole)}; chance {percent(chance)}"
    elif math.isfinite(whole):
        beside = f"whole photos {percent(whole)}, chance {percent(chance)}"
    else:
        beside = f"chance {percent(chance)}"
    by = f" by {spoken(columns[0])}" if columns else ""
    others = [spoken(column) for column in columns[1:] if column != TOGETHER]
    also = f" On their own stand out too: {', '.join(others)}." if others else ""
    advice = ADVICE.get(columns[0] if columns else name, "see that it doesn't give the class away.")
    return f"{subject} {verb} {percent(accuracy)} of the photos right{by} ({beside}): {advice}{also}"


def nothing_sentence(name: str, accuracy: float, chance: float, bar: float) -> str:
    """That nothing was found, and what would have been."""
    subject, verb = subject_of(name)
    power = f"More than {percent(bar)} would have been noticed." if bar < 1 else "So few labels could not show more."
    shares = f"{percent(accuracy)}, chance {percent(chance)}"
    return f"{subject} {verb} no more of the photos right than luck may ({shares}). {power}"


def subject_of(name: str) -> tuple[str, str]:
    """The subject of a sentence, and its verb."""
    return SUBJECTS.get(name, (f"{name[:1].upper()}{name[1:]} alone", "names"))


def spoken(column: str) -> str:
    """A column of a table, in words."""
    return COLUMNS.get(column, column)


def percent(share: float) -> str:
    """0.776 -> "78 %"; what is not all is never rounded to all, nor what is not nothing to nothing."""
    whole = round(100 * share)
    if share not in (0, 1):
        whole = min(99, max(1, whole))
    return f"{whole}\N{NO-BREAK SPACE}%"
