"""`open_images`: the one door for pictures, whatever form they come in."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wazuka.data.decode import Shape
from wazuka.data.folder import open_files, open_folder
from wazuka.data.imageset import Dataset
from wazuka.data.listing import list_folder
from wazuka.data.named import is_named, known_names, open_named, open_parquet
from wazuka.data.pack import Progress
from wazuka.data.table import LabelTable, labels_from_mapping, read_labels
from wazuka.errors import UserError

_LABEL_FILES = (".csv", ".tsv")


def open_images(
    source: Any,
    labels: Any = None,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
    common: int = 64,
    cache: str | Path | bool | None = None,
    progress: Progress | None = None,
    check: bool = True,
) -> Dataset:
    """Open pictures of any form; decode them once, and map them from the cache ever after.

    source      a folder with a subfolder for each class (and unlabeled/, loose files, test/, or train/ and test/);
                a folder whose labels stand in a file; a Parquet file or folder; a .npy or .npz file; an array of
                images; a label file that lies beside its images; an image file, or a list of them; or a public set's
                name ("digits", "mnist", "pacs/photo"...). A path that exists goes before a name.
    labels      for a folder: a CSV file, or {file: label}; for arrays: (N,) integers or names, -1 or None where
                unknown; for Parquet: the name of the label column
    size        pixels: a side, or (height, width). None: pictures that share a size of at most 96 keep it, all others
                become `common` x `common`
    channels    1 gray or 3 RGB. None: 1 if every picture is gray, else 3
    fit         what happens to another aspect ratio: "crop" the center, "pad" with black, or "squash"
    cache       a folder; None: $WAZUKA_CACHE or the platform's cache folder; False: keep nothing
    progress    called with (pictures done, pictures in all) while decoding
    check       raise for a class without an image and for a single class; off for prediction

    Raises UserError, one sentence, for anything wrong with the input as a whole. Single files that can't be read never
    stop it: they stand in `skipped`.
    """
    shape = _shape(size, channels, fit, common)
    if isinstance(source, (str, Path)):
        return _open_path(str(source), labels, shape, cache, progress, check)
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, Path)) for item in source):
        if labels is not None:
            raise UserError("labels go with a folder or with arrays, not with a list of files")
        return open_files([_existing(item) for item in source], shape, cache, progress)
    from wazuka.data.arrays import open_arrays

    return open_arrays(source, labels, shape)


def _open_path(
    source: str,
    labels: Any,
    shape: Shape,
    cache: str | Path | bool | None,
    progress: Progress | None,
    check: bool,
) -> Dataset:
    path = Path(os.path.expanduser(source))
    if not source.strip():
        raise UserError("the name of the images is empty: give a folder, a file or the name of a data set")
    if path.is_dir():
        return _open_folder(path, labels, shape, cache, progress, check)
    if path.is_file():
        ending = path.suffix.lower()
        if ending in (".parquet", ".pq"):
            return open_parquet(path, shape, cache, progress, label=_column(labels))
        if ending in (".npy", ".npz"):
            from wazuka.data.arrays import open_array_file

            return open_array_file(path, labels, shape)
        if ending in _LABEL_FILES and labels is None:
            return _open_folder(path.resolve().parent, path, shape, cache, progress, check)
        if labels is not None:
            raise UserError(f"labels go with a folder or with arrays, but {source} is a single file")
        return open_files([path], shape, cache, progress)
    if is_named(source):
        if labels is not None:
            raise UserError(f"{source} has its own labels: leave the others out")
        return open_named(source, shape, cache, progress)
    raise missing(source)


def _open_folder(
    folder: Path,
    labels: Any,
    shape: Shape,
    cache: str | Path | bool | None,
    progress: Progress | None,
    check: bool,
) -> Dataset:
    is_file = isinstance(labels, (str, Path))
    listing = list_folder(folder, leave_out={Path(labels).expanduser().resolve()} if is_file else ())
    if any(name.endswith(".parquet") for name in listing.names):
        return open_parquet(folder, shape, cache, progress, label=_column(labels))
    return open_folder(folder, listing, _table(labels), shape, cache, progress, check)


def _table(labels: Any) -> LabelTable | None:
    if labels is None:
        return None
    if isinstance(labels, (str, Path)):
        return read_labels(labels)
    if isinstance(labels, Mapping):
        return labels_from_mapping(labels)
    raise UserError("the labels of a folder must be a CSV file or a mapping from file to label")


def _column(labels: Any) -> str | None:
    if labels is None or isinstance(labels, str):
        return labels
    raise UserError("the labels of a Parquet source must be the name of its label column")


def _shape(size: int | tuple[int, int] | None, channels: int | None, fit: str, common: int) -> Shape:
    if size is not None and not isinstance(size, tuple):
        size = (int(size), int(size))
    return Shape(size, channels, fit, common)


def _existing(item: str | Path) -> Path:
    path = Path(os.path.expanduser(item))
    if not path.exists():
        raise missing(str(item))
    if path.is_dir():
        raise UserError(f"{item} is a folder: give either one folder or a list of files")
    return path


def missing(source: str) -> UserError:
    """Nothing has this name: offer what looks like it, beside where it should be and among the public sets."""
    path = Path(os.path.expanduser(source))
    try:
        beside = {entry.name: str(path.parent / entry.name) for entry in path.parent.iterdir()}
    except OSError:
        beside = {}
    close = [beside[name] for name in difflib.get_close_matches(path.name, beside, n=2, cutoff=0.6)]
    close += difflib.get_close_matches(source.lower(), known_names(), n=3 - len(close), cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names are {', '.join(known_names())}"
    return UserError(f"there is no folder, file or data set {source}; {hint}")
