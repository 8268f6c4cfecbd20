"""Label files: CSV as people's programs write it, matched to the files of a folder.

Understood: comma, semicolon, tab or bar between columns; UTF-8 with or without a byte-order mark, UTF-16 with one, and
the Windows code page; Excel's "sep=;" line; common spellings of the headers, or no header at all; "/" or "\\" in paths;
paths relative to the folder, absolute ones from another computer, bare names and names without extension where these
are unique. An empty label, "unlabeled", "?", "nan" or -1 (scikit-learn's convention) means: no label.
"""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wazuka.errors import UserError

# Compared without case, blanks, "_" and "-"; the first one present wins.
FILE_HEADERS = (
    *("file", "filename", "filepath", "path", "image", "imagename", "imagefile", "imagefilename", "imagepath"),
    *("img", "imgname", "imgpath", "imageid", "fname", "photo", "picture", "name", "id"),
)
LABEL_HEADERS = (
    *("label", "labels", "class", "classname", "classlabel", "category", "categoryname", "target", "targets"),
    *("labelname", "tag", "groundtruth", "y"),
)
SPLIT_HEADERS = ("split", "subset", "partition", "set")
_NO_LABEL = {"", "unlabeled", "unlabelled", "?", "nan", "none", "null", "-1"}
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|gif|bmp|tiff?|webp|avif|ppm|pgm|jp2)$", re.IGNORECASE)


class Entry(NamedTuple):
    """One line: the file as written, its label (None: unlabeled), its split ("" if not said), where it stands."""

    file: str
    label: str | None
    split: str
    line: int


@dataclass(frozen=True)
class LabelTable:
    """All entries of a label file; `source` names it in messages."""

    source: str
    entries: tuple[Entry, ...]


class Matched(NamedTuple):
    """For each entry with a file, the position of that file -> its label and split."""

    labels: dict[int, str | None]
    splits: dict[int, str]


def read_labels(path: str | Path) -> LabelTable:
    """Read a label file; raises UserError for one that is not there, empty, or without recognizable columns."""
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no label file {path}") from None
    except OSError as error:
        raise UserError(f"the label file {path} can't be read: {error.strerror or error}") from None
    if data.startswith(b"PK\x03\x04") or data.startswith(b"\xd0\xcf\x11\xe0"):
        raise UserError(f"{path} is a spreadsheet, not text: save it as CSV with the columns file,label")
    lines = _text(data, path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    delimiter = None
    first_line = 1
    if lines and (match := re.fullmatch(r"sep=(.) *", lines[0], re.IGNORECASE)):
        delimiter, lines, first_line = match[1], lines[1:], 2
    if not any(line.strip() for line in lines):
        raise UserError(f"the label file {path} is empty: it needs the columns file,label")
    delimiter = delimiter or _delimiter(next(line for line in lines if line.strip()))
    reader = csv.reader(io.StringIO("\n".join(lines) + "\n"), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num + first_line - 1, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV file: line {reader.line_num}: {error}") from None
    return LabelTable(path.name, tuple(_entries(rows, path)))


def labels_from_mapping(labels: Mapping[str, str | int | None]) -> LabelTable:
    """{file: label} as a table."""
    entries = [Entry(str(file), label_name(label), "", i + 1) for i, (file, label) in enumerate(labels.items())]
    return LabelTable("the labels", tuple(entries))


def match_labels(table: LabelTable, names: Sequence[str], folder: Path) -> Matched:
    """Find each entry's file among `names` (paths below `folder`, "/" between parts).

    Raises UserError for entries without a file, for a bare name that fits several files, and for a file with two
    different labels.
    """
    finder = _Finder(names, folder, table)
    labels: dict[int, str | None] = {}
    splits: dict[int, str] = {}
    first: dict[int, Entry] = {}
    missing: list[str] = []
    for entry in table.entries:
        found = finder.find(entry.file)
        if found is None:
            missing.append(entry.file)
            continue
        before = first.setdefault(found, entry)
        if before.label != entry.label:
            raise UserError(
                f"{table.source} gives {names[found]} two labels, {_quoted(before.label)} in line {before.line} and "
                f"{_quoted(entry.label)} in line {entry.line}: keep the right one"
            )
        labels[found] = entry.label
        if entry.split:
            splits[found] = entry.split
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        what = "an image that is" if len(missing) == 1 else f"{len(missing):,} images that are"
        raise UserError(f"{table.source} names {what} not in {folder}: {shown}; correct the names or add the files")
    return Matched(labels, splits)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts class 2 before class 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


class _Finder:
    """Looks a written path up among the files there are."""

    def __init__(self, names: Sequence[str], folder: Path, table: LabelTable):
        self.table = table
        self.exact = {_normal(name): i for i, name in enumerate(names)}
        self.bare = _unique((name.rsplit("/", 1)[-1], i) for name, i in self.exact.items())
        self.folded = _unique((name.casefold(), i) for name, i in self.exact.items())
        self.stems = _unique((name.rsplit(".", 1)[0], i) for name, i in self.exact.items())
        self.bare_stems = _unique((name.rsplit("/", 1)[-1].rsplit(".", 1)[0], i) for name, i in self.exact.items())
        self.names = names
        self.folder_name = _normal(folder.resolve().name)
        # "train/1.png" and "test/1.png" must not both be taken for the 1.png of one folder, so a start of the path is
        # dropped only if it names this folder, or is the same for all entries.
        strange = [entry.file for entry in table.entries if self._direct(entry.file) is None]
        starts = {self._shortened(_normal(file))[0] for file in strange} - {""}
        self.start = next(iter(starts)) if len(starts) == 1 else None

    def find(self, written: str) -> int | None:
        found = self._direct(written)
        if found is not None:
            return found
        start, found = self._shortened(_normal(written))
        allowed = start == self.start or start.rsplit("/", 1)[-1].casefold() == self.folder_name.casefold()
        return found if found is not None and allowed else None

    def _direct(self, written: str) -> int | None:
        name = _normal(written)
        if name in self.exact:
            return self.exact[name]
        tables = (self.folded, self.stems) if "/" in name else (self.bare, self.folded, self.stems, self.bare_stems)
        for table in tables:
            found = table.get(name.casefold() if table is self.folded else name)
            if isinstance(found, list):
                raise UserError(
                    f"{self.table.source} names {written}, which fits {len(found)} files, "
                    f"{self.names[found[0]]} and {self.names[found[1]]} among them: write the path below the folder"
                )
            if found is not None:
                return found
        return None

    def _shortened(self, name: str) -> tuple[str, int | None]:
        """The longest end of the path that is a file here: (the start that was dropped, its position)."""
        parts = name.split("/")
        for cut in range(1, len(parts)):
            found = self.exact.get("/".join(parts[cut:]))
            if found is None:
                folded = self.folded.get("/".join(parts[cut:]).casefold())
                found = folded if isinstance(folded, int) else None
            if found is not None:
                return "/".join(parts[:cut]), found
        return "", None


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int | list[int]]:
    """key -> position, or the list of positions where several share the key."""
    found: dict[str, int | list[int]] = {}
    for key, position in pairs:
        before = found.get(key)
        if before is None:
            found[key] = position
        elif isinstance(before, list):
            before.append(position)
        else:
            found[key] = [before, position]
    return found


def _normal(path: str) -> str:
    """One spelling: "/" between parts, no "./", composed accents (macOS writes them decomposed)."""
    path = path.strip()
    if not path.isascii():
        path = unicodedata.normalize("NFC", path)
    path = path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    return path


def _text(data: bytes, path: Path) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"{path} is not a text file: save the labels as CSV (UTF-8) with the columns file,label")


def _delimiter(line: str) -> str:
    counts = Counter({mark: line.count(mark) for mark in "\t;,|"})
    mark, count = counts.most_common(1)[0]
    return mark if count else ","


def _entries(rows: list[tuple[int, list[str]]], path: Path) -> Iterable[Entry]:
    header = [re.sub(r"[\s_\-]", "", cell).lower() for cell in rows[0][1]]
    file, label, split = (_column(header, known) for known in (FILE_HEADERS, LABEL_HEADERS, SPLIT_HEADERS))
    if len(header) == 2 and (file is None) != (label is None):  # "image_id,diagnosis": the other one can only be that
        file, label = (1 - label, label) if label is not None else (file, 1 - (file or 0))
    if file is None and label is None and len(header) == 2 and any(_IMAGE_NAME.search(c) for c in rows[0][1]):
        file = 0 if _IMAGE_NAME.search(rows[0][1][0].strip()) else 1
        label = 1 - file
    elif file is None or label is None:
        what = "file" if file is None else "label"
        raise UserError(
            f"{path.name} has no {what} column that can be recognized (it has {', '.join(rows[0][1])}): "
            f"name the columns file,label"
        )
    else:
        rows = rows[1:]
    if not rows:
        raise UserError(f"{path.name} has a header but no line below it")
    for line, row in rows:
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            raise UserError(
                f"{path.name} has {len(row)} cells in line {line} where the header has {len(header)}: "
                'write a name that contains the separator in "quotes"'
            )
        cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
        if not cells[file]:
            raise UserError(f"{path.name} names no file in line {line}")
        yield Entry(cells[file], label_name(cells[label]), cells[split].lower() if split is not None else "", line)


def _column(header: list[str], known: Sequence[str]) -> int | None:
    return next((header.index(name) for name in known if name in header), None)


def label_name(value: str | int | None) -> str | None:
    """A label as written -> the class's name, or None where it means that there is no label."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _NO_LABEL else text


def _quoted(label: str | None) -> str:
    return "none" if label is None else f'"{label}"'
