"""The command line from end to end: what a person types, what he finds, and what he is told when it is wrong."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from tests.app.children import QUICK_WORDS, alone, command_unread
from tests.app.stripes import NAMES, striped_file, stripes
from wazuka.app.cli import main
from wazuka.app.runs import FILES

READABLE = ("cmyk.jpg", "animated.gif", "palette.png", "sixteen.png", 'Bäume, "two" =1.png')
UNREADABLE = {  # with what must be said about them
    "truncated.jpg": "truncated", "empty.png": "empty", "text.jpg": "not an image", "headless.png": "damaged",
    "gone.png": "",
}  # fmt: skip
HEADER = ["file", "label", "probability", "runner_up", "runner_up_probability", "note"]


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """On a busy machine a bar would join what is told."""
    monkeypatch.setattr("wazuka.app.console.SHOW_AFTER", 1e9)


def run_command(capsys, *words) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `wazuka WORDS`."""
    capsys.readouterr()
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def succeed(capsys, *words) -> str:
    """Standard output of a command that works without a complaint."""
    code, out, err = run_command(capsys, *words)
    assert (code, err) == (0, "")
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def table_of(text: str) -> dict[str, dict[str, str]]:
    """File -> row of a table of predictions, each file once."""
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0].split(",") == HEADER
    assert len({row["file"] for row in rows}) == len(rows)
    return {row["file"]: row for row in rows}


def picture(number: int) -> Image.Image:
    """Across if the number is even, down if it is odd, in color."""
    gray = stripes(number + 1, seed=4, side=12)[0][number]
    return Image.fromarray(np.stack([gray, gray // 2, 255 - gray], axis=-1))


def odd_files(folder: Path) -> None:
    """What people's folders hold: READABLE and UNREADABLE files."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a photo at all")
    (folder / "headless.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    picture(0).convert("CMYK").save(folder / "cmyk.jpg")
    picture(1).save(folder / "animated.gif", save_all=True, append_images=[picture(3)])
    picture(0).convert("P").save(folder / "palette.png", transparency=0)
    Image.fromarray(np.full((12, 12), 40000, dtype=np.uint16)).save(folder / "sixteen.png")
    picture(1).save(folder / 'Bäume, "two" =1.png')


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos/: two classes of three, 4 unlabeled, 2 loose, odd ones among the unlabeled."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(6):
        where = folder / "photos" / NAMES[number % 2] / f"{number}.png"
        where.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(where)
    odd_files(folder / "photos" / "unlabeled")
    for number in range(6, 10):
        picture(number).save(folder / "photos" / "unlabeled" / f"{number}.png")
    for number in (10, 11):
        picture(number).save(folder / "photos" / f"{number}.png")
    striped_file(folder, train=30, test=10, per_class=2)
    return folder


@pytest.fixture(scope="module")
def learned(place):
    """A run on those photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(["fit", "photos", "--size", "12", "--steps", "3", "--folds", "3", *QUICK_WORDS, "--out", "run"])
    return place / "run"


@pytest.fixture
def here(place, learned, monkeypatch):
    """That folder as the working folder; a test may not change what is in it."""
    monkeypatch.chdir(place)
    before = snapshot(place)
    yield place
    assert snapshot(place) == before


def test_digits_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = succeed(capsys, "fit", "digits", "--labels-per-class", 4, "--steps", 12, *QUICK_WORDS, "--out", "RUN")
    run = tmp_path / "RUN"
    assert {path.name for path in run.iterdir()} == set(FILES)  # and no resume/

    metrics = json.loads((run / "metrics.json").read_text())
    expected = {"n_test": 500, "n_labeled": 40, "n_unlabeled": 1257, "method": "fixmatch", "seed": 0, "steps": 12}
    assert {name: metrics[name] for name in expected} == expected
    low, high = metrics["test_accuracy_interval"]
    assert 0 <= low < metrics["test_accuracy"] < high <= 1
    assert metrics["seconds"] > 0
    views = 4 + 2 * 4  # labeled, and each unlabeled image in two views
    assert metrics["images_per_second"] == pytest.approx(12 * views / metrics["seconds"], rel=0.2)

    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    test = [row for row in rows if row["role"] == "test"]
    labeled = [row for row in rows if row["role"] == "labeled"]
    unlabeled = [row for row in rows if row["role"] == "unlabeled"]
    assert (len(test), len(labeled), len(unlabeled)) == (500, 40, 1257)
    assert len({row["file"] for row in rows}) == 1797
    assert np.mean([row["label"] == row["predicted"] for row in test]) == pytest.approx(metrics["test_accuracy"])
    assert all(row["label"] is None for row in unlabeled)
    for row in rows[::50]:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == str(int(np.argmax(row["probabilities"])))
        assert row["probability"] == max(row["probabilities"])

    draw = json.loads((run / "draw.json").read_text())
    assert {row["name"] for row in draw["images"]} == {row["file"] for row in labeled}
    assert sorted(row["label"] for row in draw["images"]) == sorted(4 * [str(digit) for digit in range(10)])

    facts = json.loads((run / "run.json").read_text())
    assert (facts["state"], facts["seed"], facts["steps"]) == ("done", 0, 12)
    assert facts["choices"]["labels_per_class"] == 4
    assert facts["labels_per_class"] == [4] * 10
    assert facts["command"].startswith("wazuka fit digits --labels-per-class 4 --steps 12 ")
    assert all(facts[name] for name in ("wazuka", "torch", "python", "device", "threads", "fingerprint", "protocol"))

    curves = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in curves] == [
        (stage, step) for stage in ("final", "floor-final") for step in range(1, 13)
    ]
    with safe_open(run / "model.safetensors", framework="numpy") as weights:
        assert len(list(weights.keys())) > 10

    assert "Learned 10 classes from 40 labels and 1,257 images without" in out
    assert f"Accuracy {100 * metrics['test_accuracy']:.1f} % (95 % interval" in out
    told = metrics["unlabeled"]
    assert f"{told['correct']} of 500 were named right, on the labels alone {told['floor_correct']} (" in out
    assert "Report: RUN/report.html" in out
    assert "Use it: wazuka predict RUN PHOTOS" in out
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"{100 * metrics['test_accuracy']:.1f}" in page
    assert "wazuka fit digits --labels-per-class 4" in page
    (run / "report.html").unlink()
    assert succeed(capsys, "report", "RUN") == "RUN/report.html\n"
    assert f"{100 * metrics['test_accuracy']:.1f}" in (run / "report.html").read_text(encoding="utf-8")


def test_a_folder_as_people_have_it(here, learned):
    facts = json.loads((learned / "run.json").read_text())
    assert facts["classes"] == ["across", "down"]
    assert (facts["n_labeled"], facts["n_unlabeled"]) == (6, 4 + 2 + len(READABLE))
    reasons = dict(facts["skipped"])
    assert reasons.keys() == {f"unlabeled/{name}" for name in UNREADABLE}
    assert all(words in reasons[f"unlabeled/{name}"] for name, words in UNREADABLE.items())
    assert facts["duplicates"]  # one unlabeled picture is the same as a labeled one
    assert any("animation" in note for note in facts["notes"])
    rows = pq.read_table(learned / "predictions.parquet").to_pylist()
    roles = {role: {row["file"] for row in rows if row["role"] == role} for role in ("labeled", "cross-validated")}
    assert roles["labeled"] == roles["cross-validated"] == {f"{NAMES[n % 2]}/{n}.png" for n in range(6)}
    metrics = json.loads((learned / "metrics.json").read_text())
    assert metrics["n_test"] == 6
    assert metrics["protocol"].startswith("by cross-validation")
    page = (learned / "report.html").read_text(encoding="utf-8")
    assert "truncated.jpg" in page
    assert "rests on only 6 images" in page


def test_predict_keeps_a_row_for_every_file(here, tmp_path, capsys):
    text = succeed(capsys, "predict", "run", "photos")
    table = table_of(text)
    inside = {path.relative_to("photos").as_posix() for path in Path("photos").rglob("*") if not path.is_dir()}
    assert table.keys() == inside
    left_out = {f"unlabeled/{name}" for name in UNREADABLE}
    for name, row in table.items():
        if name in left_out:
            assert UNREADABLE[name.removeprefix("unlabeled/")] in row.pop("note")
            assert set(row.values()) == {name, ""}
        else:
            assert {row["label"], row["runner_up"]} == {"across", "down"}
            assert float(row["probability"]) >= 0.5
            assert float(row["probability"]) + float(row["runner_up_probability"]) == pytest.approx(1, abs=2e-4)
            assert row["note"] == ""
    answers = tmp_path / "new folder" / "answers.csv"
    code, out, err = run_command(capsys, "predict", "run", "photos", "--out", answers)
    assert (code, out, err) == (0, "", f"17 photos named, 5 unreadable: {answers}\n")
    assert answers.read_text(encoding="utf-8") == text


def test_predict_takes_a_file_or_what_the_shell_makes_of_a_star(here, capsys):
    whole = table_of(succeed(capsys, "predict", "run", "photos"))
    one = table_of(succeed(capsys, "predict", "run", "photos/10.png"))
    assert one == {"photos/10.png": whole["10.png"] | {"file": "photos/10.png"}}
    files = sorted(str(path) for path in Path("photos/unlabeled").iterdir() if path.exists())
    several = table_of(succeed(capsys, "predict", "run", *files))
    assert several.keys() == set(files)
    for name, row in several.items():
        same = whole[name.removeprefix("photos/")]
        assert (row["label"], bool(row["note"])) == (same["label"], bool(same["note"]))


def test_a_reader_that_goes_away_is_no_error(here, tmp_path):
    complaints = tmp_path / "complaints"
    assert alone(command_unread, ["predict", "run", "photos/10.png"], here, complaints) == 0
    assert complaints.read_text() == ""


def refuse(capsys, words, message) -> None:
    """Exit code 2 and one line on standard error, nothing else."""
    code, out, err = run_command(capsys, *words)
    assert message in err
    assert code == 2
    assert out == ""
    assert err.startswith("wazuka: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 0", "--steps must be positive, got 0"),
        ("--steps -5", "--steps must be positive, got -5"),
        ("--steps many", 'unable to convert "many" into int'),
        ("--steps", "--steps"),
        ("--minutes 0", "--minutes must be positive"),
        ("--minutes -1", "--minutes must be positive, got -1"),
        ("--minutes nan", "--minutes must be positive"),
        ("--minutes 1 --steps 1", "--steps and --minutes both say how long to train; give one of them"),
        ("--labels-per-class 0", "--labels-per-class must be positive, got 0"),
        ("--labels-per-class -4", "--labels-per-class must be positive, got -4"),
        ("--labels-per-class 4", 'class "across" has 3 labeled images, too few to draw 4'),
        ("--size 0", "--size must be positive"),
        ("--size 1", "too small to learn from"),
        ("--size 5000", "size must lie between 1 and 4096 pixels"),
        ("--fit zoom", "--fit"),
        ("--folds 1", "--folds must be 0 (no cross-validation) or at least 2"),
        ("--seed -1", "--seed must lie in"),
        ("--precision half", "--precision"),
        ("--method fixmach", "There is no method 'fixmach'; did you mean fixmatch?"),
        ("--method adda", "adda belongs to adapt and can't be trained by fit"),
        ("--method fixmatch --set treshold=1", "fixmatch has no setting 'treshold'; did you mean threshold?"),
        ("--set threshold", "--set takes NAME=VALUE, got 'threshold'"),
        ("--method fixmatch --set threshold=high", "The setting threshold must be a number, got 'high'"),
        ("--method fixmatch --set threshold=-1", "The settings of fixmatch don't fit: threshold must not be negative"),
        ("--method fixmatch --set labeled_batch=0", "a stream's batch must be at least 1, got 0"),
        ("--method fixmatch --set averaging=5", "The settings of fixmatch don't fit"),
        ("--method fixmatch --set optimizer.lr=-1", "The settings of fixmatch don't fit"),
        ("--method fixmatch --set optimizer=sgd", "has parts; change one of optimizer.algorithm"),
        ("--labels nowhere.csv", "there is no label file nowhere.csv"),
        ("--labels photos", "the label file photos can't be read"),
        ("--labels photos/10.png", "photos/10.png"),
        ("--resume", "--resume needs --out"),
        ("--out nowhere --resume", "There is no run at nowhere to resume"),
        ("--out photos --resume", "photos is not empty; give --out a new folder"),
        ("--out photos", "photos is not empty; give --out a new folder"),
        ("--out run", "run holds a run already; give another --out, or --resume to go on with it"),
        ("--out stripes.npz", "stripes.npz is not empty"),
        ("--out stripes.npz/run", "stripes.npz/run can't be written to"),
        ("--colour", "--colour"),
        ("more-photos", "more-photos"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_fit_tells_what_is_wrong_and_leaves_nothing_behind(here, capsys, words, message):
    out = [] if "--out" in words or words == "--resume" else ["--out", "new"]
    refuse(capsys, ["fit", "photos", *words.split(), *out], message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "PHOTOS"),
        (["fit", ""], "the name of the images is empty"),
        (["fit", "photoss"], "there is no folder, file or data set photoss; did you mean photos?"),
        (["fit", "digit"], "did you mean digits?"),
        (["fit", "digits", "--labels-per-class", "400"], "too few to draw 400: draw fewer"),
        (["fit", "digits", "--labels", "labels.csv"], "digits has its own labels: leave the others out"),
        (["fit", "photos/10.png"], "has no labels: put the images of each class in a subfolder"),
        (["fit", "photos/across"], "has no labels"),
        (["predict"], "RUN"),
        (["predict", "run"], "predict needs photos after the run"),
        (["predict", "nowhere", "photos"], "There is no run at nowhere; `wazuka fit PHOTOS --out nowhere` makes one"),
        (["predict", "photos", "photos"], "photos is not a finished run: run.json is missing there"),
        (["predict", "run", "nowhere"], "there is no folder, file or data set nowhere"),
        (["predict", "run", "photos/*.tiff"], "no file matches photos/*.tiff"),
        (["predict", "run", "photos/10.png", "nowhere.png"], "there is no folder, file or data set nowhere.png"),
        (["predict", "run", "photos/unlabeled/text.jpg"], "could not be read as an image: it is not an image"),
        (["predict", "run", "photos/10.png", "--out", "photos"], "photos can't be written"),
        (["predict", "run", "photos/10.png", "--out", "stripes.npz/a.csv"], "stripes.npz/a.csv can't be written"),
        (["report", "nowhere"], "There is no run at nowhere"),
        (["report", "photos"], "run.json is missing there"),
        (["methods", "fixmach"], "There is no method 'fixmach'"),
        (["compare", "photos"], "--methods"),
        (["compare", "photos", "--methods", "fixmatch,fixmach"], "There is no method 'fixmach'"),
        (["photos"], "photos"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_command_tells_what_is_wrong(here, capsys, words, message):
    refuse(capsys, words, message)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The working folder, with parts/: six pictures in two folders that are no classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        (tmp_path / "parts" / f"day {number % 2}").mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "parts" / f"day {number % 2}" / f"IMG_{number}.PNG")
    return tmp_path


def test_labels_as_a_windows_program_writes_them(shop, capsys):
    rows = [f"C:\\Users\\Ana\\parts\\day {n % 2}\\img_{n}.png;{'gut' if n % 2 else 'schräg'}" for n in range(4)]
    (shop / "labels.csv").write_bytes("\ufeff".encode() + "\r\n".join(["Image Name;Class", *rows, ""]).encode())
    succeed(capsys, "fit", "parts", "--labels", "labels.csv", "--steps", 1, *QUICK_WORDS, "--out", "run")
    facts = json.loads((shop / "run" / "run.json").read_text(encoding="utf-8"))
    assert facts["classes"] == ["gut", "schräg"]
    assert (facts["n_labeled"], facts["n_unlabeled"]) == (4, 2)
    rows = pq.read_table("run/predictions.parquet").to_pylist()
    assert {row["file"]: row["label"] for row in rows if row["role"] == "labeled"} == {
        f"day {n % 2}/IMG_{n}.PNG": "gut" if n % 2 else "schräg" for n in range(4)
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["IMG_0.PNG,a", "IMG_1.PNG,b", "IMG_9.PNG,a"], "names an image that is not in parts: IMG_9.PNG"),
        (["IMG_0.PNG,a", "IMG_1.PNG,b", "IMG_0.PNG,b"], "two labels"),
        (["IMG_0.PNG,a", "IMG_1.PNG,a"], 'has only one class, "a", but learning needs at least two'),
        (["IMG_0.PNG,", "IMG_1.PNG,?"], "no labels"),
        ([], "labels.csv"),
    ],
    ids=["missing file", "two labels", "one class", "no label", "no line"],
)
def test_labels_that_say_nothing_clear(shop, capsys, lines, message):
    (shop / "labels.csv").write_text("\n".join(["file,label", *lines]))
    before = snapshot(shop)
    refuse(capsys, ["fit", "parts", "--labels", "labels.csv", "--out", "run"], message)
    assert snapshot(shop) == before


def test_folders_nothing_can_be_learned_from(shop, monkeypatch, capsys):
    refuse(capsys, ["fit", shop], 'has only one class, "parts", but learning needs at least two')
    (shop / "parts" / "day 2").mkdir()
    refuse(capsys, ["fit", "parts"], 'class "day 2" has no image: add some to parts/day 2, or remove that folder')
    refuse(capsys, ["fit", "parts/day 2"], "holds no image")
    for number in range(2):
        (shop / "parts" / "day 2" / f"{number}.png").write_text("no picture")
    refuse(capsys, ["fit", "parts"], 'class "day 2" has no image that can be read')
    refuse(capsys, ["fit", "parts/day 2"], "none of the 2 files in parts/day 2 could be read as an image")
    scandir = os.scandir

    def locked(path):
        if "day" in os.fspath(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    refuse(capsys, ["fit", "parts"], "Permission denied")
    assert not (shop / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("run.json", b"{", ("can't be read", "can't be read")),
        ("run.json", b"[]", ("in a form this version can't read", "in a form this version can't read")),
        ("run.json", b'{"format": 7, "wazuka": "7.0"}', ("by Wazuka 7.0", "by Wazuka 7.0")),
        ("run.json", b'{"format": 1}', ("lacks what a model needs", "lack what a report needs")),
        ("model.safetensors", None, ("is not finished; go on with `wazuka fit photos", None)),
        ("model.safetensors", b"torn", ("model.safetensors is damaged", None)),
        ("metrics.json", None, (None, "metrics.json is missing")),
        ("metrics.json", b"{", ("metrics.json can't be read", "metrics.json can't be read")),
        ("metrics.json", b"{}", (None, "lack what a report needs")),
        ("metrics.json", b"[]", (None, "lack what a report needs")),
        ("gallery.parquet", None, (None, None)),
        ("gallery.parquet", b"torn", (None, "gallery.parquet can't be read")),
        ("metrics.jsonl", None, (None, None)),
        ("metrics.jsonl", b'{"stage": "final", "st\xff', (None, None)),
        ("predictions.parquet", None, (None, None)),
    ],
)
def test_a_damaged_run_is_told_and_not_touched(learned, place, tmp_path, monkeypatch, capsys, name, content, told):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(learned, "run")
    if content is None:
        Path("run", name).unlink()
    else:
        Path("run", name).write_bytes(content)
    before = snapshot(Path("run"))
    for words, message in zip((["predict", "run", place / "photos" / "10.png"], ["report", "run"]), told, strict=True):
        if message is None:
            succeed(capsys, *words)
        else:
            refuse(capsys, words, message)
            assert snapshot(Path("run")) == before


def test_no_words_at_all_show_the_help(capsys):
    assert "wazuka fit photos" in succeed(capsys)


def test_an_error_of_ours_is_not_passed_off_as_the_users(monkeypatch, tmp_path):
    """A bug keeps its traceback: only what was given wrongly becomes a sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wazuka.app.job.prepare", lambda *given: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        main(["fit", "digits", "--out", "run"])
