"""Answers as tables for other programs: CSV, JSON lines, Parquet."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wazuka.atomic import save_atomic, write_atomic
from wazuka.data import Skipped
from wazuka.errors import UserError

if TYPE_CHECKING:
    from wazuka.app.model import Prediction

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}  # by the ending of a file


@dataclass(frozen=True)
class Column:
    """A field of `Prediction`, or the note.

    kind      in Parquet: pyarrow's name of the type, or "texts" for a list of them
    text      how CSV writes a value that is there
    optional  left out where no answer has it
    """

    name: str
    kind: str
    text: Callable[[Any], str] = str
    optional: bool = False


_SHARE = "{:.4f}".format
COLUMNS = (
    Column("file", "string"),
    Column("label", "string"),
    Column("probability", "double", _SHARE),
    Column("runner_up", "string"),
    Column("runner_up_probability", "double", _SHARE),
    Column("label_set", "texts", "|".join, optional=True),
    Column("oddness", "double", "{:.4g}".format, optional=True),  # a p-value: its small ones are told apart
    Column("abstained", "bool", lambda value: "yes" if value else "no", optional=True),
    Column("note", "string"),  # of a file that could not be read: why
)


def predictions_csv(answers: "Sequence[Prediction]", skipped: Sequence[Skipped]) -> str:
    """A header and a row each, unreadable files last. What a file lacks is empty; classes of a set have | between."""
    columns, rows = _table(answers, skipped)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for row in rows:
        pairs = zip(columns, row, strict=True)
        writer.writerow(["" if value is None else column.text(value) for column, value in pairs])
    return buffer.getvalue()


def predictions_jsonl(answers: "Sequence[Prediction]", skipped: Sequence[Skipped]) -> str:
    """An object a line, each with the same keys; null for what a file lacks."""
    columns, rows = _table(answers, skipped)
    names = [column.name for column in columns]
    objects = (dict(zip(names, row, strict=True)) for row in rows)
    return "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in objects)


def predictions_parquet(answers: "Sequence[Prediction]", skipped: Sequence[Skipped], path: Path) -> None:
    """Write a Parquet file with typed columns; null for what a file lacks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, rows = _table(answers, skipped)
    types = [pa.list_(pa.string()) if column.kind == "texts" else pa.type_for_alias(column.kind) for column in columns]
    schema = pa.schema([(column.name, kind) for column, kind in zip(columns, types, strict=True)])
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = [pa.array(column, kind) for column, kind in zip(values, types, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), path)


def format_of(out: Path) -> str:
    """What the ending of a file asks for. Raises UserError for an unknown one."""
    kind = FORMATS.get(out.suffix.lower())
    if kind is None:
        *most, last = FORMATS
        raise UserError(f"{out} can't be written: --out must end in {', '.join(most)} or {last}.")
    return kind


def write_predictions(answers: "Sequence[Prediction]", skipped: Sequence[Skipped], out: Path) -> None:
    """Write all of a file or none of it, in the form that its ending says."""
    kind = format_of(out)
    try:
        if kind == "parquet":
            save_atomic(out, lambda path: predictions_parquet(answers, skipped, path))
        else:
            write_atomic(out, TEXTS[kind](answers, skipped))
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror or error}); give another --out.") from error


TEXTS = {"csv": predictions_csv, "jsonl": predictions_jsonl}


def _table(answers: "Sequence[Prediction]", skipped: Sequence[Skipped]) -> tuple[list[Column], Iterator[list[Any]]]:
    """The columns that are wanted, and the rows under them, None where there is nothing (a NaN is nothing too)."""
    columns = [
        column
        for column in COLUMNS
        if not column.optional or any(getattr(one, column.name) is not None for one in answers)
    ]

    def rows() -> Iterator[list[Any]]:
        for one in answers:
            yield [_known(getattr(one, column.name, None)) for column in columns]
        for name, reason in skipped:
            told = {"file": name, "note": reason}
            yield [told.get(column.name) for column in columns]

    return columns, rows()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
