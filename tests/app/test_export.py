"""A run as an ONNX file: ONNX Runtime says what PyTorch says, and what can't be exported is told in one sentence."""

import importlib.util
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import wazuka
from tests.app.stripes import striped_file, stripes
from wazuka.app import backbones, export
from wazuka.app.backbones import Extractor, Pretrained
from wazuka.app.catalog import entry, make_settings
from wazuka.app.cli import main
from wazuka.app.export import CPU, LONGEST, Graph, as_pytorch, blocks, compare, graph_of, resizing
from wazuka.app.model import Model
from wazuka.app.transfer import FrozenClassifier, build_head
from wazuka.errors import UserError
from wazuka.nets import EfficientNetLite0
from wazuka.nets.texture import surface

missing = [name for name in export.PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f'pip install "wazuka[export]": {" and ".join(missing)} missing')


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = striped_file(folder, per_class=3)
    return wazuka.fit(str(data), steps=20, settings={"unlabeled_ratio": 2}, floor=False, out=folder / "run")


class First(nn.Module):
    """The first layers of EfficientNet-Lite0: its padding, its activations and its normalization."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        net = EfficientNetLite0(classes=2)
        self.normalize, self.stem, self.blocks = net.normalize, net.stem, net.blocks[:3]

    def forward(self, images):
        return self.blocks(F.relu6(self.stem(self.normalize(images)))).mean(dim=(2, 3))


class Colors(nn.Module):
    def forward(self, images):
        return torch.cat([images.mean(dim=(2, 3)), images.amax(dim=(2, 3)), images.std(dim=(2, 3))], dim=1)


def first(size=32):
    return Pretrained("efficientnet-lite0", First().eval(), 32, 24)


class Surfaces(nn.Module):
    """As Texture, of fewer channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, images):
        return surface(self.conv(images).relu())


def photos(count, shape, seed=0):
    """(count, *shape) uint8 of three kinds, and labels: stripes of three widths over noise."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = draw.integers(0, 60, (count, *shape))
    for image, label in zip(images, labels, strict=True):
        image += np.where(np.arange(shape[1]) // (2 + 3 * label) % 2, 120 + 20 * label, 0)[:, None]
    return images.astype(np.uint8), labels


def frozen(method, views, shape, folder):
    """A model whose head has learned on 60 images, 12 of them labeled."""
    images, labels = photos(60, shape)
    extractors = tuple(Extractor(view, CPU, "float32") for view in views)
    features = torch.cat([extractor.features(torch.from_numpy(images)) for extractor in extractors], dim=1)
    item, extra = entry(method), sum(view.feature_size for view in views[1:])
    head = build_head(item, 3, make_settings(item, {}), extra)
    head.fit(features, torch.from_numpy(np.where(np.arange(60) < 12, labels, -1)))
    classifier = FrozenClassifier(extractors, head).eval()
    return Model(classifier, ("a", "b", "c"), shape[1:], shape[0], "squash", {}, CPU, folder)


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def told(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(trained):
    main(["export", str(trained.folder), "--images", "40"])
    return trained.folder / "model.onnx"


@needs_onnx
def test_a_run_that_was_trained_answers_the_same_from_its_file(trained, exported):
    opened = session(exported)
    (given,), (answered,) = opened.get_inputs(), opened.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", 1, 8, 8])
    assert (answered.name, answered.type, answered.shape) == ("probabilities", "tensor(float)", ["N", 2])
    facts = opened.get_modelmeta().custom_metadata_map
    assert json.loads(facts.pop("classes")) == list(trained.classes) == ["0", "1"]
    assert json.loads(facts.pop("size")) == [8, 8]
    assert facts == {"channels": "1", "fit": "crop", "run": "run", "wazuka": wazuka.__version__}
    content = exported.read_bytes()
    assert b"/export.py" not in content  # no path of this machine
    assert b"site-packages" not in content
    assert [path.name for path in exported.parent.glob(".model.onnx*")] == []
    for count in (1, 3, 3 * LONGEST):
        images = stripes(count, seed=2)[0][:, None]
        probs = opened.run(None, {"images": images})[0]
        np.testing.assert_allclose(probs, trained.predict_proba(images), atol=1e-5)


@needs_onnx
def test_a_run_on_features_is_exported_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(backbones.BUILT_IN, "efficientnet-lite0", first)
    monkeypatch.setenv("WAZUKA_CACHE", str(tmp_path / "cache"))
    images, labels = photos(60, (3, 40, 40))
    np.savez(tmp_path / "photos.npz", x_train=images, y_train=np.where(np.arange(60) < 18, labels, -1))
    model = wazuka.fit(tmp_path / "photos.npz", floor=False, precision="float32", out=tmp_path / "run")
    assert abs(model.method.trust.temperature - 1) > 0.01  # else nothing tells whether the file is calibrated
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "x.onnx"), "--images", "50"])
    said = capsys.readouterr().out
    assert re.search(r"Of 50 images ONNX Runtime names 50 as PyTorch does in float32; .* differ by \de-0[5-9] at", said)
    assert re.search(r"Exported: .*x\.onnx \(\d\.\d MiB\)", said)
    new = photos(9, (3, 40, 40), seed=3)[0]
    probs = session(tmp_path / "x.onnx").run(None, {"images": new})[0]
    np.testing.assert_allclose(probs, model.predict_proba(new), atol=1e-4)


@needs_onnx
def test_gray_images_of_another_size_pass_both_views(tmp_path):
    views = (Pretrained("colors", Colors(), 20, 9), Pretrained("surfaces", Surfaces().eval(), 48, 15))
    model = frozen("consensus", views, (1, 40, 52), tmp_path)
    export._write(model, tmp_path / "x.onnx")
    images = photos(12, (1, 40, 52), seed=4)[0]
    probs = session(tmp_path / "x.onnx").run(None, {"images": images})[0]
    np.testing.assert_allclose(probs, model.predict_proba(images), atol=1e-4)
    assert probs.max() - probs.min() > 0.2


class Several(Graph):
    """Graphs side by side: one export costs less than four."""

    def __init__(self, graphs):
        super().__init__()
        self.graphs = nn.ModuleList(graphs)

    def answers(self, images):
        return torch.cat([graph.answers(images) for graph in self.graphs], dim=1)


@needs_onnx
def test_other_heads_are_exported_too(tmp_path, monkeypatch):
    names, colors = ("linear_probe", "prototypes", "simpleshot", "pt_map"), Pretrained("colors", Colors(), 20, 9)
    models = [frozen(name, (colors,), (3, 20, 20), tmp_path) for name in names]
    graphs = [graph_of(model) for model in models]
    monkeypatch.setattr(export, "graph_of", lambda model: Several(graphs))
    export._write(models[0], tmp_path / "x.onnx")
    images = photos(2 * LONGEST, (3, 20, 20), seed=4)[0]
    probs = session(tmp_path / "x.onnx").run(None, {"images": images})[0]
    expected = np.concatenate([model.predict_proba(images) for model in models], axis=1)
    np.testing.assert_allclose(probs, expected, atol=1e-5)


class Counted(Graph):
    """As FlowGMM asks for the number of images."""

    def answers(self, images):
        return torch.zeros(len(images), 2) + images.mean(dim=(1, 2, 3))[:, None]


class Chosen(Graph):
    """What it does depends on what it sees."""

    def answers(self, images):
        return torch.zeros(len(images), 2) if images.mean() > 0.5 else images.flatten(1)[:, :2]


@needs_onnx
def test_code_that_asks_for_the_number_of_images_is_no_obstacle(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "graph_of", lambda model: Counted())
    export._write(trained, tmp_path / "x.onnx")
    images = np.full((3 * LONGEST, 1, 8, 8), 51, np.uint8)
    np.testing.assert_allclose(session(tmp_path / "x.onnx").run(None, {"images": images})[0], 0.2, atol=1e-6)


@needs_onnx
def test_what_has_no_onnx_form_is_told_and_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "graph_of", lambda model: Chosen())
    said = told(["export", trained.folder, "--out", tmp_path / "x.onnx"], capsys)
    assert re.fullmatch(
        r"wazuka: fixmatch can't be written in ONNX's operators \(.*\); fit with another --method, such as consensus "
        r"or fixmatch\.\n",
        said,
    )
    assert list(tmp_path.iterdir()) == []


class Shifted(nn.Module):
    def __init__(self, method, shift):
        super().__init__()
        self.method, self.shift = method, shift

    def predict(self, images):
        return self.method.predict(images) + self.shift


@needs_onnx
@pytest.mark.parametrize("shift", [0.0011, float("nan")])
def test_a_file_that_answers_otherwise_replaces_nothing(shift, trained, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "_write", lambda model, path: shutil.copy(exported, path))
    monkeypatch.setattr(export, "as_pytorch", lambda method: Shifted(as_pytorch(method), shift))
    (tmp_path / "x.onnx").write_text("before")
    said = told(["export", trained.folder, "--out", tmp_path / "x.onnx", "--images", "20"], capsys)
    assert re.search(rf"answers otherwise than PyTorch \(probabilities differ by {shift:.2g}\), so that no file", said)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.onnx", "before")]


def test_without_the_extra_one_sentence_says_how_to_get_it(trained, tmp_path, monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("onnxr") else there(name, *rest)
    )
    monkeypatch.setattr(export, "PACKAGES", ("numpy", "onnxruntime"))
    said = told(["export", trained.folder, "--out", tmp_path / "x.onnx"], capsys)
    assert said == 'wazuka: export needs onnxruntime: pip install "wazuka[export]"\n'


@needs_onnx
def test_what_can_not_be_is_told_before_the_work(trained, tmp_path, capsys):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    for out in ("run.json", "folder.onnx"):
        said = told(["export", trained.folder, "--out", tmp_path / out], capsys)
        assert "can't be the exported file: give --out a name that ends in .onnx." in said
    assert "one image at least, got 0" in told(["export", trained.folder, "--images", 0], capsys)
    said = told(["export", trained.folder, "--out", tmp_path / "file" / "x.onnx", "--images", 1], capsys)
    assert "can't be written" in said
    assert "give another --out" in said
    assert "There is no run at" in told(["export", tmp_path / "nowhere"], capsys)


@needs_onnx
def test_an_unfinished_or_damaged_run_is_told(trained, tmp_path, capsys):
    facts = json.loads((trained.folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert "is not finished; go on with" in told(["export", tmp_path], capsys)
    weights = (trained.folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "is damaged or from another version" in told(["export", tmp_path], capsys)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "gallery.parquet").write_bytes(b"no table")
    assert "gallery.parquet can't be read" in told(["export", tmp_path], capsys)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(("length", "size"), [(224, 448), (40, 32), (33, 70), (8, 8)])
def test_resizing_by_matrices_is_what_an_extractor_does(length, size):
    torch.manual_seed(0)
    images, rows, columns = torch.rand(2, 3, length, 50), resizing(length, size), resizing(50, size)
    expected = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    torch.testing.assert_close(rows @ images @ columns.T, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(size))
    assert rows.min() < 0 or length == size  # bicubic, and not a filter that can't overshoot


def test_the_rewritten_factor_and_system_are_lapacks():
    torch.manual_seed(0)
    spread = torch.randn(4, 24, 24, dtype=torch.float64) * torch.logspace(0, -2, 24, dtype=torch.float64)[:, None]
    matrix = spread @ spread.mT + 1e-5 * torch.eye(24, dtype=torch.float64)
    right = torch.randn(4, 24, 30, dtype=torch.float64)
    factor = torch.linalg.cholesky(matrix)
    torch.testing.assert_close(export.cholesky(matrix), factor)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    torch.testing.assert_close(export.solve_triangular(factor, right, upper=False), solved)
    assert export.cholesky(matrix, upper=True) is NotImplemented
    for other in ({"upper": True}, {"upper": False, "left": False}, {"upper": False, "unitriangular": True}):
        assert export.solve_triangular(factor, right, **other) is NotImplemented


def test_images_to_compare_on_begin_with_one_alone_and_those_that_are_known():
    known = list(photos(20, (3, 9, 7))[0])
    made = list(blocks(known, (3, 9, 7), 50))
    assert [len(block) for block in made] == [1, 16, 16, 16, 1]
    images = np.concatenate(made)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:20], known)
    np.testing.assert_array_equal(images, np.concatenate(list(blocks(known, (3, 9, 7), 50))))
    assert len(np.unique(images, axis=0)) == 50
    alone = np.concatenate(list(blocks([], (1, 9, 7), 30)))
    assert alone.shape == (30, 1, 9, 7)
    assert alone.min() < 10
    assert alone.max() > 245
    assert len(np.concatenate(list(blocks(known, (3, 9, 7), 4)))) == 4


def test_pictures_of_another_size_are_not_compared_on(trained, tmp_path, monkeypatch):
    here, there = np.zeros((1, 8, 8), np.uint8), np.zeros((1, 9, 8), np.uint8)
    groups = {"surest": [SimpleNamespace(image=there)], "unsure": [SimpleNamespace(image=here)]}
    monkeypatch.setattr(export, "PACKAGES", ())
    monkeypatch.setattr(export, "load_gallery", lambda path: groups)
    monkeypatch.setattr(export, "_write", lambda model, path: None)
    monkeypatch.setattr(export, "_session", lambda path: None)
    monkeypatch.setattr(export, "blocks", lambda known, shape, count: (known, shape, count))
    asked = []
    monkeypatch.setattr(
        export, "compare", lambda session, method, images, *rest: asked.append(images) or export.Agreement(1, 1, 0.0)
    )
    export.export(trained.folder, tmp_path / "x.onnx", 7)
    assert asked == [([here], (1, 8, 8), 7)]


def test_agreement_counts_names_and_keeps_the_largest_difference():
    method = SimpleNamespace(predict=lambda images: torch.tensor([[0.6, 0.4], [0.3, 0.7]]))
    answers = iter([[[0.4, 0.6], [0.3, 0.7]], [[0.61, 0.39], [0.3, 0.7]]])
    fake = SimpleNamespace(run=lambda names, given: [np.array(next(answers), np.float32)])
    images = np.zeros((2, 1, 2, 2), np.uint8)
    found = compare(fake, method, iter([images, images]), 4, lambda done, total: None)
    assert (found.images, found.same) == (4, 3)
    assert found.difference == pytest.approx(0.2, abs=1e-6)


def test_a_mistaken_argument_is_no_path(trained):
    with pytest.raises(UserError, match="ends in .onnx" if not missing else "export needs"):
        export.export(trained.folder, trained.folder / "model.safetensors")
    assert wazuka.load(trained.folder).classes == trained.classes
