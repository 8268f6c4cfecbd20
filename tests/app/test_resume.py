"""A run that was killed, interrupted or asked to end goes on with --resume, and ends as if nothing had happened."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

import wazuka
from tests.app.children import (
    QUICK,
    QUICK_WORDS,
    alone,
    command_signaled,
    cross_validated,
    fit_killed_at_step,
    fit_killed_at_the_end,
    fit_killed_at_write,
)
from tests.app.stripes import few, striped_file, stripes
from wazuka.app.cli import main
from wazuka.app.learn import Interrupted, Learner, Watch
from wazuka.app.runs import FILES, Run
from wazuka.errors import UserError

STEPS = 6  # of the training; each of the two folds takes half
NEVER = 1e9
BRIEF = {"steps": STEPS, "folds": 2, **QUICK}


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """On a busy machine a bar would join what is told."""
    monkeypatch.setattr("wazuka.app.console.SHOW_AFTER", 1e9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The data, and the folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    data = cross_validated(folder)
    return data, wazuka.fit(data, out=folder / "run", **BRIEF).folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with images, their labels, and a run on them that was interrupted at its second step."""
    folder = tmp_path_factory.mktemp("stopped")
    images, labels = stripes(16)
    shown = few(labels)
    (folder / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "photos" / f"{number}.png")
    rows = [f"{number}.png,{label}" for number, label in enumerate(shown) if label >= 0]
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(rows))
    steps = iter((False, True))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(Interrupted):
            wazuka.fit("photos", "labels.csv", out="run", watch=Watch(stop=lambda: next(steps)), **BRIEF)
    assert (folder / "run" / "resume" / "final.safetensors").exists()
    return folder


@pytest.fixture
def ours(stopped, tmp_path, monkeypatch):
    """A copy of `stopped` to go on with, as the working folder; the copies keep the files' dates."""
    shutil.copytree(stopped, tmp_path / "ours")
    monkeypatch.chdir(tmp_path / "ours")
    return tmp_path / "ours"


def resume_words(*more: str) -> list[str]:
    words = ["fit", "photos", "--labels", "labels.csv", "--steps", str(STEPS), "--folds", "2", *QUICK_WORDS]
    return [*words, "--out", "run", "--resume", *more]


def rows(run: Path) -> list[dict]:
    """The curves, in an order of their own and without the clock."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sorted(({**row, "seconds": 0} for row in found), key=lambda row: (row["stage"], row["step"]))


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(run / "model.safetensors").items()}


def assert_same(run: Path, other: Path) -> None:
    """Both are finished, with the same weights bit for bit, answers, numbers and curves, and nothing left over."""
    assert weights(run) == weights(other)
    assert pq.read_table(run / "predictions.parquet").equals(pq.read_table(other / "predictions.parquet"))
    clockless = []
    for folder in (run, other):
        metrics = json.loads((folder / "metrics.json").read_text())
        others = [row | {"seconds": 0} for row in metrics["baselines"]]
        clockless.append(metrics | {"seconds": 0, "images_per_second": 0, "baselines": others})
        assert json.loads((folder / "run.json").read_text())["state"] == "done"
        assert {path.name for path in folder.iterdir()} <= set(FILES)
        assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
    assert clockless[0] == clockless[1]
    assert rows(run) == rows(other)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for_rows(run: Path, count: int, process: subprocess.Popen) -> None:
    """Until the curves have so many lines."""
    curves, end = run / "metrics.jsonl", time.monotonic() + 600
    while not curves.exists() or curves.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < end, "it does not train"
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("at", "save_seconds"),
    [
        (("final", 1), NEVER),      # no checkpoint yet: from the start
        (("final", 4), 0),          # a checkpoint of this very step
        (("final", STEPS), 0),      # trained, but not a bit measured
        (("fold-0", 2), 0),         # in the cross-validation
        (("fold-1", 1), NEVER),     # the same, and nothing was ever saved
    ],
    ids=str,
)  # fmt: skip
def test_killed_at_a_step_it_ends_in_the_same_weights(whole, tmp_path, at, save_seconds):
    data, run = whole
    arguments = {"source": data, "out": tmp_path / "run", **BRIEF}
    assert alone(fit_killed_at_step, at, save_seconds, arguments) == -signal.SIGKILL
    assert not (tmp_path / "run" / "report.html").exists()
    wazuka.fit(**arguments, resume=True)
    assert_same(tmp_path / "run", run)


def test_killed_twice_long_after_the_checkpoint(whole, tmp_path):
    data, run = whole
    arguments = {"source": data, "out": tmp_path / "run", **BRIEF}
    assert alone(fit_killed_at_step, ("final", 2), 0, arguments) == -signal.SIGKILL
    checkpoint = (tmp_path / "run" / "resume" / "final.safetensors").read_bytes()
    assert alone(fit_killed_at_step, ("final", 5), NEVER, arguments | {"resume": True}) == -signal.SIGKILL
    assert (tmp_path / "run" / "resume" / "final.safetensors").read_bytes() == checkpoint
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]
    seen = []
    wazuka.fit(**arguments, resume=True, watch=Watch(lambda stage, step, total: seen.append((stage, step))))
    assert seen[0] == ("final", 3)
    assert_same(tmp_path / "run", run)


def test_killed_between_any_two_files_it_can_be_resumed(tmp_path, monkeypatch):
    """Each file is put in its place by a rename: killed before the first, before the second, ... before the last."""
    monkeypatch.setattr("wazuka.app.reporting.render_report", lambda data: "<html></html>")  # drawn in other tests
    data, brief = cross_validated(tmp_path), {**BRIEF, "steps": 4, "labels_per_class": 3}
    put_in_place, written = os.replace, []

    def replace(source, target):
        written.append(Path(target).name)
        put_in_place(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        whole = wazuka.fit(data, out=tmp_path / "whole", watch=Watch(save_seconds=0), **brief).folder
    trainings = [f"{prefix}{name}" for prefix in ("", "floor-") for name in ("final", "fold-0", "fold-1")]
    assert set(written) == {*FILES, *(f"{name}.safetensors" for name in trainings)}
    assert written[-1] == "run.json"
    for number, name in enumerate(written, start=1):
        arguments = {"source": data, "out": tmp_path / f"run-{number}", **brief}
        assert alone(fit_killed_at_write, number, arguments) == -signal.SIGKILL, name
        wazuka.fit(**arguments, resume=True)
        assert_same(tmp_path / f"run-{number}", whole)


def test_killed_on_the_last_yard_it_is_finished_and_tidied(whole, tmp_path, capsys):
    data, run = whole
    arguments = {"source": data, "out": tmp_path / "run", **BRIEF}
    assert alone(fit_killed_at_the_end, arguments) == -signal.SIGKILL
    (tmp_path / "run" / "resume").mkdir(exist_ok=True)
    (tmp_path / "run" / ".report.html.x1y2z3").write_text("half")
    words = ["fit", data, "--steps", str(STEPS), "--folds", "2", *QUICK_WORDS, "--resume"]
    words += ["--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "is finished: there is nothing to resume" in capsys.readouterr().err
    assert_same(tmp_path / "run", run)
    assert len(wazuka.load(tmp_path / "run").classes) == 2


@pytest.mark.parametrize(
    ("at", "signals"),
    [
        (("final", 3), [signal.SIGINT]),
        (("final", 3), [signal.SIGTERM]),
        (("fold-1", 1), [signal.SIGINT]),
        (("reading images", 16), [signal.SIGTERM]),
    ],
    ids=str,
)
def test_a_signal_saves_and_the_printed_line_goes_on(stopped, tmp_path, monkeypatch, capsys, at, signals):
    folder = tmp_path / "a folder, with 'odd' names"
    folder.mkdir()
    for name in ("photos", "labels.csv"):
        copy = shutil.copytree if name == "photos" else shutil.copy2
        copy(stopped / name, folder / name)
    (folder / "labels.csv").rename(folder / "my labels.csv")
    words = ["fit", "photos", "--labels", "my labels.csv", "--steps", str(STEPS), "--folds", "2", *QUICK_WORDS]
    words += ["--no-flip", "--seed", "3", "--out", "runs/it's one"]
    said = tmp_path / "said"
    monkeypatch.setenv("WAZUKA_CACHE", str(tmp_path / "cache"))
    assert alone(command_signaled, words, {at: signals}, folder, said) == 130
    first, line = said.read_text(encoding="utf-8").splitlines()
    assert first == "Interrupted; the state is saved. Go on with:"
    monkeypatch.chdir(folder)
    program, *rest = shlex.split(line)
    assert program == "wazuka"
    main(rest)
    again = capsys.readouterr()
    assert "Report: runs/it's one/report.html" in again.out
    assert again.err == ""
    main([*words[:-1], "whole"])
    assert_same(folder / "runs" / "it's one", folder / "whole")


def test_a_second_signal_ends_it_at_once_and_loses_nothing_saved(whole, tmp_path, monkeypatch):
    data, run = whole
    words = ["fit", data, "--steps", str(STEPS), "--folds", "2", *QUICK_WORDS, "--out", "run"]
    said, twice = tmp_path / "said", [signal.SIGINT, signal.SIGTERM]
    assert alone(command_signaled, words, {("final", 2): [signal.SIGINT]}, tmp_path, said) == 130
    saved = (tmp_path / "run" / "resume" / "final.safetensors").read_bytes()
    assert alone(command_signaled, [*words, "--resume"], {("final", 4): twice}, tmp_path, said) == 130
    first, line = said.read_text(encoding="utf-8").splitlines()
    assert first == "Interrupted at once. Go on from what was saved last with:"
    assert (tmp_path / "run" / "resume" / "final.safetensors").read_bytes() == saved
    monkeypatch.chdir(tmp_path)
    main(shlex.split(line)[1:])
    assert_same(tmp_path / "run", run)


@pytest.mark.timeout(2400)  # three times a whole start of the program, maybe on a machine that does much else
def test_the_command_interrupted_then_killed_ends_in_the_same_weights(tmp_path, monkeypatch):
    """The real thing: `wazuka fit` as a process, Ctrl-C, the printed line in a shell, kill -9, the line again."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    striped_file(tmp_path, train=24, test=4, per_class=2)
    words = ["wazuka", "fit", "stripes.npz", "--steps", "500", *QUICK_WORDS, "--out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = tmp_path / "run"
    with subprocess.Popen([*words, "run"], **pipes) as process:
        wait_for_rows(run, 20, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 130
    line = errors.splitlines()[-1].strip()
    assert "Traceback" not in errors
    assert sorted(shlex.split(line)) == sorted([*words, "run", "--resume"])
    before = len(rows(run))
    with subprocess.Popen("exec " + line, shell=True, **pipes) as process:
        wait_for_rows(run, before + 20, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL
    assert json.loads((run / "run.json").read_text())["state"] == "started"
    done = subprocess.run(line, shell=True, **pipes, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Report: run/report.html" in done.stdout
    main([*words[1:], "whole"])
    assert_same(run, tmp_path / "whole")


def test_a_torn_line_of_the_curves_is_written_again(ours):
    with open("run/metrics.jsonl", "ab") as file:
        file.write(b'{"stage": "final", "step": 3, "lo\xff\xfe')
    main(resume_words())
    found = {(row["stage"], row["step"]) for row in rows(Path("run"))}
    stages = {"final": 6, "fold-0": 3, "fold-1": 3, "floor-final": 6, "floor-fold-0": 3, "floor-fold-1": 3}
    assert found == {(stage, step) for stage, steps in stages.items() for step in range(1, steps + 1)}
    assert len(rows(Path("run"))) == len(found)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", "7"), "run was started with steps = 6; resume it with: wazuka fit photos --labels labels.csv"),
        (("--seed", "1"), "was started with seed = 0"),
        (("--precision", "bfloat16"), "was started with precision = float32"),
        (("--set", "threshold=0.5"), "was started with settings = "),
        (("--folds", "3"), "was started with folds = 2"),
        (("--fit", "pad"), "was started with fit = auto"),
        (("--size", "8"), "was started with size = None"),
        (("--flip",), "was started with flip = None"),
        (("--labels-per-class", "1"), "was started with labels_per_class = None"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_other_choices_are_refused(ours, capsys, more, message):
    words = resume_words()
    for name in more[::2]:
        if name in words and name != "--set":
            place = words.index(name)
            del words[place : place + 2]
    assert_refused(ours, capsys, [*words, *more], message)


def assert_refused(folder, capsys, words, message):
    """Exit code 2, one line that says why, and not a byte of the run changed."""
    before = snapshot(folder / "run")
    with pytest.raises(SystemExit) as end:
        main(words)
    told = capsys.readouterr()
    assert end.value.code == 2
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert snapshot(folder / "run") == before


def another_image():
    Image.fromarray(stripes(1, seed=9)[0][0]).save("photos/15.png")


@pytest.mark.parametrize(
    "change",
    [
        another_image,
        lambda: shutil.copy("photos/15.png", "photos/16.png"),
        lambda: Path("photos/15.png").unlink(),
        lambda: Path("photos/15.png").rename("photos/other.png"),
        lambda: Path("labels.csv").write_text(Path("labels.csv").read_text() + "\n15.png,1"),
        lambda: Path("labels.csv").write_text(Path("labels.csv").read_text().replace("0.png,0", "0.png,1")),
    ],
    ids=["another image", "one more", "one less", "another name", "one more label", "another label"],
)
def test_other_data_are_refused(ours, capsys, change):
    change()
    assert_refused(ours, capsys, resume_words(), "The images or labels of photos have changed since run was started")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b'{"format": 1', "run.json can't be read"),
        ("run.json", b'{"format": 1}', "run/run.json is damaged: state is lost there"),
        ("run.json", b'{"format": 99, "wazuka": "9.9"}', "was written by Wazuka 9.9, in a form this version"),
        ("resume/final.safetensors", b"torn", "run/resume/final.safetensors "),
        ("resume/final.safetensors", b"", "run/resume/final.safetensors "),
    ],
)
def test_damaged_files_are_told(ours, capsys, name, content, message):
    Path("run", name).write_bytes(content)
    assert_refused(ours, capsys, resume_words(), message)


def test_a_run_planned_otherwise_is_refused(ours, capsys):
    facts = json.loads(Path("run/run.json").read_text())
    facts["plan"]["policies"]["weak"] = "Weak(shift=0.5)"
    Run(Path("run")).write("run.json", facts | {"wazuka": "0.0.1"})
    assert_refused(ours, capsys, resume_words(), "started by a Wazuka that trains otherwise (0.0.1)")


def test_a_lost_draw_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = cross_validated(tmp_path)
    with pytest.raises(Interrupted):
        wazuka.fit(data, labels_per_class=2, out="run", watch=Watch(stop=lambda: True), **BRIEF)
    Path("run/draw.json").unlink()
    words = ["fit", data, "--labels-per-class", "2", "--steps", str(STEPS), "--folds", "2", *QUICK_WORDS]
    assert_refused(tmp_path, capsys, [*words, "--out", "run", "--resume"], "draw.json can't be read")


def test_nothing_to_resume_is_told_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wazuka.app.job.open_images", lambda *given, **options: pytest.fail("images were read"))
    for words, message in [
        (["--out", "nowhere", "--resume"], "There is no run at nowhere to resume; leave --resume out to start it"),
        (["--resume"], "--resume needs --out"),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["fit", "digits", *words])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_by_the_clock_keeps_its_number_of_steps(tmp_path, monkeypatch):
    """The clock decides once, at the start: the resumed run measures nothing anew."""
    monkeypatch.setattr(Learner, "seconds_per_step", lambda self: 8.0)  # of 54 s, less what the floor takes, so 5 steps
    data = str(striped_file(tmp_path, train=24, test=4, per_class=2))
    with pytest.raises(Interrupted) as interrupted:
        wazuka.fit(data, minutes=1, out=tmp_path / "run", watch=Watch(stop=lambda: True), **QUICK)
    assert "--minutes 1 " in str(interrupted.value)
    monkeypatch.setattr(Learner, "seconds_per_step", lambda self: pytest.fail("measured again"))
    assert wazuka.fit(data, minutes=1, out=tmp_path / "run", resume=True, **QUICK).metrics["steps"] == 5
    wazuka.fit(data, steps=5, out=tmp_path / "whole", **QUICK)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_resuming_does_not_ask_for_the_labels_again(tmp_path):
    """The labels that were drawn are those in draw.json, whatever a later version would draw."""
    images, labels = stripes(24)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    brief = {"labels_per_class": 2, "out": tmp_path / "run", **BRIEF}
    with pytest.raises(Interrupted):
        wazuka.fit(str(tmp_path / "data.npz"), watch=Watch(stop=lambda: True), **brief)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wazuka.app.prepared.make_draw", lambda *given, **options: pytest.fail("drawn again"))
        wazuka.fit(str(tmp_path / "data.npz"), resume=True, **brief)
    with pytest.raises(UserError, match="is finished"):
        wazuka.fit(str(tmp_path / "data.npz"), resume=True, **brief)
