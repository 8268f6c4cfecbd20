import json

import pytest

from wazuka.app.runs import FORMAT, Run, new_run, open_run
from wazuka.errors import UserError


def test_a_new_run_is_an_empty_folder_with_its_parents(tmp_path):
    run = new_run(tmp_path / "a" / "b")
    assert run.folder.is_dir()
    assert run.metrics() == []


def test_a_folder_in_use_is_never_written_to(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    with pytest.raises(UserError, match="not empty; give --out a new folder"):
        new_run(tmp_path / "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        new_run(tmp_path / "file")
    with pytest.raises(UserError, match="can't be written to"):
        new_run(tmp_path / "file" / "below")
    new_run(tmp_path / "run").write("run.json", {"format": FORMAT})
    with pytest.raises(UserError, match="holds a run already; give another --out, or --resume"):
        new_run(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "cat.png", "file", "metrics.jsonl", "photos", "run", "run.json",
    ]  # fmt: skip


def test_a_run_killed_before_it_began_can_begin(tmp_path):
    run = new_run(tmp_path / "run")
    (run.folder / "draw.json").write_text("{}")
    (run.folder / ".run.json.x1y2z3").write_text('{"for')
    assert new_run(tmp_path / "run") == run
    run.add_metrics({"stage": "final", "step": 1})
    with pytest.raises(UserError, match="not empty"):
        new_run(tmp_path / "run")


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_run("~/run").folder == tmp_path / "run"
    new_run("~/run").write("run.json", {"format": FORMAT})
    assert open_run("~/run").folder == tmp_path / "run"


def test_json_goes_in_and_comes_out(tmp_path):
    run = Run(tmp_path)
    run.write("facts.json", {"name": "Käfer", "values": [1, 0.5, None]})
    assert run.read("facts.json") == {"name": "Käfer", "values": [1, 0.5, None]}
    assert "Käfer" in (tmp_path / "facts.json").read_text(encoding="utf-8")


def test_what_no_other_program_could_read_is_not_written(tmp_path):
    run = Run(tmp_path)
    run.write("facts.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        run.write("facts.json", {"loss": float("nan")})
    assert run.read("facts.json") == {"loss": 1.0}
    with pytest.raises(ValueError, match="JSON"):
        run.add_metrics({"loss": float("inf")})


def test_curves_grow_row_by_row_and_survive_a_cut_line(tmp_path):
    run = new_run(tmp_path / "run")
    rows = [{"stage": "final", "step": step} for step in (1, 2, 3)]
    for row in rows:
        run.add_metrics(row)
    assert run.metrics() == rows
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"stage": "final", "st')
    assert run.metrics() == rows


def test_a_resumed_stage_forgets_what_it_will_write_again(tmp_path):
    run = new_run(tmp_path / "run")
    for stage, step in [("final", 1), ("final", 2), ("fold-0", 1), ("fold-0", 2)]:
        run.add_metrics({"stage": stage, "step": step})
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"stage": "fold-0", "st')
    run.forget_metrics_after("fold-0", 1)
    run.add_metrics({"stage": "fold-0", "step": 2})
    assert [(row["stage"], row["step"]) for row in run.metrics()] == [
        ("final", 1), ("final", 2), ("fold-0", 1), ("fold-0", 2),
    ]  # fmt: skip


def test_what_is_no_run_is_told_from_what_is_damaged(tmp_path):
    with pytest.raises(UserError, match=r"There is no run at .*; `wazuka fit PHOTOS --out"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a finished run: run\.json is missing"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 1')
    with pytest.raises(UserError, match=r"run\.json can't be read"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"run\.json can't be read"):
        open_run(tmp_path)


@pytest.mark.parametrize("facts", [{"format": 99, "wazuka": "9.9"}, {"wazuka": "0.0"}, [], "text"])
def test_a_run_of_another_version_is_refused(tmp_path, facts):
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"was written by Wazuka .*fit it again"):
        open_run(tmp_path)
