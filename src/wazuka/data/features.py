"""Features of images, extracted once: kept by the image's own pixels, so that new photos cost only themselves.

    CACHE/features/BACKBONE/NAME.features    rows of float16, one an image
    CACHE/features/BACKBONE/NAME.digests     as many hashes of 16 bytes, of each image's pixels and size
    CACHE/features/BACKBONE/sets/KEY.npz     for a set of images seen whole: where its rows are
    CACHE/features/BACKBONE/sets/KEY.npy     of a large set: its rows in its order

A process appends to files of its own name, features first: after kill -9 the rows that have a digest are good, and the
next start goes on behind them. Nothing is ever changed in place, so that processes may share the folder. Deleting it
is always safe.
"""

import os
import uuid
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from wazuka.atomic import save_atomic
from wazuka.data.imageset import ImageSet
from wazuka.errors import UserError

_BLOCK = 512  # images between two looks at the store: what a kill may cost
_DIGEST = 16  # bytes
IN_MEMORY_BYTES = 2**27  # features up to here are handed over in memory; more as a map of a file
_DAMAGED = (OSError, ValueError, KeyError, EOFError)

Extract = Callable[[np.ndarray], np.ndarray]  # (n, C, H, W) uint8 -> (n, D) floats
Progress = Callable[[int, int], object]


class FeatureStore:
    """Features of one backbone, on disk. See `features`."""

    def __init__(self, folder: Path, size: int):
        """`folder` is the backbone's own; `size` the length D of its features."""
        self.folder, self.size = folder, size

    def features(self, images: ImageSet, extract: Extract, progress: Progress | None = None) -> np.ndarray:
        """(N, D) float16 of all images, extracting those that are not at hand.

        extract   called with blocks of images; progress: with (images done, images in all), not at all if none was new
        returns   an array in memory, or for large sets a read-only memory map

        Raises UserError where the cache can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = self._remembered(images)
            if place is None:
                digests = _digests(images.images)
                place = self._locate(digests)
                missing = np.flatnonzero(place[:, 0] < 0)
                if len(missing):
                    _, first = np.unique(digests[missing], return_index=True)  # a picture twice is one
                    self._append(images, missing[np.sort(first)], digests, extract, progress)
                    place = self._locate(digests)
                self._remember(images, place)
            return self._gather(place, images)
        except OSError as error:
            raise UserError(f"can't keep features in {self.folder} ({error.strerror or error}): free space there, or "
                            "set WAZUKA_CACHE to another folder") from error  # fmt: skip

    def _append(
        self, images: ImageSet, rows: np.ndarray, digests: np.ndarray, extract: Extract, progress: Progress | None
    ) -> None:
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        stem = self.folder / name
        with open(f"{stem}.features", "wb") as values, open(f"{stem}.digests", "wb") as keys:
            for at in range(0, len(rows), _BLOCK):
                block = rows[at : at + _BLOCK]
                made = np.asarray(extract(np.asarray(images.images[block])), dtype=np.float16)
                values.write(np.ascontiguousarray(made).tobytes())
                values.flush()
                os.fsync(values.fileno())
                keys.write(digests[block].tobytes())
                keys.flush()
                if progress is not None:
                    progress(at + len(block), len(rows))

    def _segments(self) -> list[tuple[str, np.ndarray]]:
        """(name, digests) of every file, oldest first; a torn tail is left out."""
        found = []
        for path in sorted(self.folder.glob("*.digests"), key=lambda path: (path.stat().st_mtime, path.name)):
            values = path.with_suffix(".features")
            if not values.exists():
                continue
            rows = min(path.stat().st_size // _DIGEST, values.stat().st_size // (2 * self.size))
            if rows:
                found.append((path.stem, np.fromfile(path, dtype=f"V{_DIGEST}", count=rows)))
        return found

    def _locate(self, digests: np.ndarray) -> np.ndarray:
        """(N, 2) int64: position of the segment and row in it, -1 where there is none."""
        place = np.full((len(digests), 2), -1, np.int64)
        self._names = []
        for number, (name, known) in enumerate(self._segments()):
            self._names.append(name)
            order = np.argsort(known)
            at = np.searchsorted(known, digests, sorter=order).clip(max=len(known) - 1)
            row = order[at]
            hit = (known[row] == digests) & (place[:, 0] < 0)
            place[hit, 0], place[hit, 1] = number, row[hit]
        return place

    def _gather(self, place: np.ndarray, images: ImageSet) -> np.ndarray:
        shape, path = (len(place), self.size), self._set_path(images)
        if path is None or 2 * len(place) * self.size <= IN_MEMORY_BYTES:
            out = np.empty(shape, np.float16)
            self._copy(place, out)
            return out
        path = path.with_suffix(".npy")
        if not path.exists():
            save_atomic(path, lambda to: self._copy(place, _new_array(to, shape)))
        return np.asarray(np.lib.format.open_memmap(path, "r"))

    def _copy(self, place: np.ndarray, out: np.ndarray) -> None:
        for number in np.unique(place[:, 0]).tolist():
            path = self.folder / f"{self._names[number]}.features"
            whole = path.stat().st_size // (2 * self.size)  # a torn row at the end is left out
            rows = np.memmap(path, np.float16, "r", shape=(whole, self.size))
            here = np.flatnonzero(place[:, 0] == number)
            for at in range(0, len(here), 8 * _BLOCK):
                some = here[at : at + 8 * _BLOCK]
                out[some] = rows[place[some, 1]]

    def _set_path(self, images: ImageSet) -> Path | None:
        if not images.fingerprint:
            return None
        key = blake2b(f"{images.fingerprint} {images.images.shape}".encode(), digest_size=16).hexdigest()
        return self.folder / "sets" / f"{key}.npz"

    def _remembered(self, images: ImageSet) -> np.ndarray | None:
        """Where the rows of this very set are, if it was seen before and they are still there."""
        path = self._set_path(images)
        if path is None:
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                place, names = stored["place"], stored["names"].tolist()
            if len(place) != len(images):
                return None
            for number, name in enumerate(names):
                rows = (self.folder / f"{name}.features").stat().st_size // (2 * self.size)
                if rows <= place[place[:, 0] == number, 1].max(initial=-1):
                    return None
        except _DAMAGED:
            return None
        self._names = names
        return np.asarray(place)

    def _remember(self, images: ImageSet, place: np.ndarray) -> None:
        path = self._set_path(images)
        if path is None:
            return
        path.parent.mkdir(exist_ok=True)
        names = np.array(self._names)

        def write(to: Path) -> Any:
            with open(to, "wb") as file:
                np.savez(file, place=place, names=names)

        save_atomic(path, write)


def _new_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", np.float16, shape)


def _digests(images: np.ndarray) -> np.ndarray:
    """(N,) hashes of 16 bytes."""
    shape = repr(images.shape[1:]).encode()
    made = [blake2b(np.ascontiguousarray(image).data, digest_size=_DIGEST, key=shape[:64]).digest() for image in images]
    return np.frombuffer(b"".join(made), dtype=f"V{_DIGEST}")
