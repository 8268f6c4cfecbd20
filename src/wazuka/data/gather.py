"""Folders, files and patterns, mixed as people give them -> one list of files, each once."""

import codecs
import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wazuka.data.cache import open_pack
from wazuka.data.decode import Shape
from wazuka.data.folder import files_source
from wazuka.data.imageset import UNLABELED, Dataset, ImageSet, Skipped
from wazuka.data.listing import Listing, combined, list_folder, printable, stamp_file
from wazuka.data.opening import missing
from wazuka.data.pack import Progress
from wazuka.errors import UserError

_SETS = (".parquet", ".pq", ".npz", ".npy")  # one file of many images
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")  # how the bytes of the most common ones start


@dataclass
class Gathered:
    """Files, each once, in the order they were named.

    names    as given; of a file in a given folder: that folder as given, and the path in it
    paths    where each lies
    stamps   of each, as in a Listing
    left     what is not looked at, and why
    """

    names: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    stamps: list[str] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _folders: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, stamp: str | None = None) -> None:
        """One file, unless it is there already under another spelling of its path."""
        folder = name[: name.rfind("/") + 1]
        if folder not in self._folders:  # many files, few folders
            self._folders[folder] = os.path.realpath(folder)
        path = os.path.join(self._folders[folder], name[len(folder) :])  # a link to a file is a file of its own
        identity = os.path.normcase(path)
        if identity in self._seen:
            return
        self._seen.add(identity)
        if name.lower().endswith(_SETS):
            self.left.append(Skipped(printable(name), "a file of many images, which is to be given alone"))
            return
        try:
            stamp = stamp_file(Path(path)) if stamp is None else stamp
        except OSError as error:
            if not os.path.lexists(path):
                self.left.append(Skipped(printable(name), f"not there ({error.strerror})"))
                return
            stamp = "gone"  # a link to nowhere: the decoder says so
        self.names.append(printable(name))
        self.paths.append(path)
        self.stamps.append(stamp)

    def add_folder(self, folder: Path) -> Listing:
        """All files below a folder."""
        listing = list_folder(folder)
        for name, stamp in zip(listing.names, listing.stamps, strict=True):
            self.add((folder / name).as_posix(), stamp)
        self.left += [Skipped(printable((folder / name).as_posix()), reason) for name, reason in listing.unreadable]
        return listing

    def add_any(self, path: str) -> None:
        """A file, or all that a folder holds."""
        if os.path.isdir(path):
            self.add_folder(Path(path))
        else:
            self.add(Path(path).as_posix())


def is_mixed(source: Any) -> bool:
    """Whether `open_gathered` is to open it: a list of paths, or a pattern (and not a path with a star in it)."""
    if isinstance(source, (str, Path)):
        return glob.has_magic(str(source)) and not os.path.lexists(os.path.expanduser(source))
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(item, (str, Path)) for item in source)


def gather(given: Sequence[str | Path], listed: Sequence[str] = ()) -> Gathered:
    """Find the files.

    given    folders, files and patterns (*, ?, [...]; ** for any folders). Raises UserError for one that finds nothing
    listed   more files and folders, from a list that a program made: never patterns, and what is not there is told in
             its row
    """
    found = Gathered()
    for item in map(str, given):
        path = os.path.expanduser(item)
        if os.path.isdir(path):
            listing = found.add_folder(Path(path))
            if not listing.names:
                reason = f"; it is {listing.unreadable[0].reason}" if listing.unreadable else ""
                raise UserError(f"{item} holds no image{reason}")
        elif os.path.lexists(path):
            found.add_any(path)
        elif glob.has_magic(path):
            for match in _matches(item, path):
                found.add_any(match)
        else:
            raise missing(item) if item.strip() else UserError("a name among those of the images is empty")
    for name in listed:
        found.add_any(name)
    return found


def open_gathered(
    given: Sequence[str | Path],
    listed: Sequence[str],
    shape: Shape,
    cache: str | Path | bool | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The images of all these files, without labels. Raises UserError where none can be read."""
    found = gather(given, listed)
    title = str(given[0]) if len(given) == 1 and not listed else "all that was given"
    if not found.names:
        raise _unreadable(found.left, title)
    # Known by the words, not by what they find: a new photo costs its own decoding, and takes the old pack's place.
    words = [*map(str, given), *["-"] * bool(listed)]
    place = "gathered " + combined([os.getcwd()] * len(words), words)
    pack = open_pack(files_source(found.names, found.paths, found.stamps, place), shape, cache, progress)
    if isinstance(pack, list):
        raise _unreadable(pack + found.left, title)
    labels, skipped = np.full(len(pack.images), UNLABELED), (*pack.skipped, *found.left)
    images = ImageSet(pack.images, labels, (), pack.names, skipped, notes=pack.notes, fingerprint=pack.fingerprint)
    return Dataset(title, title, images)


def names_in(content: bytes) -> list[str]:
    """File names out of a list: one a line or, as `find -print0` writes them, each ended by a NUL, which no name holds.

    Raises UserError for an image in the place of a list.
    """
    if content.startswith(_IMAGES):
        raise UserError('standard input holds an image, but "-" stands for a list of file names, one a line')
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes; it is full of NULs
        text = content.decode("utf-16", "replace")
    else:
        text = content.decode(sys.getfilesystemencoding(), "surrogateescape").removeprefix("\ufeff")
    if "\0" in text:
        return [name for name in text.split("\0") if name]
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _matches(written: str, pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))
    if found:
        return found
    stem, ending = os.path.splitext(pattern)
    other = ending.swapcase()
    hint = f"; *{other} would" if other != ending and glob.glob(stem + other, recursive=True) else ""
    raise UserError(f"no file matches {written}{hint}")


def _unreadable(skipped: Sequence[Skipped], title: str) -> UserError:
    if not skipped:
        return UserError(f"{title} holds no image")
    first = skipped[0]
    if len(skipped) == 1:
        return UserError(f"{first.name} could not be read as an image: it is {first.reason}")
    return UserError(f"none of {len(skipped):,} files could be read as an image; {first.name}: {first.reason}")
