import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tests.app.stripes import few, striped_file, stripes
from wazuka.app import compare as module
from wazuka.app.compare import compare
from wazuka.app.learn import Interrupted
from wazuka.errors import UserError

METHODS = ("supervised:view=weak:labeled_batch=8", "fixmatch:labeled_batch=4:unlabeled_ratio=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(striped_file(tmp_path_factory.mktemp("compare")))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "new"
    return compare(data, METHODS, 4, 2, 3, folder), folder


def untouchable(*arguments):
    raise AssertionError("nothing may be trained again")


def test_every_method_is_measured_on_every_seed(finished):
    results, folder = finished
    assert [(row["method"], row["seed"]) for row in results["runs"]] == [
        (METHODS[0], 0), (METHODS[1], 0), (METHODS[0], 1), (METHODS[1], 1),
    ]  # fmt: skip
    assert all(row["n"] == 20 and 0 <= row["correct"] <= 20 for row in results["runs"])
    for name in METHODS:
        values = [row["correct"] / 20 for row in results["runs"] if row["method"] == name]
        summary = results["summary"][name]
        assert summary["values"] == values
        assert summary["median"] == pytest.approx(np.median(values))
        assert summary["worst"] == min(values)
    assert json.loads((folder / "results.json").read_text()) == results


def test_the_plot_shows_every_seed(finished):
    root = ET.parse(finished[1] / "accuracy.svg").getroot()
    assert root.tag.endswith("svg")
    assert ET.tostring(root).count(b"use ") >= 4


def test_seeds_draw_their_own_labels_and_methods_share_them(data, monkeypatch, tmp_path):
    seen = []

    def remember(job, method, settings):
        train = job.prepared.train
        seen.append((method, train.labels.tobytes(), train.n_labeled, job.choices.seed))
        return job.prepared.test.labels, 1.0

    monkeypatch.setattr(module.Job, "rival", remember)
    results = compare(data, ("supervised", "fixmatch"), 4, 2, 3, tmp_path / "out")
    assert seen[0][1:] == seen[1][1:]
    assert seen[2][1:] == seen[3][1:]
    assert seen[0][1] != seen[2][1]
    assert {one[2] for one in seen} == {4}
    assert all(row["correct"] == row["n"] for row in results["runs"])


def test_finished_trainings_are_kept_and_more_seeds_added(data, finished, monkeypatch, capsys):
    results, folder = finished
    monkeypatch.setattr(module, "_one", untouchable)
    again = compare(data, METHODS, 4, 2, 3, folder)
    assert again["runs"] == results["runs"]
    out = capsys.readouterr().out
    assert "4 labels, 2 seeds, 20 test images" in " ".join(out.split())
    assert str(folder / "accuracy.svg") in out
    with pytest.raises(AssertionError, match="trained again"):
        compare(data, METHODS, 4, 3, 3, folder)
    fewer = compare(data, METHODS[:1], 4, 1, 3, folder)  # only what was asked for is summed up
    assert list(fewer["summary"]) == [METHODS[0]]
    assert math.isnan(fewer["summary"][METHODS[0]]["sd"] or math.nan)
    assert len(fewer["runs"]) == 4


def test_another_comparison_is_not_mixed_in(data, finished, tmp_path):
    for arguments in ((METHODS, 8, 2, 3), (METHODS, 4, 2, 4)):
        with pytest.raises(UserError, match=r"results\.json holds another comparison; give another --out"):
            compare(data, *arguments, finished[1])
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"results\.json can't be read"):
        compare(data, METHODS, 4, 2, 3, tmp_path)


def test_an_interrupted_comparison_names_the_command_that_goes_on(data, monkeypatch, tmp_path):
    def interrupt(*arguments):
        raise Interrupted

    monkeypatch.setattr(module, "_one", interrupt)
    with pytest.raises(Interrupted) as raised:
        compare(data, ("supervised",), 4, 2, 3, tmp_path / "my out")
    expected = f"wazuka compare {data} --methods supervised --labels 4 --seeds 2 --steps 3 --out '{tmp_path}/my out'"
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("methods", "labels", "seeds", "message"),
    [
        ((), 4, 1, "needs at least one name"),
        (("fixmach",), 4, 1, "did you mean fixmatch"),
        (("fixmatch:treshold=1",), 4, 1, "did you mean threshold"),
        (("fixmatch:threshold",), 4, 1, "should read like"),
        (("fixmatch",), 0, 1, "must be positive"),
        (("fixmatch",), 4, 0, "must be positive"),
        (("fixmatch",), 5, 1, "5 labels can't be shared evenly by the 2 classes .*take a multiple of 2"),
        (("fixmatch",), 400, 1, "too few to draw 200"),
    ],
)
def test_wrong_input_is_told_before_any_training(data, tmp_path, monkeypatch, methods, labels, seeds, message):
    monkeypatch.setattr(module.Job, "rival", untouchable)
    with pytest.raises(UserError, match=message):
        compare(data, methods, labels, seeds, 3, tmp_path / "out")


def test_data_that_cannot_be_compared_on_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module.Job, "rival", untouchable)
    images, labels = stripes(20)
    np.savez(tmp_path / "none.npz", images=images)
    with pytest.raises(UserError, match="has no labels"):
        compare(str(tmp_path / "none.npz"), ("supervised",), 4, 1, 3, tmp_path / "out")
    np.savez(tmp_path / "few.npz", images=images, labels=few(labels, 2))
    with pytest.raises(UserError, match="no test images, and too few labeled ones"):
        compare(str(tmp_path / "few.npz"), ("supervised",), 4, 1, 3, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_told_before_any_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module.Job, "rival", untouchable)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="can't be written to"):
        compare(data, ("supervised",), 4, 1, 3, tmp_path / "file")
