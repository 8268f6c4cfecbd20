import csv
import dataclasses
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wazuka.app.model import Prediction
from wazuka.app.tables import COLUMNS, ROW_GROUP, csv_lines, format_of, jsonl_lines, write_predictions
from wazuka.data import Skipped
from wazuka.errors import UserError

PLAIN = "file,label,probability,runner_up,runner_up_probability,note"
TWO = [Prediction("b.png", "bee", 0.98765, "ant", 0.0123), Prediction("a.png", "ant", 1.0, "bee", 0.0)]
TOLD = [
    Prediction("b.png", "bee", 0.75, "ant", 0.25, ("bee", "ant"), 0.00012345, True),
    Prediction("a.png", "ant", 1.0, "bee", 0.0, (), 0.5, False),
]
BROKEN = [Skipped("broken.png", "the file ends early")]


def test_one_row_a_picture_and_unreadable_files_last():
    assert "".join(csv_lines(TWO, BROKEN)).splitlines() == [
        PLAIN,
        "b.png,bee,0.9877,ant,0.0123,",
        "a.png,ant,1.0000,bee,0.0000,",
        "broken.png,,,,,the file ends early",
    ]


def test_what_a_run_can_tell_beside_stands_before_the_note():
    assert "".join(csv_lines(TOLD, BROKEN)).splitlines() == [
        "file,label,probability,runner_up,runner_up_probability,label_set,oddness,abstained,note",
        "b.png,bee,0.7500,ant,0.2500,bee|ant,0.0001234,yes,",
        "a.png,ant,1.0000,bee,0.0000,,0.5,no,",
        "broken.png,,,,,,,,the file ends early",
    ]


@pytest.mark.parametrize(
    ("field", "value"), [("label_set", ()), ("oddness", 0.0), ("abstained", False)], ids=lambda one: str(one)
)
def test_a_column_is_there_as_soon_as_one_answer_has_it(field, value):
    answers = [TWO[0], dataclasses.replace(TWO[1], **{field: value})]
    header, *rows = csv.reader(io.StringIO("".join(csv_lines(answers, []))))
    assert header == [*PLAIN.split(",")[:-1], field, "note"]
    assert rows[0][-2] == ""
    first, second = map(json.loads, "".join(jsonl_lines(answers, [])).splitlines())
    assert first.keys() == second.keys() == set(header)
    assert first[field] is None
    assert second[field] == (list(value) if isinstance(value, tuple) else value)


def test_every_field_of_a_prediction_has_its_column():
    fields = {field.name for field in dataclasses.fields(Prediction)}
    assert {column.name for column in COLUMNS} == fields | {"note"}
    assert COLUMNS[-1].name == "note"
    assert {column.name for column in COLUMNS if column.optional} == {
        field.name for field in dataclasses.fields(Prediction) if field.default is None
    }


def test_any_name_comes_back_from_the_table():
    odd = 'a "b", c\nd;é=1.png'
    text = "".join(csv_lines([Prediction(odd, odd, 0.5, odd, 0.5)], [Skipped(odd, odd)]))
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1] == [odd, odd, "0.5000", odd, "0.5000", ""]
    assert rows[2] == [odd, "", "", "", "", odd]
    lines = list(jsonl_lines([Prediction(odd, odd, 0.5, odd, 0.5)], [Skipped(odd, odd)]))
    assert [(json.loads(line)["file"], json.loads(line)["note"]) for line in lines] == [(odd, None), (odd, odd)]
    assert "é" in lines[0]


def test_an_empty_table_has_its_header(tmp_path):
    assert "".join(csv_lines([], [])) == PLAIN + "\n"
    assert "".join(jsonl_lines([], [])) == ""
    write_predictions([], [], tmp_path / "none.parquet")
    empty = pq.read_table(tmp_path / "none.parquet")
    assert (empty.num_rows, empty.column_names) == (0, PLAIN.split(","))


def test_every_line_is_an_object_with_all_that_is_known():
    rows = [json.loads(line) for line in "".join(jsonl_lines(TOLD, BROKEN)).splitlines()]
    assert rows[0] == {
        "file": "b.png", "label": "bee", "probability": 0.75, "runner_up": "ant", "runner_up_probability": 0.25,
        "label_set": ["bee", "ant"], "oddness": 0.00012345, "abstained": True, "note": None,
    }  # fmt: skip
    assert (rows[1]["label_set"], rows[1]["abstained"]) == ([], False)
    missing = dict.fromkeys(rows[0], None)
    assert rows[2] == missing | {"file": "broken.png", "note": "the file ends early"}
    assert list(rows[0]) == list(rows[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_form_holds_a_number_that_is_none(tmp_path, bad):
    answers = [Prediction("a.png", "ant", bad, "bee", 0.25, oddness=bad)]
    text = "".join(jsonl_lines(answers, []))
    row = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (row["probability"], row["oddness"], row["runner_up_probability"]) == (None, None, 0.25)
    assert "".join(csv_lines(answers, [])).splitlines()[1] == "a.png,ant,,bee,0.2500,,"
    write_predictions(answers, [], tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["probability"].null_count == 1


def test_parquet_has_types_and_nulls(tmp_path):
    out = tmp_path / "new folder" / "named.Parquet"
    write_predictions(TOLD, BROKEN, out)
    table = pq.read_table(out)
    text, share = pa.string(), pa.float64()
    kinds = [text, text, share, text, share, pa.list_(text), share, pa.bool_(), text]
    assert table.schema.types == kinds
    assert table.to_pylist() == [json.loads(line) for line in "".join(jsonl_lines(TOLD, BROKEN)).splitlines()]
    write_predictions(TWO, [], out)  # no note, and still text
    assert pq.read_table(out).schema.types == [text, text, share, text, share, text]


@pytest.mark.parametrize("name", ["named", "named.txt", "csv", "named.csv.gz", "parquet", ".csv"])
def test_another_ending_is_told(name, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.csv, \.jsonl, \.ndjson or \.parquet\.$"):
        format_of(tmp_path / name)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "ndjson", "parquet"])
def test_a_failed_writing_leaves_the_old_table(tmp_path, ending):
    out = tmp_path / f"named.{ending}"
    write_predictions(TWO, [], out)
    before = out.read_bytes()

    def told():
        yield from [TOLD[0]] * (ROW_GROUP + 1)  # so that something is written already
        raise OSError("no space left")

    with pytest.raises(UserError, match=f"named.{ending} can't be written \\(no space left\\); give another --out"):
        write_predictions(told(), BROKEN, out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_answers_that_come_one_by_one_are_written_as_a_list_is(tmp_path, ending):
    many = [TOLD[number % len(TOLD)] for number in range(ROW_GROUP + 3)]
    write_predictions(many, BROKEN, tmp_path / f"list.{ending}")
    write_predictions(iter(many), BROKEN, tmp_path / f"stream.{ending}")
    assert (tmp_path / f"list.{ending}").read_bytes() == (tmp_path / f"stream.{ending}").read_bytes()
