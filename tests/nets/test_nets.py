import pytest
import torch
from torch import nn

from wazuka.nets import Backbone, ConvNet, LeNet, Normalize, WideResNet


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_wide_resnets_have_the_published_sizes() -> None:
    assert count(WideResNet()) == 1_469_642
    assert round(count(WideResNet(classes=100, filters=128)) / 1e6, 1) == 23.4
    assert round(count(WideResNet(scales=4)) / 1e6, 2) == 5.93


def test_only_the_first_shortcut_gets_the_activated_input() -> None:
    firsts = [block.first for block in WideResNet().blocks]
    assert firsts == [True] + [False] * 11
    projected = [block.shortcut is not None for block in WideResNet().blocks]
    assert projected == [True, False, False, False] * 3


def test_lenet_has_the_layers_of_addas_code() -> None:
    assert count(LeNet()) == 20 * 25 + 20 + 50 * 20 * 25 + 50 + 800 * 500 + 500 + 500 * 10 + 10


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (WideResNet(filters=8, repeat=1), (2, 3, 32, 32)),
        (ConvNet(1, 10, (8, 16)), (2, 1, 8, 8)),
        (LeNet(), (2, 1, 28, 28)),
    ],
    ids=["wideresnet", "convnet", "lenet"],
)
def test_every_backbone_keeps_its_promise(net: Backbone, shape: tuple[int, ...]) -> None:
    net.eval()
    images = torch.rand(shape)
    logits = net(images)
    assert logits.shape == (2, 10)
    features = net.features(images)
    assert features.shape == (2, net.feature_size)
    torch.testing.assert_close(net.head(features), logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images).dtype == torch.float32
    observation = net.observe(images, layers=None)
    torch.testing.assert_close(observation.logits, logits)
    torch.testing.assert_close(observation.features, features)
    assert list(observation.activations) == net.recorded_layers()
    assert not any(module._forward_hooks for module in net.modules())


def test_recorded_outputs_survive_in_place_layers() -> None:
    net = ConvNet(1, 3, (4,)).eval()
    images = torch.rand(2, 1, 8, 8)
    recorded = net.observe(images, layers=["layers.1"]).activations["layers.1"]
    expected = net.layers[1](net.layers[0](net.normalize(images)))
    torch.testing.assert_close(recorded, expected)
    assert (recorded < 0).any()


def test_hooks_are_gone_after_an_error() -> None:
    net = ConvNet(1, 3, (4,))
    with pytest.raises(RuntimeError):
        net.observe(torch.rand(2, 3, 8, 8), layers=None)
    assert not any(module._forward_hooks for module in net.modules())


def test_normalize_maps_pixels_and_travels_with_the_network() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(Normalize()(images).flatten(), torch.tensor([-1.0, 0.0, 1.0]))
    assert "normalize.mean" in ConvNet().state_dict()
    with pytest.raises(ValueError, match="std"):
        Normalize((0.5,), (0.0,))
