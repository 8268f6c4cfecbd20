"""Decode many pictures in parallel into one .npy file of packed pixels.

Threads, not processes: Pillow lets go of Python's lock while it decodes, threads start at once, and a script without
`if __name__ == "__main__"` keeps working. benchmarks/second_start.py measures both.
"""

import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from wazuka.data.decode import Picture, Shape, Unreadable, decode, measure
from wazuka.data.imageset import Skipped

KEPT_SIDE = 96  # pictures that share a size up to this keep it; every other set is brought to shape.common
_CHUNK = 64  # most pictures a task: enough to make the queue cheap
_TICKS = 128  # least tasks a thread, so that the progress bar moves smoothly even if each picture takes long
_PEEK = 16 << 20  # bytes from which a file's header is looked at before the file is read
_LARGEST_FILE = 1 << 30  # bytes
SAMPLE = 64  # pictures whose headers are looked at before the size is decided
_COLOR_SAMPLE = 8  # of them, pictures that are decoded to see whether there is color


class Item(NamedTuple):
    """One picture to decode: its name, and its encoded bytes or the file that holds them (None: there are none).

    stamp    a file's size and times; "" where there is no such thing
    """

    name: str
    content: bytes | Path | None
    stamp: str = ""


Progress = Callable[[int, int], object]  # called with (pictures done, pictures in all)


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    rows        positions, among the items, of the pictures that could be read
    remarks     name -> what a person should know of that picture
    digests     hash of each picture's encoded bytes
    stamps      each item's stamp
    """

    names: list[str]
    rows: np.ndarray
    skipped: list[Skipped]
    remarks: dict[str, str]
    digests: list[bytes]
    stamps: list[str]
    fingerprint: str


@dataclass(frozen=True)
class Memory:
    """An earlier pack of the same source and shape, from which unchanged files need no decoding.

    rows    (name, stamp) -> row
    """

    images: np.ndarray
    rows: Mapping[tuple[str, str], int]
    digests: list[bytes]
    remarks: Mapping[str, str]


@dataclass(frozen=True)
class _Plan:
    """The shape of every row. A guess of `keep_size` or `keep_gray` holds until a picture contradicts it."""

    shape: Shape
    size: tuple[int, int]
    channels: int
    keep_size: bool
    keep_gray: bool


class _Surprise(Exception):
    """A picture contradicts the plan, which is to be widened to this one."""

    def __init__(self, plan: _Plan):
        super().__init__()
        self.plan = plan


@dataclass
class _Result:
    name: str
    stamp: str
    digest: bytes = b""
    picture: Picture | None = None
    reason: str = ""


def pack(
    items: Callable[[], Iterable[Item]],
    total: int,
    shape: Shape,
    path: Path,
    progress: Progress | None = None,
    sample: Callable[[], Iterable[Item]] | None = None,
    memory: Memory | None = None,
) -> Packed | list[Skipped]:
    """Decode all items into `path`, a .npy file of (N, C, H, W) uint8; return the skipped alone if none can be read.

    items      called to decode them, and again (at most twice) if a picture far down the line shows that the set has
               several sizes, or color
    total      how many items there are
    sample     some items from all over the set, whose headers are looked at first
    memory     spares the decoding of files that have not changed
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode has its own limit
        spread = sample or (lambda: islice(items(), 0, None, max(1, total // SAMPLE)))
        plan = _first_plan(spread(), shape)
        while True:
            try:
                return _write(items(), total, plan, path, progress, memory)
            except _Surprise as surprise:
                plan = surprise.plan


def n_threads() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_plan(sample: Iterable[Item], shape: Shape) -> _Plan:
    """Guess size and channels, as far as they are not given, from pictures spread over the set."""
    sizes: set[tuple[int, int]] = set()
    color = False
    tried = 0
    for item in sample if shape.size is None or shape.channels is None else ():
        try:
            data = _read(item.content)
            sizes.add(measure(data))
            if not color and tried < _COLOR_SAMPLE and shape.channels is None:
                tried += 1
                color = len(decode(data, Shape((shape.common, shape.common))).pixels) == 3
        except Unreadable:
            continue
        if len(sizes) > 1 and (color or tried == _COLOR_SAMPLE or shape.channels is not None):
            break
    keep = shape.size is None and len(sizes) == 1 and all(side <= KEPT_SIDE for size in sizes for side in size)
    size = shape.size or (next(iter(sizes)) if keep else (shape.common, shape.common))
    channels = shape.channels or (3 if color else 1)
    return _Plan(shape, size, channels, keep_size=keep, keep_gray=shape.channels is None and not color)


def _write(
    items: Iterable[Item], total: int, plan: _Plan, path: Path, progress: Progress | None, memory: Memory | None
) -> Packed | list[Skipped]:
    names: list[str] = []
    rows: list[int] = []
    skipped: list[Skipped] = []
    remarks: dict[str, str] = {}
    digests: list[bytes] = []
    stamps: list[str] = []
    fingerprint = blake2b(repr((plan.size, plan.channels, plan.shape.fit)).encode(), digest_size=16)
    with open(path, "wb") as file:
        _write_header(file, total, plan)
        for row, result in enumerate(_decoded(items, total, plan, progress, memory)):
            if result.picture is None:
                skipped.append(Skipped(result.name, result.reason))
                continue
            file.write(_row(result.picture, plan).tobytes())
            names.append(result.name)
            rows.append(row)
            stamps.append(result.stamp)
            digests.append(result.digest)
            fingerprint.update(result.digest + result.name.encode() + b"\0")
            if result.picture.remark:
                remarks[result.name] = result.picture.remark
        if not rows:
            return skipped
        file.seek(0)
        _write_header(file, len(rows), plan)
        file.flush()
        os.fsync(file.fileno())
    return Packed(names, np.array(rows, dtype=np.int64), skipped, remarks, digests, stamps, fingerprint.hexdigest())


def _write_header(file: BinaryIO, rows: int, plan: _Plan) -> None:
    # numpy leaves room for the first number to grow, so the header of fewer rows is as long as the first one.
    shape = (rows, plan.channels, *plan.size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _row(picture: Picture, plan: _Plan) -> np.ndarray:
    """The picture's (C, H, W) pixels as the plan wants them; raises _Surprise if it can't have them."""
    pixels = picture.pixels
    if plan.keep_size and pixels.shape[1:] != plan.size:
        raise _Surprise(replace(plan, size=(plan.shape.common, plan.shape.common), keep_size=False))
    if len(pixels) == plan.channels:
        return pixels
    if len(pixels) == 1:
        return np.repeat(pixels, plan.channels, axis=0)
    raise _Surprise(replace(plan, channels=3, keep_gray=False))


def _decoded(
    items: Iterable[Item], total: int, plan: _Plan, progress: Progress | None, memory: Memory | None
) -> Iterator[_Result]:
    """Results in the order of the items; at most a few chunks a thread are in flight, so memory stays small."""
    todo = iter(items)
    workers = n_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="wazuka-decode")
    chunk_size = min(max(1, total // (_TICKS * workers)), _CHUNK)
    flying: deque[Future[list[_Result]]] = deque()
    done = 0
    try:
        while True:
            while len(flying) < 3 * workers and (chunk := list(islice(todo, chunk_size))):
                flying.append(pool.submit(_decode_chunk, chunk, plan, memory))
            if not flying:
                return
            results = flying.popleft().result()
            yield from results
            done += len(results)
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_chunk(chunk: list[Item], plan: _Plan, memory: Memory | None) -> list[_Result]:
    return [_remembered(item, plan, memory) or _decode_item(item, plan) for item in chunk]


def _remembered(item: Item, plan: _Plan, memory: Memory | None) -> _Result | None:
    """The picture from the earlier pack, if it can be had from there just as decoding would make it."""
    if memory is None or memory.images.shape[2:] != plan.size or memory.images.shape[1] > plan.channels:
        return None
    row = memory.rows.get((item.name, item.stamp))
    if row is None:
        return None
    picture = Picture(memory.images[row], plan.size, memory.remarks.get(item.name, ""))
    return _Result(item.name, item.stamp, memory.digests[row], picture)


def _decode_item(item: Item, plan: _Plan) -> _Result:
    shape = Shape(
        size=None if plan.keep_size else plan.size,
        channels=1 if plan.shape.channels == 1 else None if plan.keep_gray else plan.channels,
        fit=plan.shape.fit,
    )
    try:
        data = _read(item.content)
        picture = decode(data, shape)
    except Unreadable as error:
        return _Result(item.name, item.stamp, reason=str(error))
    except Exception as error:  # whatever a damaged file can make a decoder raise, it must not stop the run
        return _Result(item.name, item.stamp, reason=f"a damaged image: {type(error).__name__}: {error}")
    return _Result(item.name, item.stamp, blake2b(data, digest_size=16).digest(), picture)


def _read(content: bytes | Path | None) -> bytes:
    """The encoded bytes; raises Unreadable with the reason if there are none to be had."""
    if content is None:
        raise Unreadable("the row holds no image")
    if isinstance(content, bytes):
        return content
    try:
        status = os.stat(content)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise Unreadable("not a regular file")
        if status.st_size > _LARGEST_FILE:
            raise Unreadable(f"a file of {status.st_size / 2**30:.1f} GiB; the limit is 1 GiB")
        if status.st_size > _PEEK:  # a film among the photos: don't read all of it to find out
            with open(content, "rb") as file:
                _check_header(file)
        return content.read_bytes()
    except PermissionError:
        raise Unreadable("can't be read: permission denied") from None
    except FileNotFoundError:
        raise Unreadable("a link to a file that is not there" if content.is_symlink() else "gone") from None
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror or error}") from None


def _check_header(file: BinaryIO) -> None:
    """Raise Unreadable if the open file is no image, without reading all of it."""
    try:
        with Image.open(file):
            pass
    except Image.DecompressionBombError:
        raise Unreadable("more pixels than allowed, as a decompression bomb would have") from None
    except Exception:
        raise Unreadable("not an image") from None
