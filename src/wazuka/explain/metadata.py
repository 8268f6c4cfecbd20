"""What a photo's file tells without its picture: size, dates, camera, how it was held, its name.

The position, which a photo may hold as well, is never read.
"""

import re
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wazuka.evaluation.arrays import Floats

COLUMNS = (
    "taken", "camera", "orientation", "width", "height", "bytes", "modified", "number", "prefix", "folder",
)  # fmt: skip
CATEGORIES = frozenset({"camera", "orientation", "prefix", "folder"})  # numbers that stand for names: no order in them
MINUTE = 60  # finer times of change come from copying the files, not from taking the photos
_MAKE, _MODEL, _ORIENTATION, _EXIF, _TAKEN = 0x010F, 0x0110, 0x0112, 0x8769, 0x9003


def metadata_table(paths: Sequence[Path | str]) -> tuple[tuple[str, ...], Floats]:
    """A row for each file, from its header and its name; no picture is decoded.

    returns  names of the K columns; (N, K) float64, NaN where a file doesn't tell
             taken          when the camera took it, seconds (EXIF DateTimeOriginal, without time zone)
             camera         which maker and model, as a number that stands for the name
             orientation    EXIF's 1...8
             width, height  pixels, as stored (of a TIFF: turned upright, as Pillow does)
             bytes          of the file
             modified       when the file was last changed, seconds, to the minute
             number         the digits in its name, as one number
             prefix         what stands before them, as a number that stands for the name
             folder         where it lies, as a number that stands for the name
    """
    rows = [_row(Path(path)) for path in paths]
    table = np.full((len(rows), len(COLUMNS)), np.nan)
    for k, column in enumerate(COLUMNS):
        values = [row.get(column) for row in rows]
        names = {name: code for code, name in enumerate(sorted({v for v in values if isinstance(v, str)}))}
        for n, value in enumerate(values):
            if value is not None:
                table[n, k] = names[value] if isinstance(value, str) else value
    return COLUMNS, table


def prefix_of(path: Path) -> str:
    """The letters before the first digit of a file's name: "img" of IMG_0042.jpg."""
    return re.split(r"\d", path.stem, maxsplit=1)[0].strip(" _-.()").lower()


def _row(path: Path) -> dict[str, float | str]:
    row: dict[str, float | str] = {"folder": str(path.parent), "prefix": prefix_of(path)}
    digits = "".join(re.findall("[0-9]", path.stem))
    if digits:
        row["number"] = float(digits)
    try:
        status = path.stat()
    except OSError:
        return row
    row["bytes"], row["modified"] = float(status.st_size), float(status.st_mtime // MINUTE * MINUTE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                row["width"], row["height"] = (float(side) for side in image.size)
                if image.format != "PNG" or "exif" in image.info:  # Pillow decodes a PNG to look for one at its end
                    exif = image.getexif()
                    row |= _from_exif(exif, exif.get_ifd(_EXIF))
    except Exception:  # a parser fed with damaged bytes may raise anything; what was read before stays
        pass
    return row


def _from_exif(exif: Any, inner: Any) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    camera = " ".join(str(exif[tag]).strip(" \0") for tag in (_MAKE, _MODEL) if tag in exif)
    if camera:
        found["camera"] = camera
    if exif.get(_ORIENTATION) in range(1, 9):
        found["orientation"] = float(exif[_ORIENTATION])
    try:
        taken = datetime.strptime(str(inner.get(_TAKEN, "")).strip(" \0"), "%Y:%m:%d %H:%M:%S")
        found["taken"] = taken.replace(tzinfo=UTC).timestamp()
    except ValueError:  # none, or what cameras without a set clock write: 0000:00:00 00:00:00
        pass
    return found
