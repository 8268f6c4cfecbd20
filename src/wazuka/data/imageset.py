"""The one form every picture source ends in: packed pixels, labels, and what could not be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from wazuka.errors import UserError

UNLABELED = -1


class Skipped(NamedTuple):
    """A file that gave no picture, and why, in words for a person."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures of one size, decoded once, with their labels. Nothing in it changes after it is made.

    images       (N, C, H, W)  uint8, C = 1 (gray) or 3 (RGB); an array, or a read-only memory map of the cache
    labels       (N,)          int64 positions in `classes`; -1 where there is no label
    classes                    class names; the position is the label
    names                      one unique name an image: the path below the folder, or an id
    skipped                    what could not be read, with the reason
    notes                      what was read, but not as it stands in the file ("first frame of an animation")
    fingerprint                hash of the encoded pictures, their names and the size they were brought to;
                               the labels are not in it
    extras                     further columns of the source, each an array of N entries (a group, a domain...)
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    names: Sequence[str]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise ValueError(
                "images must be uint8 of shape (N, C, H, W) with C = 1 or 3, "
                f"got {self.images.dtype} of shape {self.images.shape}"
            )
        if self.labels.shape != (len(self.images),):
            raise ValueError(f"labels must have shape ({len(self.images)},), got {self.labels.shape}")
        if len(self.names) != len(self.images):
            raise ValueError(f"there are {len(self.images)} images but {len(self.names)} names")
        for column, values in self.extras.items():
            if len(values) != len(self.images):
                raise ValueError(f"extras[{column!r}] has {len(values)} entries for {len(self.images)} images")
        labels = self.labels.astype(np.int64)  # a copy: no caller can edit ours
        if len(labels) and (labels.min() < UNLABELED or labels.max() >= len(self.classes)):
            raise ValueError(
                f"labels must lie in -1...{len(self.classes) - 1}, got {labels.min()} to {labels.max()} "
                f"for {len(self.classes)} classes"
            )
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        _, channels, height, width = self.images.shape
        parts = [f"{len(self):,} images of {channels}x{height}x{width}", f"{self.n_classes} classes"]
        parts.append(f"{self.n_labeled:,} labeled")
        if self.skipped:
            parts.append(f"{len(self.skipped):,} skipped")
        return f"ImageSet({', '.join(parts)})"

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def n_labeled(self) -> int:
        return int(np.count_nonzero(self.labels != UNLABELED))

    @property
    def channels(self) -> int:
        return int(self.images.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    @property
    def labeled(self) -> np.ndarray:
        """Positions of the images that have a label, ascending."""
        return np.flatnonzero(self.labels != UNLABELED)

    @property
    def unlabeled(self) -> np.ndarray:
        """Positions of the images that have none, ascending."""
        return np.flatnonzero(self.labels == UNLABELED)

    def class_counts(self) -> np.ndarray:
        """(C,) labeled images of each class."""
        return np.bincount(self.labels[self.labeled], minlength=self.n_classes)

    def subset(self, indices: np.ndarray | Sequence[int]) -> "ImageSet":
        """The images at `indices` (positions, or a boolean mask), in that order.

        A run of neighbors stays a view of the memory map; anything else copies its pixels into memory.
        """
        indices = np.asarray(indices)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise ValueError(f"a mask must have shape ({len(self)},), got {indices.shape}")
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"indices must lie in 0...{len(self) - 1}, got {indices.min()} to {indices.max()}")
        run = len(indices) > 0 and bool((np.diff(indices) == 1).all())
        where: Any = slice(int(indices[0]), int(indices[-1]) + 1) if run else indices
        everything = run and len(indices) == len(self)
        return replace(
            self,
            images=self.images[where],
            labels=self.labels[where],
            names=tuple(self.names[i] for i in indices.tolist()),
            extras={column: values[where] for column, values in self.extras.items()},
            fingerprint=self.fingerprint if everything else _derived(self.fingerprint, indices.tobytes()),
        )

    def with_labels(self, labels: np.ndarray, classes: Sequence[str] | None = None) -> "ImageSet":
        """The same images with other labels ((N,) integers, -1 for none) and, if given, other class names."""
        labels = np.asarray(labels)
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers, got {labels.dtype}")
        return replace(self, labels=labels, classes=self.classes if classes is None else tuple(classes))

    def keep_labels(self, indices: np.ndarray | Sequence[int]) -> "ImageSet":
        """The same images, with the labels outside `indices` hidden (-1): how a few-label draw is applied."""
        labels = np.full(len(self), UNLABELED, dtype=np.int64)
        labels[indices] = self.labels[indices]
        return self.with_labels(labels)

    def with_channels(self, channels: int) -> "ImageSet":
        """The same images in gray (1) or RGB (3). Gray is Pillow's ITU-R 601 luma, to the last bit."""
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {channels}")
        if channels == self.channels:
            return self
        images = np.repeat(self.images, 3, axis=1) if channels == 3 else luma(self.images)
        return replace(self, images=images, fingerprint=_derived(self.fingerprint, f"{channels} channels".encode()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """What `open_images` returns: pictures to learn from, and the test pictures where the source has any.

    name      a short name: the folder's, the file's or the named set's
    source    where it came from, in words: a path, "arrays", "scikit-learn"...
    train     every picture that may be learned from, labeled or not
    test      pictures kept for testing, or None; same classes, same size
    """

    name: str
    source: str
    train: ImageSet
    test: ImageSet | None = None

    def __post_init__(self) -> None:
        if self.test is not None and self.test.classes != self.train.classes:
            raise ValueError("train and test must have the same classes in the same order")
        if self.test is not None and self.test.images.shape[1:] != self.train.images.shape[1:]:
            raise ValueError(
                f"train images of {self.train.images.shape[1:]} and test images of {self.test.images.shape[1:]} differ"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.train.skipped + (self.test.skipped if self.test is not None else ())

    @property
    def notes(self) -> tuple[str, ...]:
        return self.train.notes + (self.test.notes if self.test is not None else ())

    @property
    def fingerprint(self) -> str:
        return _derived(self.train.fingerprint, self.test.fingerprint.encode() if self.test is not None else b"")

    def with_channels(self, channels: int) -> "Dataset":
        test = self.test.with_channels(channels) if self.test is not None else None
        return replace(self, train=self.train.with_channels(channels), test=test)


def luma(images: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) uint8 -> (N, 1, H, W) uint8, with the integer weights of Pillow's convert("L")."""
    gray = np.empty((len(images), 1, *images.shape[2:]), dtype=np.uint8)
    for start in range(0, len(images), 1024):  # in blocks, because the sums need four bytes a pixel
        red, green, blue = (images[start : start + 1024, c].astype(np.uint32) for c in range(3))
        gray[start : start + 1024, 0] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return gray


def require_labels(data: Dataset, classes: int = 2) -> None:
    """Raise a UserError unless `data.train` has labels of at least `classes` classes."""
    if data.train.n_labeled == 0:
        raise UserError(
            f"{data.name} has no labels: put the images of each class in a subfolder named after it, "
            "or give a CSV file with the columns file,label"
        )
    present = int(np.count_nonzero(data.train.class_counts()))
    if present < classes:
        raise UserError(
            f"{data.name} has labels of {present} class{'es' * (present != 1)}, but learning needs at least {classes}: "
            "label images of another class"
        )


def _derived(fingerprint: str, change: bytes) -> str:
    from hashlib import blake2b

    return blake2b(fingerprint.encode() + b"\0" + change, digest_size=16).hexdigest()
