"""Answers as tables for other programs: CSV, JSON lines, Parquet."""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wazuka.atomic import save_atomic
from wazuka.data import Skipped
from wazuka.errors import UserError

if TYPE_CHECKING:
    from wazuka.app.model import Prediction

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}  # by the ending of a file

ROW_GROUP = 16384  # rows of Parquet that are held


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


def csv_lines(answers: "Iterable[Prediction]", skipped: Sequence[Skipped]) -> Iterator[str]:
    """A header and a row each, unreadable files last. What a file lacks is empty; classes of a set have | between."""
    columns, rows = _table(answers, skipped)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for row in rows:
        pairs = zip(columns, row, strict=True)
        writer.writerow(["" if value is None else column.text(value) for column, value in pairs])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def jsonl_lines(answers: "Iterable[Prediction]", skipped: Sequence[Skipped]) -> Iterator[str]:
    """An object a line, each with the same keys; null for what a file lacks."""
    columns, rows = _table(answers, skipped)
    names = [column.name for column in columns]
    for row in rows:
        yield json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False) + "\n"


def predictions_parquet(answers: "Iterable[Prediction]", skipped: Sequence[Skipped], path: Path) -> None:
    """Write a Parquet file with typed columns; null for what a file lacks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, rows = _table(answers, skipped)
    types = [pa.list_(pa.string()) if column.kind == "texts" else pa.type_for_alias(column.kind) for column in columns]
    schema = pa.schema([(column.name, kind) for column, kind in zip(columns, types, strict=True)])
    with pq.ParquetWriter(path, schema) as writer:
        while True:
            some = list(itertools.islice(rows, ROW_GROUP))
            values = list(zip(*some, strict=True)) or [()] * len(columns)
            arrays = [pa.array(column, kind) for column, kind in zip(values, types, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))
            if len(some) < ROW_GROUP:
                return


def format_of(out: Path) -> str:
    """What the ending of a file asks for. Raises UserError for an unknown one."""
    kind = FORMATS.get(out.suffix.lower())
    if kind is None:
        *most, last = FORMATS
        raise UserError(f"{out} can't be written: --out must end in {', '.join(most)} or {last}.")
    return kind


def write_predictions(answers: "Iterable[Prediction]", skipped: Sequence[Skipped], out: Path) -> None:
    """Write all of a file or none of it, in the form that its ending says; answers are taken one after another."""
    kind = format_of(out)

    def lines(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.writelines(LINES[kind](answers, skipped))

    try:
        save_atomic(out, lines if kind in LINES else lambda path: predictions_parquet(answers, skipped, path))
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror or error}); give another --out.") from error


LINES = {"csv": csv_lines, "jsonl": jsonl_lines}


def _table(answers: "Iterable[Prediction]", skipped: Sequence[Skipped]) -> tuple[list[Column], Iterator[list[Any]]]:
    """The columns that are wanted, and the rows under them, None where there is nothing (a NaN is nothing too).

    An optional column is wanted where any answer has it; of answers that come one by one, the first.
    """
    if isinstance(answers, Sequence):
        seen, rest = answers, iter(answers)
    else:
        rest = iter(answers)
        seen = list(itertools.islice(rest, 1))
        rest = itertools.chain(seen, rest)
    columns = [
        column
        for column in COLUMNS
        if not column.optional or any(getattr(one, column.name) is not None for one in seen)
    ]

    def rows() -> Iterator[list[Any]]:
        for one in rest:
            yield [_known(getattr(one, column.name, None)) for column in columns]
        for name, reason in skipped:
            told = {"file": name, "note": reason}
            yield [told.get(column.name) for column in columns]

    return columns, rows()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
