"""Walk a folder fast, and prove cheaply that nothing in it changed."""

import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from wazuka.data.imageset import Skipped

_IGNORED = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"}  # left by file managers and archivers
_TICK = 20_000_000  # nanoseconds; two writes within one tick of the file system's clock get the same time


@dataclass(frozen=True)
class Listing:
    """What lies below a folder.

    names        paths relative to the folder, "/" between parts, sorted
    stamps       each file's size and times: another stamp means another content
    folders      relative paths of the folders, sorted
    unreadable   folders that could not be entered, with the reason
    """

    names: list[str]
    stamps: list[str]
    folders: list[str]
    unreadable: list[Skipped]


def list_folder(folder: Path, leave_out: Collection[Path] = ()) -> Listing:
    """List all files below `folder`, following links but never round a loop; hidden files are left out.

    leave_out    resolved paths of files that are not pictures (the label file)
    """
    files: list[tuple[str, str]] = []
    folders: list[str] = []
    unreadable: list[Skipped] = []
    newest = 0
    hidden = {path.name for path in leave_out}
    start = os.stat(folder)
    todo = [("", os.fspath(folder), frozenset({(start.st_dev, start.st_ino)}))]
    while todo:
        prefix, path, above = todo.pop()
        try:
            entries = os.scandir(path)
        except OSError as error:
            name = printable(prefix.rstrip("/")) or os.fspath(folder)
            unreadable.append(Skipped(name, f"a folder that can't be read: {error.strerror or error}"))
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _IGNORED:
                    continue
                name = prefix + entry.name
                try:
                    if entry.is_dir():
                        status = os.stat(entry.path)  # DirEntry.stat has no inode of the folder on Windows
                        identity = (status.st_dev, status.st_ino)
                        if identity not in above:
                            folders.append(name)
                            todo.append((name + "/", entry.path, above | {identity}))
                        continue
                    status = entry.stat()
                except OSError:  # a link to nowhere: the decoder says so
                    files.append((name, "gone"))
                    continue
                if entry.name in hidden and Path(entry.path).resolve() in leave_out:
                    continue
                files.append((name, _stamp(status)))
                if status.st_mtime_ns > newest:
                    newest = status.st_mtime_ns
    _settle(newest)
    files.sort()
    folders.sort()
    return Listing([name for name, _ in files], [stamp for _, stamp in files], folders, unreadable)


def stamp_file(path: Path) -> str:
    """One file's stamp; raises OSError if it is not there."""
    status = os.stat(path)
    _settle(status.st_mtime_ns)
    return _stamp(status)


def combined(names: Iterable[str], stamps: Iterable[str]) -> str:
    """One stamp of many files."""
    lines = "\n".join(map("\0".join, zip(names, stamps, strict=True)))
    return blake2b(lines.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def printable(name: str) -> str:
    """A file name that any encoding can write: bytes that are no text (possible on Linux) become \\udc.. escapes."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _stamp(status: os.stat_result) -> str:
    # The time of the last change of status too: a file whose permission was mended keeps its mtime.
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _settle(newest: int) -> None:
    """Wait until the clock has left the tick of the last change, so that a change after our look gets another time."""
    age = time.time_ns() - newest
    if 0 <= age < _TICK:
        time.sleep((_TICK - age) / 1e9)
