"""The cache of decoded pictures: decoded once, mapped into memory ever after.

    CACHE/index/KEY.json    where a source (a place and a shape) was last seen, and as which pack
    CACHE/packs/KEY/        images.npy, rows.json, stamps.json and, for tables, columns.npz; KEY hashes the contents

A start asks the index first. It holds the source's stamp, made of paths, sizes and times; if that is still the same, no
picture is read. Otherwise the new and changed ones are decoded, the others taken from the pack before, into a temporary
folder that is renamed into place when complete, so that neither kill -9 nor a second process leaves or sees half a
pack. Two processes that decode the same source at once both succeed, and the later one keeps the earlier one's pack.
Deleting the cache folder is always safe.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from wazuka.atomic import write_atomic
from wazuka.data.decode import Shape
from wazuka.data.imageset import Skipped
from wazuka.data.pack import Item, Memory, Progress, pack
from wazuka.errors import UserError

_VERSION = 1  # raised whenever the same file would come out as other pixels
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError)  # what opening a half-deleted cache may raise
_STALE = 24 * 3600  # seconds after which a temporary folder is taken for a dead process's


@dataclass(frozen=True)
class Table:
    """What a source knows about its pictures beside the pixels, kept in the cache with them.

    columns    arrays of one entry a picture, numbers or text
    facts      anything that fits into JSON
    """

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where pictures come from, in the form the cache asks for.

    place      identity: the same place with another stamp has changed
    stamp      cheap proof that nothing changed (a hash of paths, sizes and times)
    total      number of items
    items      yields them; called up to three times
    sample     yields some from all over the source
    table      given the positions of the items that could be read, the columns that go with them
    """

    place: str
    stamp: str
    total: int
    items: Callable[[], Iterable[Item]]
    sample: Callable[[], Iterable[Item]] | None = None
    table: Callable[[np.ndarray], Table] | None = None


@dataclass(frozen=True)
class Pack:
    """Decoded pictures: images (N, C, H, W) uint8 and what belongs to each."""

    images: np.ndarray
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    fingerprint: str
    table: Table


def cache_folder(cache: str | Path | bool | None = None) -> Path:
    """`cache` if it is a folder, else $WAZUKA_CACHE, else the platform's folder for caches."""
    if isinstance(cache, (str, Path)):
        return Path(cache).expanduser()
    if named := os.environ.get("WAZUKA_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "wazuka"


def open_pack(
    source: Source, shape: Shape, cache: str | Path | bool | None = None, progress: Progress | None = None
) -> Pack | list[Skipped]:
    """The decoded pictures of `source`; only the skipped if none can be read.

    cache      a folder, None for the usual one, False to decode into memory and keep nothing
    """
    if cache is False:
        with tempfile.TemporaryDirectory(prefix="wazuka-") as scratch:
            made = _make(source, shape, Path(scratch), progress)
            return made if isinstance(made, list) else _load(Path(scratch), in_memory=True)
    folder = cache_folder(cache)
    found = find_pack(source.place, source.stamp, shape, folder)
    if found is not None:
        return found
    packs = folder / "packs"
    try:
        packs.mkdir(parents=True, exist_ok=True)
        _sweep(packs)
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=packs))
    except OSError as error:
        raise _cache_error(folder, error) from None
    try:
        made = _make(source, shape, temporary, progress, _memory(folder, source, shape))
        if isinstance(made, list):
            return made
        _move(temporary, packs / made)
        _enter(folder, source, shape, made)
        return _load(packs / made)
    except OSError as error:
        raise _cache_error(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_pack(place: str, stamp: str, shape: Shape, folder: Path) -> Pack | None:
    """The pack of an unchanged source, or None. Reads no picture."""
    entry = _entry(folder, place, shape)
    if entry is None or entry.get("stamp") != stamp:
        return None
    try:
        return _load(folder / "packs" / str(entry["pack"]))
    except _DAMAGED:
        return None  # deleted or damaged: it is made again


def _make(
    source: Source, shape: Shape, folder: Path, progress: Progress | None, memory: Memory | None = None
) -> str | list[Skipped]:
    """Decode into `folder`; return the pack's key, or the skipped if nothing could be read."""
    packed = pack(source.items, source.total, shape, folder / "images.npy", progress, source.sample, memory)
    if isinstance(packed, list):
        return packed
    table = source.table(packed.rows) if source.table is not None else Table()
    key = blake2b(f"{_VERSION} {packed.fingerprint}".encode(), digest_size=16)
    key.update(json.dumps([packed.skipped, dict(table.facts)], sort_keys=True).encode())
    if table.columns:
        with open(folder / "columns.npz", "wb") as file:
            columns: Any = dict(table.columns)  # never of objects: nothing in the cache needs pickle
            np.savez(file, **columns)
            file.flush()
            os.fsync(file.fileno())
        for name in sorted(table.columns):
            key.update(name.encode() + np.ascontiguousarray(table.columns[name]).tobytes())
    facts = {
        "names": packed.names,
        "skipped": packed.skipped,
        "remarks": packed.remarks,
        "fingerprint": packed.fingerprint,
        "facts": dict(table.facts),
    }
    write_atomic(folder / "rows.json", json.dumps(facts))
    stamps = {"stamps": packed.stamps, "digests": [digest.hex() for digest in packed.digests]}
    write_atomic(folder / "stamps.json", json.dumps(stamps))
    return key.hexdigest()


def _memory(folder: Path, source: Source, shape: Shape) -> Memory | None:
    """What an earlier pack of this source remembers; None if there is none, or it came from no files."""
    entry = _entry(folder, source.place, shape)
    if entry is None:
        return None
    try:
        pack = folder / "packs" / str(entry["pack"])
        facts, stored = json.loads((pack / "rows.json").read_bytes()), json.loads((pack / "stamps.json").read_bytes())
        rows = {key: i for i, key in enumerate(zip(facts["names"], stored["stamps"], strict=True)) if key[1]}
        images = np.load(pack / "images.npy", mmap_mode="r", allow_pickle=False)
        digests = [bytes.fromhex(digest) for digest in stored["digests"]]
        return Memory(images, rows, digests, facts["remarks"]) if rows else None
    except _DAMAGED:
        return None


def _load(folder: Path, in_memory: bool = False) -> Pack:
    facts = json.loads((folder / "rows.json").read_bytes())
    images = np.load(folder / "images.npy", mmap_mode=None if in_memory else "r", allow_pickle=False)
    if len(images) != len(facts["names"]):
        raise ValueError(f"{folder} is damaged")
    columns = {}
    if (folder / "columns.npz").exists():
        with np.load(folder / "columns.npz", allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
    return Pack(
        images=images,
        names=tuple(facts["names"]),
        skipped=tuple(Skipped(*entry) for entry in facts["skipped"]),
        notes=tuple(f"{name}: {remark}" for name, remark in facts["remarks"].items()),
        fingerprint=facts["fingerprint"],
        table=Table(columns, facts["facts"]),
    )


def _move(temporary: Path, place: Path) -> None:
    """Rename a complete pack into place; if another process was first, keep the other's."""
    try:
        temporary.chmod(0o755)  # mkdtemp gives 0700, which would hide a shared cache from colleagues
        os.rename(temporary, place)
    except OSError:
        try:
            _load(place)
        except _DAMAGED:  # what is there is damaged
            shutil.rmtree(place, ignore_errors=True)
            os.rename(temporary, place)


def _entry_path(folder: Path, place: str, shape: Shape) -> Path:
    key = blake2b(repr((_VERSION, place, shape)).encode(errors="surrogateescape"), digest_size=16)
    return folder / "index" / f"{key.hexdigest()}.json"


def _entry(folder: Path, place: str, shape: Shape) -> dict[str, Any] | None:
    try:
        entry = json.loads(_entry_path(folder, place, shape).read_bytes())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None


def _enter(folder: Path, source: Source, shape: Shape, key: str) -> None:
    """Note the pack in the index, and remove the one it replaces unless another source uses it too."""
    old = _entry(folder, source.place, shape)
    place = source.place.encode(errors="backslashreplace").decode()
    write_atomic(
        _entry_path(folder, source.place, shape),
        json.dumps({"place": place, "shape": repr(shape), "stamp": source.stamp, "pack": key}),
    )
    if old is None or old.get("pack") in (None, key):
        return
    for path in (folder / "index").glob("*.json"):
        try:
            if json.loads(path.read_bytes()).get("pack") == old["pack"]:
                return
        except (OSError, ValueError):
            return
    shutil.rmtree(folder / "packs" / str(old["pack"]), ignore_errors=True)


def _sweep(packs: Path) -> None:
    """Remove what killed processes left, once it is surely theirs."""
    for path in packs.glob(".making-*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _cache_error(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"can't write the cache of decoded images in {folder} ({error.strerror or error}): "
        "free space there, or set WAZUKA_CACHE to another folder"
    )
