"""A folder of pictures -> Dataset: a subfolder for each class, or a label file, or no labels at all."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wazuka.data.cache import Source, open_pack
from wazuka.data.decode import Shape
from wazuka.data.imageset import UNLABELED, Dataset, ImageSet
from wazuka.data.listing import Listing, combined, printable, stamp_file
from wazuka.data.pack import SAMPLE, Item, Progress
from wazuka.data.table import LabelTable, match_labels, natural
from wazuka.errors import UserError

_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VALIDATION = ("val", "valid", "validation", "dev")
_UNLABELED = ("unlabeled", "unlabelled", "_unlabeled", "_unlabelled")
LEFT_OUT = "left out"


@dataclass(frozen=True)
class _Layout:
    """What the folders at the top mean.

    splits       folder name -> "train" or "test"
    strict       only the folders in `splits` and the unlabeled one count: there is a folder called train
    """

    splits: dict[str, str]
    strict: bool

    def places(self, names: Sequence[str]) -> list[tuple[str, str | None]]:
        """(split, class or None) of each file, from the folder it lies in."""
        folders = [name.rpartition("/")[0] for name in names]
        known = {folder: self._place(folder) for folder in set(folders)}  # few folders, many files
        return [known[folder] for folder in folders]

    def _place(self, folder: str) -> tuple[str, str | None]:
        parts = folder.split("/") if folder else []
        split = "train"
        if parts and parts[0] in self.splits:
            split = self.splits[parts[0]]
            parts = parts[1:]
        elif parts and self.strict:
            return ("train" if parts[0].casefold() in _UNLABELED else LEFT_OUT), None
        if not parts or parts[0].casefold() in _UNLABELED:
            return split, None
        return split, printable(parts[0])


def open_folder(
    folder: Path,
    listing: Listing,
    table: LabelTable | None,
    shape: Shape,
    cache: str | Path | bool | None = None,
    progress: Progress | None = None,
    check: bool = True,
) -> Dataset:
    """Open a listed folder.

    table    labels by file name; the subfolders' names are then no classes. None: each subfolder is a class
    check    raise UserError for a class without an image and for fewer than two classes (if there is any)
    """
    if not listing.names:
        reason = f"; {listing.unreadable[0].name}: {listing.unreadable[0].reason}" if listing.unreadable else ""
        raise UserError(f"{folder} holds no image{reason}")
    layout = _layout(listing)
    places = layout.places(listing.names)
    if all(split != "train" for split, _ in places):  # nothing but a folder called test: then that is all there is
        layout = _Layout({}, strict=False)
        places = layout.places(listing.names)
    order = {"train": 0, "test": 1, LEFT_OUT: 2}
    chosen = sorted(range(len(places)), key=lambda i: (order[places[i][0]], i))
    chosen = [i for i in chosen if places[i][0] != LEFT_OUT]
    notes = tuple(_left_out(places, listing.names))

    files = [listing.names[i] for i in chosen]
    names = [printable(name) for name in files]
    splits = [places[i][0] for i in chosen]
    labels = [places[i][1] for i in chosen]
    if table is not None:
        matched = match_labels(table, names, folder)  # before decoding: a wrong label file is told at once
        labels = [matched.labels.get(i) for i in range(len(names))]
        splits = [_split(matched.splits.get(i), splits[i], table) for i in range(len(names))]
    if check:
        _check_folders(folder, layout, listing.folders, set(labels), table)
        _check_classes(str(folder), splits, labels, table)

    base = os.path.join(os.fspath(folder.resolve()), "")
    source = files_source(
        names, [base + name for name in files], [listing.stamps[i] for i in chosen], place=f"folder {base}"
    )
    pack = open_pack(source, shape, cache, progress)
    skipped = (pack if isinstance(pack, list) else list(pack.skipped)) + listing.unreadable
    if isinstance(pack, list):
        first = skipped[0]
        raise UserError(
            f"none of the {len(skipped)} files in {folder} could be read as an image; {first.name}: {first.reason}"
        )
    by_name = dict(zip(names, zip(splits, labels, strict=True), strict=True))
    kept = [by_name[name] for name in pack.names]
    if check:
        _check_readable(labels, splits, kept)
    classes = tuple(sorted({label for _, label in kept if label is not None}, key=natural))
    position: dict[str | None, int] = {None: UNLABELED, **{name: i for i, name in enumerate(classes)}}
    everything = ImageSet(
        images=pack.images,
        labels=np.array([position[label] for _, label in kept], dtype=np.int64),
        classes=classes,
        names=pack.names,
        skipped=tuple(skipped),
        notes=pack.notes + notes,
        fingerprint=pack.fingerprint,
    )
    return split_off(everything, np.array([split == "test" for split, _ in kept]), folder.resolve().name, str(folder))


def open_files(
    paths: Sequence[Path], shape: Shape, cache: str | Path | bool | None = None, progress: Progress | None = None
) -> Dataset:
    """Single files, without labels, in the order given. Names are the paths as written."""
    names = [printable(path.as_posix()) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{twice} is given twice")
    try:
        stamps = [stamp_file(path) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}") from None
    resolved = [str(path.resolve()) for path in paths]
    place = "files " + combined(names, resolved)
    pack = open_pack(files_source(names, resolved, stamps, place), shape, cache, progress)
    title = names[0] if len(names) == 1 else f"{len(names)} files"
    if isinstance(pack, list):
        raise UserError(f"{pack[0].name} could not be read as an image: it is {pack[0].reason}")
    labels = np.full(len(pack.images), UNLABELED)
    images = ImageSet(pack.images, labels, (), pack.names, pack.skipped, notes=pack.notes, fingerprint=pack.fingerprint)
    return Dataset(title, title, images)


def files_source(names: list[str], paths: list[str], stamps: list[str], place: str) -> Source:
    """Files -> what the cache asks for."""

    def items(step: int = 1) -> Iterator[Item]:
        for name, path, stamp in zip(names[::step], paths[::step], stamps[::step], strict=True):
            yield Item(name, Path(path), stamp)

    return Source(
        place=place,
        stamp=combined(names, stamps),
        total=len(names),
        items=items,
        sample=lambda: items(max(1, len(names) // SAMPLE)),
    )


def split_off(images: ImageSet, test: np.ndarray, name: str, source: str) -> Dataset:
    """(N,) bool `test` -> Dataset; what was skipped is told on the training side."""
    if not test.any():
        return Dataset(name, source, images)
    return Dataset(name, source, images.subset(~test), replace(images.subset(test), skipped=(), notes=()))


def _layout(listing: Listing) -> _Layout:
    tops = {name.casefold(): name for name in listing.folders if "/" not in name}

    def first(known: Sequence[str]) -> str | None:
        return next((tops[name] for name in known if name in tops), None)

    train, test = first(_TRAIN), first(_TEST)
    if train is None:
        return _Layout({test: "test"} if test is not None else {}, strict=False)
    test = test or first(_VALIDATION)
    return _Layout({train: "train"} | ({test: "test"} if test is not None else {}), strict=True)


def _left_out(places: list[tuple[str, str | None]], names: list[str]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for (split, _), name in zip(places, names, strict=True):
        if split == LEFT_OUT:
            top = printable(name.split("/")[0])
            counts[top] = counts.get(top, 0) + 1
    for top, count in sorted(counts.items()):
        what = "its file was" if count == 1 else f"its {count:,} files were"
        yield f"{top}/: {what} left out, because it lies beside train/ and is neither test/ nor unlabeled/"


def _split(written: str | None, place: str, table: LabelTable) -> str:
    if written is None or written in _UNLABELED:
        return place
    if written in _TRAIN:
        return "train"
    if written in _TEST:
        return "test"
    if written in _VALIDATION:
        return "train"  # the engine draws its own validation images from what may be learned from
    raise UserError(f'{table.source} has the split "{written}": write train, test or nothing')


def _check_folders(
    folder: Path, layout: _Layout, folders: list[str], labels: set[str | None], table: LabelTable | None
) -> None:
    """Each class folder holds at least one file."""
    if table is not None:
        return
    for name in folders:
        if layout.strict and name.split("/")[0] not in layout.splits:
            continue
        inside = name.split("/")[1:] if name.split("/")[0] in layout.splits else name.split("/")
        if len(inside) != 1 or inside[0].casefold() in _UNLABELED or printable(inside[0]) in labels:
            continue
        where = folder / printable(name)
        raise UserError(f'class "{printable(inside[0])}" has no image: add some to {where}, or remove that folder')


def _check_classes(folder: str, splits: list[str], labels: list[str | None], table: LabelTable | None) -> None:
    """At least two classes (or none at all), and every class of the test images can be learned."""
    train = {label for split, label in zip(splits, labels, strict=True) if split == "train" and label is not None}
    test = {label for split, label in zip(splits, labels, strict=True) if split == "test" and label is not None}
    where = f"{table.source}" if table is not None else folder
    if only := sorted(test - train, key=natural):
        raise UserError(
            f'class "{only[0]}" has no example to learn from, for all its images in {where} are test images: '
            "add one to the training images"
        )
    if len(train) == 1:
        name = next(iter(train))
        mend = "label images of another class" if table else "put images of another class in a subfolder beside it"
        raise UserError(f'{where} has only one class, "{name}", but learning needs at least two: {mend}')


def _check_readable(labels: list[str | None], splits: list[str], kept: list[tuple[str, str | None]]) -> None:
    """Every class still has an example after the unreadable files are gone."""
    wanted = {label for split, label in zip(splits, labels, strict=True) if split == "train" and label is not None}
    readable = {label for split, label in kept if split == "train"}
    if lost := sorted(wanted - readable, key=natural):
        raise UserError(
            f'class "{lost[0]}" has no image that can be read: add one that opens in an image viewer, '
            "or take the class out"
        )
