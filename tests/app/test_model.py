import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import wazuka
from tests.app.stripes import NAMES, few, striped_file, stripes
from wazuka.app.model import load
from wazuka.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    data = striped_file(folder, per_class=3)
    return wazuka.fit(str(data), steps=30, settings={"unlabeled_ratio": 2}, precision="float32", out=folder / "run")


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def damaged(run, tmp_path, **changes):
    """A copy of the run with other facts."""
    folder = tmp_path / "copy"
    folder.mkdir()
    facts = json.loads((run.folder / "run.json").read_text()) | changes
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "model.safetensors").write_bytes((run.folder / "model.safetensors").read_bytes())
    return folder


def test_a_loaded_model_answers_as_the_trained_one_did(run):
    model = load(run.folder)
    images, labels = stripes(20, seed=1)
    probs = model.predict_proba(images[:, None])
    rows = [row for row in pq.read_table(run.folder / "predictions.parquet").to_pylist() if row["role"] == "test"]
    np.testing.assert_allclose(probs, [row["probabilities"] for row in rows], atol=1e-6)
    assert (probs.argmax(1) == labels).mean() == model.metrics["test_accuracy"] > 0.6
    assert (model.classes, model.size, model.channels) == (("0", "1"), (8, 8), 1)
    assert not model.method.training


def test_every_picture_is_named_in_order_with_the_runner_up(run):
    images, _ = stripes(7, seed=2)
    answers, skipped = run.predict(images)
    probs = run.predict_proba(images[:, None])
    assert skipped == ()
    assert [one.file for one in answers] == [f"image-{i}" for i in range(7)]
    assert [one.label for one in answers] == [str(i) for i in probs.argmax(1)]
    assert [one.runner_up for one in answers] == [str(i) for i in probs.argmin(1)]
    for one in answers:
        assert one.probability >= one.runner_up_probability
        assert one.probability + one.runner_up_probability == pytest.approx(1, abs=1e-5)


def test_pictures_are_brought_to_the_models_form(run, tmp_path):
    images, _ = stripes(2, seed=3)
    for number, image in enumerate(images):
        Image.fromarray(image).convert("RGB").save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    answers, skipped = run.predict(tmp_path, cache=False)
    assert [one.file for one in answers] == ["0.png", "1.png"]
    np.testing.assert_allclose(
        [one.probability for one in answers], run.predict_proba(images[:, None]).max(1), atol=1e-6
    )
    assert [name for name, _ in skipped] == ["broken.png"]
    Image.fromarray(np.kron(images[0], np.ones((5, 5), np.uint8))).save(tmp_path / "large.png")
    assert run.open(tmp_path / "large.png", cache=False).size == (8, 8)


def test_no_picture_of_a_folder_with_a_test_part_is_left_out(run, tmp_path):
    images, labels = stripes(6)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / ("test" if number > 3 else "train") / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "test" / "across" / "x.png").write_bytes(b"")
    answers, skipped = run.predict(tmp_path, cache=False)
    assert len(answers) == len({one.file for one in answers}) == 6
    assert len(skipped) == 1
    by_number = {one.file.rpartition("/")[2]: one.probability for one in answers}
    expected = run.predict_proba(images[:, None]).max(1)
    np.testing.assert_allclose([by_number[f"{i}.png"] for i in range(6)], expected, atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 1, 8, 8)), np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 1, 9, 8), np.uint8)],
    ids=["float", "color", "size"],
)
def test_arrays_of_another_form_are_refused(run, images):
    with pytest.raises(UserError, match=r"takes uint8 images of shape \(1, 8, 8\), got"):
        run.predict_proba(images)


def test_a_folder_without_a_model_is_told_how_to_get_one(run, tmp_path):
    with pytest.raises(UserError, match="There is no run at"):
        load(tmp_path / "nowhere")
    folder = damaged(run, tmp_path, resume="wazuka fit x --out y --resume")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is not finished; go on with `wazuka fit x --out y --resume`"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "no_such_method"},
        {"classes": None},
        {"plan": {}},
        {"plan": {"net": {"widths": [-1]}}},
        {"plan": {"net": {"widths": ["wide"]}}},
        {"channels": "gray"},
        {"choices": {"settings": {"no_such": 1}}},
        {"choices": {"settings": []}},
        {"choices": {"settings": {"averaging": 5}}},
    ],
    ids=str,
)
def test_damaged_facts_are_told_in_a_sentence(run, tmp_path, changes):
    with pytest.raises(UserError) as raised:
        load(damaged(run, tmp_path, **changes))
    assert str(raised.value).count("\n") == 0


def test_damaged_weights_are_told_and_pickles_never_opened(run, tmp_path):
    folder = damaged(run, tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    opened = tmp_path / "opened"
    shapes = load_file(folder / "model.safetensors")
    name = next(name for name, value in shapes.items() if value.ndim == 4)
    save_file(shapes | {name: shapes[name][:1]}, tmp_path / "other")
    for content in (weights[:-10], weights[:3], b"", pickle.dumps(Hostile(opened)), (tmp_path / "other").read_bytes()):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="is damaged or from another version"):
            load(folder)
    assert not opened.exists()


def test_settings_that_shape_the_network_are_remembered(tmp_path):
    data = striped_file(tmp_path, train=20, test=4)
    settings = {"labeled_batch": "4", "unlabeled_batch": "4", "hidden": "7"}
    run = wazuka.fit(str(data), steps=1, method="ds3l", settings=settings, out=tmp_path / "run")
    images = stripes(5)[0][:, None]
    np.testing.assert_allclose(load(run.folder).predict_proba(images), run.predict_proba(images), atol=1e-6)


def test_the_names_of_classes_survive(tmp_path):
    images, labels = stripes(12)
    hidden = np.where(few(labels) >= 0, NAMES[labels], "")
    np.savez(tmp_path / "named.npz", images=images, labels=hidden)
    run = wazuka.fit(str(tmp_path / "named.npz"), steps=1, folds=0, out=tmp_path / "run")
    assert load(run.folder).classes == ("across", "down")
    assert {one.label for one in load(run.folder).predict(images)[0]} <= {"across", "down"}
