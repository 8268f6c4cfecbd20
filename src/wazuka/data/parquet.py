"""Pictures in Parquet, in the form Hugging Face writes: a column of struct<bytes, path>, class names in the schema."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wazuka.data.cache import Source, Table
from wazuka.data.imageset import UNLABELED
from wazuka.data.listing import combined, stamp_file
from wazuka.data.pack import SAMPLE, Item
from wazuka.data.table import LABEL_HEADERS, natural
from wazuka.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 256  # pictures read at a time
_SHARD = re.compile(r"^(?P<split>.+?)[-_.]\d+(-of-\d+)?$")
_SPLITS = {"training": "train", "testing": "test", "valid": "val", "validation": "val", "dev": "val"}


@dataclass(frozen=True)
class Shard:
    """A run of rows that belong to one split.

    rows       how many
    features   column name -> Hugging Face feature ({"_type": "ClassLabel", "names": [...]}); may be empty
    schema     the columns
    batches    given column names, yields all rows as tables of those columns
    heads      the same for a few rows from all over the shard
    folder     what relative paths in the image column start from
    """

    split: str
    rows: int
    features: Mapping[str, Any]
    schema: "pa.Schema"
    batches: Callable[[list[str]], Iterator["pa.Table"]]
    heads: Callable[[list[str]], Iterator["pa.Table"]]
    folder: Path | None = None


def find_shards(source: Path) -> dict[str, list[Path]]:
    """Split name -> Parquet files, of a file, or of a folder searched through and through.

    The split is the start of the file name (train-00000-of-00002.parquet, test.parquet), or the folder's name where
    the file name is a mere number (test/0000.parquet).
    """
    if source.is_file():
        return {_split(source): [source]}
    found: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.parquet")):
        if not any(part.startswith(".") for part in path.relative_to(source).parts):
            found.setdefault(_split(path), []).append(path)
    return found


def parquet_source(splits: Mapping[str, list[Path]], place: str, label: str | None = None) -> Source:
    """All splits, one after the other, as one source; its table has the columns "label" and "split" and more.

    label    name of the label column; None takes the one with a usual name
    """
    paths = [path for files in splits.values() for path in files]
    # Before the files are read, so that a change while they are read is noticed at the next start.
    stamp = combined(map(str, paths), map(stamp_file, paths))
    shards = [_shard(path, split) for split, files in splits.items() for path in files]
    return shards_source(shards, place, stamp, label)


def shards_source(shards: list[Shard], place: str, stamp: str, label: str | None = None) -> Source:
    """The source made of `shards`; the first shard's columns speak for all."""
    image = _image_column(shards[0], place)
    label = _label_column(shards[0], place, label)

    def items(heads: bool = False) -> Iterator[Item]:
        taken: set[str] = set()
        for shard in shards:
            row = 0
            for table in (shard.heads if heads else shard.batches)([image]):
                for content, path in _contents(table.column(image)):
                    name = path if path and path not in taken else f"{shard.split}/{row:06d}"
                    taken.add(name)
                    row += 1
                    beside = shard.folder / path if content is None and path and shard.folder is not None else None
                    yield Item(name, content if content is not None else beside)

    def sample() -> Iterator[Item]:
        return items(heads=True)

    return Source(
        place=f"{place} labels={label}",
        stamp=stamp,
        total=sum(shard.rows for shard in shards),
        items=items,
        sample=sample,
        table=lambda rows: _table(shards, image, label, rows),
    )


def _shard(path: Path, split: str) -> Shard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())}") from None
    metadata = (file.schema_arrow.metadata or {}).get(b"huggingface")
    features = json.loads(metadata)["info"]["features"] if metadata else {}

    def batches(columns: list[str]) -> Iterator[pa.Table]:
        try:
            for batch in file.iter_batches(_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None

    def heads(columns: list[str]) -> Iterator[pa.Table]:
        for group in range(0, file.num_row_groups, max(1, file.num_row_groups // SAMPLE)):
            for batch in file.iter_batches(4, row_groups=[group], columns=columns):
                yield pa.Table.from_batches([batch])
                break

    return Shard(split, file.metadata.num_rows, features, file.schema_arrow, batches, heads, path.parent)


def _contents(column: "pa.ChunkedArray") -> Iterator[tuple[bytes | None, str | None]]:
    for value in column.to_pylist():
        if isinstance(value, dict):
            yield value.get("bytes"), value.get("path")
        elif isinstance(value, str):
            yield None, value
        else:
            yield value, None


def _image_column(shard: Shard, place: str) -> str:
    import pyarrow.types as types

    for name, feature in shard.features.items():
        if isinstance(feature, dict) and feature.get("_type") == "Image" and name in shard.schema.names:
            return str(name)
    for field in shard.schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    for field in shard.schema:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            return str(field.name)
    raise UserError(
        f"{place} has no image column, only {', '.join(shard.schema.names)}: "
        "an image column is a struct of bytes and path, or binary"
    )


def _label_column(shard: Shard, place: str, wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in shard.schema.names:
            raise UserError(f'{place} has no column "{wanted}"; its columns are {", ".join(shard.schema.names)}')
        return wanted
    lower: dict[str, str] = {name.lower(): name for name in reversed(shard.schema.names)}
    for header in ("label", "fine_label", *LABEL_HEADERS):
        if header in lower:
            return lower[header]
    return None


def _table(shards: list[Shard], image: str, label: str | None, rows: np.ndarray) -> Table:
    """The columns beside the image, of the rows that could be read."""
    import pyarrow as pa
    import pyarrow.types as types

    def plain(kind: "pa.DataType") -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or _is_text(kind))

    names = [field.name for field in shards[0].schema if field.name != image and plain(field.type)]
    read = [pa.concat_tables(list(shard.batches(names))) for shard in shards if shard.rows] if names else []
    columns: dict[str, np.ndarray] = {}
    classes: list[str] = []
    for name in names:
        values = [value for table in read for value in table.column(name).to_pylist()]
        known = _class_names(shards[0].features.get(name))
        if name == label:
            columns["label"], classes = _labels(values, known)
            columns["label"] = columns["label"][rows]
        elif known:
            text = [known[value] if value is not None and 0 <= value < len(known) else "" for value in values]
            columns[f"extra:{name}"] = np.array(text)[rows]
        else:
            columns[f"extra:{name}"] = _array(values)[rows]
    split = np.concatenate([np.full(shard.rows, i) for i, shard in enumerate(shards)])[rows]
    counts: dict[str, int] = {}
    for i, shard in enumerate(shards):
        counts[shard.split] = counts.get(shard.split, 0) + int((split == i).sum())
    return Table(columns, {"classes": classes, "splits": counts})


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _class_names(feature: Any) -> list[str]:
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature.get("names") or []]
    return []


def _labels(values: list[Any], known: list[str]) -> tuple[np.ndarray, list[str]]:
    """Label column -> (int64 positions, class names). None, NaN, "" and -1 mean unlabeled."""
    if known and all(value is None or isinstance(value, int) for value in values):
        numbers = [UNLABELED if value is None or not 0 <= value < len(known) else value for value in values]
        return np.array(numbers, dtype=np.int64), known
    text = ["" if value in (None, -1, "") or value != value else str(value).strip() for value in values]
    classes = sorted(set(text) - {""}, key=natural)
    position = {name: i for i, name in enumerate(classes)} | {"": UNLABELED}
    return np.array([position[value] for value in text], dtype=np.int64), classes


def _array(values: list[Any]) -> np.ndarray:
    if any(isinstance(value, str) for value in values):
        return np.array([value or "" for value in values])
    return np.array([np.nan if value is None else value for value in values])


def split_name(written: str) -> str:
    """One name for the many that a split goes by: train, test, val; others as they are."""
    return _SPLITS.get(written.lower(), written.lower())


def _split(path: Path) -> str:
    stem = path.stem.lower()
    if match := _SHARD.match(stem):
        stem = match["split"]
    return split_name(path.parent.name if stem.isdigit() else stem)
