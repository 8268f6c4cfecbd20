"""What a training gets: few labels drawn, the rest hidden, test images set apart, duplicates found."""

from dataclasses import dataclass

import numpy as np

from wazuka.data import (
    Dataset,
    Draw,
    ImageSet,
    describe_duplicates,
    find_duplicates,
    holdout,
    make_draw,
    require_labels,
)
from wazuka.errors import UserError

HELD_OUT_SHARE = 0.3     # of the labeled images, where a draw leaves labels to spare and no test images are given
HELD_OUT_MOST = 5000


@dataclass(frozen=True)
class Prepared:
    """What is learned from, and what the number will be measured on.

    train     few labels, the rest -1; holds no test image
    test      labeled images that no training sees, or None
    draw      who kept a label, where labels were drawn
    protocol  in words, for the report
    """

    data: Dataset
    train: ImageSet
    test: ImageSet | None
    draw: Draw | None
    protocol: str
    duplicates: list[str]

    @property
    def asked(self) -> ImageSet:
        """The images whose answers are held against the truth: test images, or the labeled ones in turn."""
        return self.test if self.test is not None else self.train.subset(self.train.labeled)


def prepare(
    data: Dataset, labels_per_class: int | None, seed: int, cross_validated: bool, draw: Draw | None
) -> Prepared:
    """Draw the labels and set the test images apart. `draw` redoes an earlier draw. Raises UserError."""
    require_labels(data)
    train, test = data.train, data.test
    if test is not None:
        test = test.subset(test.labeled) if test.n_labeled else None
    protocol = f"on the {len(test):,} test images of {data.name}, which no training saw" if test is not None else ""
    if test is None and labels_per_class is not None:
        apart = _set_apart(train, labels_per_class, seed)
        if apart is not None:
            train, test = train.subset(apart[0]), train.subset(apart[1])
            protocol = f"on {len(test):,} labeled images held out at random, which no training saw"
    if labels_per_class is not None:
        draw = draw or make_draw(train, per_class=labels_per_class, seed=seed)
        train = draw.apply(train)
    if test is None:
        protocol = "by cross-validation on the labels: each is guessed by a network that did not see it"
        if not cross_validated:
            protocol = "not at all: there are no test images, and cross-validation was switched off"
        elif parts_of(train, 2) < 2:
            protocol = "not at all: there are no test images, and a class has a single label, too few to cross-validate"
    duplicates = describe_duplicates(find_duplicates(Dataset(data.name, data.source, train, test)))
    return Prepared(data, train, test, draw, protocol, duplicates)


def _set_apart(train: ImageSet, labels_per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(positions that stay, positions held out for testing); None where the draw would then miss labels."""
    spare = train.n_labeled - labels_per_class * train.n_classes
    size = min(HELD_OUT_MOST, round(HELD_OUT_SHARE * train.n_labeled), spare)
    if size < train.n_classes:
        return None
    try:
        stays, held = holdout(train.labels, size, seed=seed, groups=train.extras.get("group"))
    except UserError:  # a class with a single image, or too few groups
        return None
    left = np.bincount(train.labels[stays] + 1, minlength=train.n_classes + 1)[1:]
    return (stays, held) if left.min() >= labels_per_class else None


def parts_of(train: ImageSet, wanted: int) -> int:
    """Into how many parts the labels can be cut, each with every class: at most `wanted`."""
    counts = train.class_counts()
    return min(wanted, int(counts[counts > 0].min()))
