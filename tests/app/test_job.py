import json

import numpy as np
import pytest

import wazuka
from tests.app.stripes import few, striped_file, stripes
from wazuka.app.job import Choices
from wazuka.app.learn import Interrupted, Watch
from wazuka.app.prepared import prepare
from wazuka.app.runs import Run
from wazuka.data import open_images
from wazuka.errors import UserError

QUICK = {"settings": {"labeled_batch": 4, "unlabeled_ratio": 1}, "precision": "float32"}


def array_data(counts, test=None):
    """Images with so many labels of each class, the rest unlabeled."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images, _ = stripes(len(labels))
    return open_images(images, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1, "minutes": 1}, "give one of them"),
        ({"steps": 0}, "--steps must be positive, got 0"),
        ({"minutes": float("nan")}, "--minutes must be positive"),
        ({"minutes": float("inf")}, "--minutes must be positive"),
        ({"labels_per_class": -1}, "--labels-per-class must be positive"),
        ({"size": 0}, "--size must be positive"),
        ({"folds": 1}, "--folds must be 0"),
        ({"seed": -1}, "--seed must lie in"),
        ({"seed": 2**32}, "--seed must lie in"),
        ({"precision": "half"}, "--precision must be"),
    ],
)
def test_wrong_choices_are_told_before_anything_is_read(changes, message):
    with pytest.raises(UserError, match=message):
        Choices(source="x", **changes)


def test_labels_drawn_never_suffer_from_the_test_images_set_apart():
    """A rare class keeps all the labels that were asked for, even if no test images can be set apart then."""
    rare = prepare(array_data([100, 4]), 4, 0, True, None)
    assert rare.train.class_counts().tolist() == [4, 4]
    assert rare.test is None
    assert rare.protocol.startswith("by cross-validation")
    single = prepare(array_data([100, 1]), 1, 0, True, None)
    assert single.train.class_counts().tolist() == [1, 1]
    enough = prepare(array_data([100, 50]), 4, 0, True, None)
    assert enough.train.class_counts().tolist() == [4, 4]
    assert enough.test is not None
    assert len(enough.test) == 45
    with pytest.raises(UserError, match="has 3 labeled images, too few to draw 4"):
        prepare(array_data([100, 3]), 4, 0, True, None)


def test_the_protocol_never_claims_a_measurement_that_was_not_made(tmp_path):
    images, labels = stripes(12)
    np.savez(tmp_path / "one.npz", images=images, labels=few(labels, 1))
    run = wazuka.fit(str(tmp_path / "one.npz"), steps=1, out=tmp_path / "run", **QUICK)
    assert run.metrics["test_accuracy"] is None
    assert run.metrics["protocol"].startswith("not at all: there are no test images, and a class has a single label")
    assert "by cross-validation" not in (run.folder / "report.html").read_text(encoding="utf-8")
    off = prepare(open_images(images, few(labels)), None, 0, False, None)
    assert off.protocol.endswith("switched off")


def test_a_run_killed_before_its_first_checkpoint_writes_its_curve_once(tmp_path):
    data, folder = str(striped_file(tmp_path, per_class=2)), tmp_path / "run"

    def killed(stage, step, total):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wazuka.fit(data, steps=5, out=folder, watch=Watch(killed, save_seconds=1e9), **QUICK)
    assert len(Run(folder).metrics()) == 3
    wazuka.fit(data, steps=5, out=folder, resume=True, **QUICK)
    assert [row["step"] for row in Run(folder).metrics() if row["stage"] == "final"] == [1, 2, 3, 4, 5]


def test_what_a_kill_left_half_written_does_not_stop_the_resumed_run(tmp_path):
    data, folder = str(striped_file(tmp_path, per_class=2)), tmp_path / "run"
    with pytest.raises(Interrupted):
        wazuka.fit(data, steps=5, out=folder, watch=Watch(stop=lambda: True), **QUICK)
    (folder / "resume" / ".final.safetensors.k1ll3d").write_bytes(b"half")
    wazuka.fit(data, steps=5, out=folder, resume=True, **QUICK)
    assert json.loads((folder / "run.json").read_text())["state"] == "done"
    assert not (folder / "resume").exists()


def test_a_folder_in_the_home_is_found_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    data = striped_file(tmp_path, per_class=2)
    run = wazuka.fit(str(data), steps=1, out="~/run", **QUICK)
    assert run.folder == tmp_path / "home" / "run"
    assert (run.folder / "report.html").exists()
    assert not (tmp_path / "~").exists()


def test_the_gallery_shows_unlabeled_pictures_alone(tmp_path):
    import pyarrow.parquet as pq

    data = striped_file(tmp_path, train=60, test=10, per_class=2)
    run = wazuka.fit(str(data), steps=2, out=tmp_path / "run", **QUICK)
    rows = pq.read_table(run.folder / "gallery.parquet").to_pylist()
    shown = [row for row in rows if row["group"] in ("surest", "unsure")]
    names = [row["name"] for row in shown]
    assert len(names) == len(set(names)) == 48
    assert not {f"image-{i:02d}" for i in range(4)} & set(names)
    assert all(row["label"] is None for row in shown)
    sure = [row["probability"] for row in rows if row["group"] == "surest"]
    unsure = [row["probability"] for row in rows if row["group"] == "unsure"]
    assert sure == sorted(sure, reverse=True)
    assert unsure == sorted(unsure)
    assert min(sure) >= max(unsure)
