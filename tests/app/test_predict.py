"""`wazuka predict` on all that people have, and out in the forms that other programs read."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import wazuka
from tests.app.stripes import striped_file, stripes
from wazuka.app.cli import main

INSIDE = ["0.png", "1.png", "day/2.png", "day/3.png"]
ALL = [f"photos/{name}" for name in INSIDE]


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    monkeypatch.setattr("wazuka.app.console.SHOW_AFTER", 1e9)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """run/, and photos/ with four pictures and a broken one."""
    folder = tmp_path_factory.mktemp("place")
    data, settings = striped_file(folder, train=12, test=4), {"labeled_batch": 4}
    wazuka.fit(str(data), steps=1, method="supervised", settings=settings, precision="float32", out=folder / "run")
    (folder / "photos" / "day").mkdir(parents=True)
    for name, image in zip(INSIDE, stripes(4, seed=5)[0], strict=True):
        Image.fromarray(image).save(folder / "photos" / name)
    (folder / "photos" / "broken.jpg").write_text("not a photo at all")
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture
def typed(monkeypatch):
    """Put bytes on standard input."""

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


def command(capsys, *words) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `wazuka predict WORDS`."""
    capsys.readouterr()
    try:
        main(["predict", *map(str, words)])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def rows(capsys, *words) -> dict[str, dict[str, str]]:
    """File -> row, in the order of the table; each file once."""
    code, out, err = command(capsys, "run", *words)
    assert (code, err) == (0, "")
    table = list(csv.DictReader(io.StringIO(out)))
    made = {row.pop("file"): row for row in table}
    assert len(made) == len(table)
    return made


def refused(capsys, *words) -> str:
    code, out, err = command(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("wazuka: ")
    assert err.count("\n") == 1
    return err.removeprefix("wazuka: ")


def test_one_folder_is_named_as_ever(capsys):
    whole = rows(capsys, "photos")
    assert list(whole) == [*INSIDE, "broken.jpg"]
    assert whole["broken.jpg"]["note"] == "not an image"
    assert rows(capsys, "photos/") == whole


@pytest.mark.parametrize(
    ("words", "content", "files"),
    [
        (["photos/day", "photos/1.png"], None, [ALL[2], ALL[3], ALL[1]]),
        (["photos/day", "photos/*.png"], None, [ALL[2], ALL[3], ALL[0], ALL[1]]),
        (["photos/*.png"], None, ALL[:2]),
        (["**/*.png"], None, ALL),
        (["photos/day/*", "photos"], None, [ALL[2], ALL[3], ALL[0], ALL[1], "photos/broken.jpg"]),
        (["photos/1.png", "photos/1.png", "./photos/1.png"], None, ALL[1:2]),
        (["-"], b"photos/1.png\nphotos/0.png\n", [ALL[1], ALL[0]]),
        (["-"], b"./photos/1.png\0photos/day\0", [ALL[1], ALL[2], ALL[3]]),
        (["-", "photos/1.png", "-"], b"photos/0.png\r\nphotos/1.png\r\nnone.png\r\n", [ALL[1], ALL[0], "none.png"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_all_that_people_have(capsys, typed, words, content, files):
    whole = {f"photos/{name}": row for name, row in rows(capsys, "photos").items()}
    if content is not None:
        typed(content)
    several = rows(capsys, *words)
    assert list(several) == files
    assert all(several[name] == whole[name] for name in files if name != "none.png")
    if "none.png" in files:
        assert several["none.png"]["note"] == "not there (No such file or directory)"
        assert several["none.png"]["label"] == ""


def test_an_npz_file_is_taken_as_ever(capsys):
    assert len(rows(capsys, "stripes.npz")) == 16


def test_all_forms_hold_the_same(capsys, tmp_path):
    table = [{"file": name} | row for name, row in rows(capsys, "photos").items()]
    code, out, err = command(capsys, "run", "photos", "--format", "jsonl")
    assert (code, err) == (0, "")
    objects = [json.loads(line) for line in out.splitlines()]
    for row, one in zip(table, objects, strict=True):
        shown = {name: f"{value:.4f}" if isinstance(value, float) else value or "" for name, value in one.items()}
        assert shown == row
    assert [one["label"] is None for one in objects] == [False] * 4 + [True]
    csv_text = command(capsys, "run", "photos", "--format", "csv")[1]
    for name, expected in (("a.CSV", csv_text), ("a.jsonl", out), ("a.ndjson", out)):
        path = tmp_path / "new" / name
        assert command(capsys, "run", "photos", "--out", path) == (0, "", f"4 photos named, 1 unreadable: {path}\n")
        assert path.read_text(encoding="utf-8") == expected
    command(capsys, "run", "photos", "--out", tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == objects


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (["run", "photos/*.tiff"], None, "no file matches photos/*.tiff"),
        (["run", "photos/*.PNG"], None, "no file matches photos/*.PNG; *.png would"),
        (["run", "-"], b"", "standard input holds no file name: give one a line."),
        (["run", "photos", "-"], b"\n", "standard input holds no file name: give one a line."),
        (["run", "-"], b"\xff\xd8\xff\xe0", 'standard input holds an image, but "-" stands for a list of file names'),
        (["run", "-"], b"a.png\nb.png", "none of 2 files could be read as an image; a.png: not there"),
        (["run", "empty"], None, "empty holds no image"),
        (["run", "photos", "empty"], None, "empty holds no image"),
        (["run", "photos", "nowhere"], None, "there is no folder, file or data set nowhere"),
        (["run", "photos", "--fromat", "jsonl"], None, "predict has no option --fromat; `wazuka predict --help` lists"),
        (["run", "photos", "--format", "parquet"], None, '"csv", "jsonl"'),
        (["nowhere", "photos", "--out", "a.xlsx"], None, "a.xlsx can't be written: --out must end in .csv, .jsonl, "),
        (["run", "photos", "--out", "a.csv", "--format", "csv"], None, "--format is for standard output"),
        (["run", "photos", "--out", "run.csv"], None, "run.csv can't be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_told(capsys, typed, words, content, message):
    Path("empty").mkdir(exist_ok=True)
    Path("run.csv").mkdir(exist_ok=True)
    before = sorted(Path().rglob("*"))
    if content is not None:
        typed(content)
    assert message in refused(capsys, *words)
    assert sorted(Path().rglob("*")) == before


def test_a_file_may_start_with_a_hyphen(capsys, tmp_path, monkeypatch):
    (tmp_path / "-0.png").write_bytes(Path("photos/0.png").read_bytes())
    (tmp_path / "run").symlink_to(Path("run").resolve())
    monkeypatch.chdir(tmp_path)
    assert list(rows(capsys, "-0.png")) == ["-0.png"]


def test_names_come_out_in_utf8_whatever_the_console_speaks(tmp_path, monkeypatch):
    (tmp_path / "猫 é.png").write_bytes(Path("photos/0.png").read_bytes())
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\r\n")
    monkeypatch.setattr(sys, "stdout", console)
    main(["predict", "run", str(tmp_path)])
    assert "\n猫 é.png," in console.buffer.getvalue().decode()


def test_the_same_from_python():
    model = wazuka.load("run")
    alone, _ = model.predict("photos/day")
    answers, skipped = model.predict(["photos/day", Path("photos/*.png")], listed=["none.png"])
    assert [one.file for one in answers] == [ALL[2], ALL[3], ALL[0], ALL[1]]
    assert [name for name, _ in skipped] == ["none.png"]
    assert [one.probability for one in answers[:2]] == [one.probability for one in alone]
    assert (alone[0].label_set, alone[0].oddness, alone[0].abstained) == (None, None, None)
    images = model.open("photos/**")
    assert images.images.shape == (4, 1, 8, 8)
    np.testing.assert_array_equal(images.images[0, 0], np.asarray(Image.open("photos/0.png")))
