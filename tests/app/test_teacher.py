"""`wazuka fit --method distillation --teacher RUN`: a former run teaches, and its knowledge never flatters a number."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import wazuka
from tests.app.children import QUICK, QUICK_WORDS
from tests.app.stripes import few, striped_file, stripes
from wazuka.app.cli import main
from wazuka.app.learn import Interrupted, Watch
from wazuka.app.runs import Run
from wazuka.errors import UserError

DISTILL = ["--method", "distillation", *QUICK_WORDS]
BRIEF = ["--steps", "2", "--out", "student"]
TEACHING = {"method": "supervised", "settings": {"labeled_batch": "4", "view": "weak"}, "precision": "float32"}


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """On a busy machine a bar would join what is told."""
    monkeypatch.setattr("wazuka.app.console.SHOW_AFTER", 1e9)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with stripes.npz, and `teacher`, a run on it."""
    folder = tmp_path_factory.mktemp("place")
    data = striped_file(folder, train=40, test=20, per_class=5)
    wazuka.fit(str(data), steps=40, out=folder / "teacher", **TEACHING)
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A copy of that folder, as the working folder."""
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def facts_of(run: str) -> dict:
    return json.loads(Path(run, "run.json").read_text())


def refuse(capsys, words, message) -> None:
    """Exit code 2, one sentence, and nothing left behind."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    told = capsys.readouterr()
    assert end.value.code == 2
    assert message in told.err
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_run_teaches_another_and_is_not_needed_afterwards(here, capsys):
    main(["fit", "stripes.npz", "--teacher", "teacher", *DISTILL, "--steps", "40", "--out", "student"])
    assert "Accuracy" in capsys.readouterr().out
    facts, metrics = facts_of("student"), json.loads(Path("student/metrics.json").read_text())
    recorded = {name: facts["teacher"][name] for name in ("run", "method", "labels", "test_accuracy")}
    accuracy = json.loads(Path("teacher/metrics.json").read_text())["test_accuracy"]
    assert recorded == {"run": "teacher", "method": "supervised", "labels": 10, "test_accuracy": accuracy}
    assert facts["choices"]["teacher"] == "teacher"
    assert "--method distillation --teacher teacher" in facts["command"]
    (row,) = metrics["baselines"]
    assert (row["name"], row["n"]) == ("its teacher, teacher", 20)
    assert row["correct"] == round(20 * accuracy)
    assert "its teacher, teacher" in Path("student/report.html").read_text(encoding="utf-8")

    with safe_open("student/model.safetensors", framework="numpy") as weights:
        assert not [name for name in weights.keys() if name.startswith("teacher")]
    images = np.load("stripes.npz")["x_test"][:, None]
    taught = wazuka.load("teacher").predict_proba(images)
    shutil.rmtree("teacher")
    answers = wazuka.load("student").predict_proba(images)
    assert (answers.argmax(axis=1) == taught.argmax(axis=1)).mean() > 0.8
    rows = [row for row in pq.read_table("student/predictions.parquet").to_pylist() if row["role"] == "test"]
    np.testing.assert_allclose(answers, [row["probabilities"] for row in rows], atol=1e-6)


def test_a_student_follows_its_teacher_and_not_the_labels(here):
    """A teacher that calls everything by the other name."""
    images, labels = stripes(40)
    np.savez("turned.npz", x_train=images, y_train=1 - few(labels, 20), x_test=images[:6], y_test=labels[:6])
    wazuka.fit("turned.npz", steps=40, out="teacher2", **TEACHING)
    run = wazuka.fit("stripes.npz", method="distillation", teacher="teacher2", steps=40, out="student", **QUICK)
    assert run.metrics["test_accuracy"] < 0.2


def test_a_student_may_teach(here):
    wazuka.fit("stripes.npz", method="distillation", teacher=Path("teacher"), steps=2, out="student", **QUICK)
    wazuka.fit("stripes.npz", method="distillation", teacher="student", steps=2, out="next", **QUICK)
    assert facts_of("next")["teacher"]["method"] == "distillation"


def photos(folder: str, side: int, names=("0", "1"), color: bool = False) -> None:
    for number, image in enumerate(stripes(8, side=side)[0]):
        where = Path(folder, names[number % 2])
        where.mkdir(parents=True, exist_ok=True)
        seen = np.stack([image, image // 2, 255 - image], axis=-1) if color else image
        Image.fromarray(seen).save(where / f"{number}.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stripes.npz --method distillation", "distillation learns from a teacher: fit it with --teacher RUN"),
        (
            "stripes.npz --method distillation --teacher nowhere",
            "There is no run at nowhere; `wazuka fit PHOTOS --out nowhere` makes one",
        ),
        (
            "stripes.npz --method distillation --teacher photos",
            "photos is not a finished run: run.json is missing there",
        ),
        ("stripes.npz --method distillation --teacher stopped", "stopped is not finished; go on with"),
        ("stripes.npz --method fixmatch --teacher teacher", "fixmatch learns without a teacher; leave --teacher out"),
        (
            "others --method distillation --teacher teacher",
            "knows the classes 0, 1, and the images show 0, 7; take one that was fitted on",
        ),
        (
            "color --method distillation --teacher teacher",
            "The teacher teacher takes gray images, and these are color; take one",
        ),
        (
            "large --method distillation --teacher teacher",
            "takes images of 8 x 8 pixels, and these have 12 x 12; open them with --size 8",
        ),
        ("nothing-there --method distillation --teacher nowhere", "There is no run at nowhere"),
    ],
)
def test_a_teacher_that_does_not_fit_is_told(here, capsys, words, message):
    photos("photos", 8)
    photos("others", 8, names=("0", "7"))
    photos("color", 8, color=True)
    photos("large", 12)
    shutil.copytree("teacher", "stopped")
    Path("stopped/model.safetensors").unlink()
    refuse(capsys, ["fit", *words.split(), *QUICK_WORDS, *BRIEF], message)


def test_the_sentence_about_the_size_helps(here):
    photos("large", 12)
    main(["fit", "large", "--teacher", "teacher", "--size", "8", *DISTILL, *BRIEF])
    assert facts_of("student")["size"] == [8, 8]


def test_who_asks_from_elsewhere_is_told_too(here, capsys):
    images, labels = stripes(20)
    with pytest.raises(UserError, match="distillation learns from a teacher"):
        wazuka.Classifier(method="distillation", steps=1).fit(images, few(labels))
    with pytest.raises(SystemExit) as end:
        main(["compare", "stripes.npz", "--methods", "distillation", "--labels", "4", "--seeds", "1", "--steps", "1"])
    assert end.value.code == 2
    assert "distillation learns from a teacher" in capsys.readouterr().err


# Going on


def interrupted(teacher: str = "teacher") -> list[str]:
    """A run stopped at its third step; the words that go on with it."""
    steps = iter((False, False, True))
    with pytest.raises(Interrupted) as stop:
        wazuka.fit(
            "stripes.npz", method="distillation", teacher=teacher, steps=6, out="student",
            watch=Watch(stop=lambda: next(steps)), **QUICK,
        )  # fmt: skip
    return shlex.split(str(stop.value))[1:]


def test_a_resumed_student_ends_as_one_that_was_not_stopped(here):
    words = interrupted()
    assert words[words.index("--teacher") + 1] == "teacher"
    main(words)
    wazuka.fit("stripes.npz", method="distillation", teacher="teacher", steps=6, out="whole", **QUICK)
    ours, whole = (load_file(f"{run}/model.safetensors") for run in ("student", "whole"))
    assert ours.keys() == whole.keys()
    assert all(np.array_equal(value, whole[name]) for name, value in ours.items())


def test_a_student_goes_on_with_its_own_teacher_only(here, capsys):
    words = interrupted()
    shutil.copytree("teacher", "other")
    place = words.index("--teacher")
    refuse(capsys, [*words[: place + 1], "other", *words[place + 2 :]], "was started with teacher = teacher")
    refuse(capsys, words[:place] + words[place + 2 :], "distillation learns from a teacher")
    wazuka.fit("stripes.npz", steps=3, out="new", **TEACHING)
    shutil.copy("new/model.safetensors", "teacher/model.safetensors")
    refuse(capsys, words, "The teacher teacher has changed since student was started; fit it anew")
    shutil.rmtree("teacher")
    refuse(capsys, words, "There is no run at teacher")


# An honest number


def test_labels_that_the_teacher_knows_measure_nothing(here):
    """Each fold would hide labels which the student learns from its teacher all the same."""
    images, labels = stripes(24)
    np.savez("untested.npz", images=images, labels=few(labels, 6))
    wazuka.fit("untested.npz", steps=2, folds=0, out="teacher2", **TEACHING)
    seen = set()
    run = wazuka.fit(
        "untested.npz", method="distillation", teacher="teacher2", steps=2, out="student",
        watch=Watch(lambda stage, step, total: seen.add(stage)), **QUICK,
    )  # fmt: skip
    assert seen == {"final"}
    assert run.metrics["test_accuracy"] is None
    assert run.metrics["protocol"].startswith("not at all: there are no test images, and the teacher knows")
    assert "baselines" not in run.metrics


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 1, 4 labels a class"),
        ({"labels_per_class": None}, "seed 0, all labels"),
        ({"labels_per_class": 3}, "seed 0, 3 labels a class"),
        ({}, None),
    ],
)
def test_images_held_out_from_the_student_were_held_out_from_its_teacher(here, changes, said):
    images, labels = stripes(60)
    np.savez("untested.npz", images=images, labels=labels)
    drawn = {"seed": 0, "labels_per_class": 4}
    wazuka.fit("untested.npz", steps=2, folds=0, out="teacher2", **TEACHING, **(drawn | changes))
    student = {"method": "distillation", "teacher": "teacher2", "steps": 2, "out": "student", **drawn, **QUICK}
    if said is None:
        assert wazuka.fit("untested.npz", **student).metrics["n_test"] == 18
        return
    with pytest.raises(UserError, match=f"was fitted on another draw of .* \\({said}\\), so it may know labels"):
        wazuka.fit("untested.npz", **student)
    assert not Path("student").exists()


def test_test_images_that_are_given_are_nobodys_draw(here):
    run = wazuka.fit(
        "stripes.npz", method="distillation", teacher="teacher", steps=2, seed=5, labels_per_class=2, out="student",
        **QUICK,
    )  # fmt: skip
    assert run.metrics["n_test"] == 20


def test_a_run_without_a_teacher_records_none(here):
    wazuka.fit("stripes.npz", steps=2, floor=False, out="plain", **QUICK)
    assert facts_of("plain")["teacher"] is None
    assert "--teacher" not in facts_of("plain")["command"]
    before = facts_of("plain")
    del before["teacher"]  # as an older version wrote it
    Run(Path("plain")).write("run.json", before)
    assert wazuka.load("plain").classes == ("0", "1")
