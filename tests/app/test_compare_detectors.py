"""`wazuka compare DATA --odd OTHER`: a table of detectors on one training a seed."""

import json
import re

import numpy as np
import pytest

from tests.app.stripes import striped_file
from tests.app.test_transfer import photo_file, photos, small_backbone
from wazuka.app.cli import main
from wazuka.app.compare_detectors import ALL, ON_FEATURES, wanted
from wazuka.errors import UserError

__all__ = ["small_backbone"]


def told(arguments, capsys, code=2):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in arguments])
    assert stop.value.code == code
    return capsys.readouterr().err


@pytest.fixture
def noise(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "noise.npz", x_train=images, y_train=np.full(60, -1))
    return tmp_path / "noise.npz"


def test_detectors_are_compared_on_one_training_a_seed(tmp_path, noise, capsys):
    data = striped_file(tmp_path, per_class=40)
    out = tmp_path / "out"
    command = ["compare", str(data), "--odd", str(noise), "--methods", "supervised", "--labels", "20", "--steps", "6"]
    command += ["--seeds", "2", "--out", str(out)]
    main(command)
    said = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert {row["detector"] for row in results["runs"]} == set(ALL)
    assert {row["seed"] for row in results["runs"]} == {0, 1}
    for row in results["runs"]:
        assert 0 <= row["auroc"]["low"] <= row["auroc"]["value"] <= row["auroc"]["high"] <= 1
    assert len({row["correct"] for row in results["runs"] if row["seed"] == 0}) == 1  # one training for all
    assert all(re.search(rf"^{name} ", said, re.MULTILINE) for name in ALL)
    assert (out / "auroc.svg").read_text().startswith("<?xml")
    gram = results["summary"]["gram"]["mean"]["value"]
    assert gram > 0.9  # noise is easily told from stripes
    before = (out / "results.json").stat().st_mtime_ns, results["runs"]
    main(command)  # nothing is trained again
    assert json.loads((out / "results.json").read_text())["runs"] == before[1]


def test_on_a_pre_trained_networks_features(tmp_path, capsys):
    others = np.random.default_rng(5).integers(0, 256, (30, 3, 40, 40)).astype(np.uint8)
    np.savez(tmp_path / "others.npz", x_train=others, y_train=np.full(30, -1))
    data = tmp_path / "known"
    data.mkdir()
    images, labels = photos(20)
    unseen, truth = photos(6, seed=1)
    np.savez(data / "photos.npz", x_train=images, y_train=labels, x_test=unseen, y_test=truth)
    out = tmp_path / "out"
    main(["compare", str(data / "photos.npz"), "--odd", str(tmp_path / "others.npz"), "--labels", "12", "--seeds", "1",
          "--out", str(out)])  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert results["method"] == "consensus"
    assert {row["detector"] for row in results["runs"]} == set(ON_FEATURES)
    assert results["summary"]["knn"]["mean"]["value"] > 0.9
    assert "FPR at 95 % TPR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "supervised,fixmatch"], "Detectors are compared on one method's network, got 2"),
        (["--methods", "supervised", "--detectors", "knm"], "There is no detector 'knm'"),
        (["--methods", "supervised", "--detectors", "knn:neigbors=0.1"], "knn has no setting 'neigbors'"),
        (["--methods", "supervised", "--detectors", "knn:0.1"], "settings are written as in knn:neighbors=0.05"),
        (["--methods", "consensus", "--detectors", "gram"], "gram looks into the network"),
        (["--methods", "supervised", "--labels", "21"], "can't be shared evenly"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path, noise, more, message, capsys):
    data = striped_file(tmp_path, per_class=10)
    command = ["compare", data, "--odd", noise, "--steps", "2", "--seeds", "1", "--out", tmp_path / "o", *more]
    assert message in told(command, capsys)


def test_detectors_need_something_odd(tmp_path, capsys):
    data = photo_file(tmp_path)
    assert "--odd" in told(["compare", data, "--methods", "supervised", "--detectors", "knn"], capsys)
    assert "--methods needs at least one name" in told(["compare", data], capsys)


def test_settings_of_a_detector_are_heard():
    found = wanted(["knn:neighbors=0.2", "msp"], False)
    assert found["knn:neighbors=0.2"][1] == {"neighbors": "0.2"}
    assert found["msp"][1] == {}
    with pytest.raises(UserError, match="on the features of a pre-trained network there are"):
        wanted(["vim"], True)
