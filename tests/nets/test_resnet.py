import pytest
import torch
from torch import nn

from wazuka.nets import ResNet
from wazuka.nets.resnet import BasicBlock


def test_resnets_have_the_published_sizes() -> None:
    sizes = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}  # millions, He et al. 2016, Table 6
    for layers, millions in sizes.items():
        net = ResNet(blocks=(layers - 2) // 6)
        count = sum(p.numel() for p in net.parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.006 if layers < 110 else 0.04)
        weighted = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(weighted) == layers
    assert sum(p.numel() for p in ResNet().parameters()) == 464_154


def test_resnet_32_multiplies_as_often_as_its_page_says() -> None:
    found = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal found
        found += output.numel() * module.weight[0].numel()  # type: ignore[operator, index]

    net = ResNet()
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    net(torch.zeros(1, 3, 32, 32))
    assert round(found / 1e6) == 69


def test_a_shortcut_takes_every_other_pixel_and_adds_channels_of_zeros() -> None:
    block = BasicBlock(3, 5, stride=2, momentum=0.1)
    nn.init.zeros_(block.norm2.weight)  # the inner branch says nothing
    x = torch.rand(2, 3, 7, 7)
    out = block(x)
    torch.testing.assert_close(out[:, :3], x[:, :, ::2, ::2])
    assert out.shape == (2, 5, 4, 4)
    assert out[:, 3:].eq(0).all()
    straight = BasicBlock(3, 3, stride=1, momentum=0.1)
    nn.init.zeros_(straight.norm2.weight)
    torch.testing.assert_close(straight(x), x)
    assert straight(x - 1).min() == 0, "the sum goes through a ReLU"


def test_strides_stand_at_the_start_of_the_later_stages() -> None:
    assert [block.stride for block in ResNet().blocks] == [1] * 5 + [2, 1, 1, 1, 1] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 28, 28), (2, 4, 9, 13)], ids=str)
def test_it_is_a_backbone_for_any_channels_and_sides(shape: tuple[int, ...]) -> None:
    net = ResNet(shape[1], 7, blocks=1, widths=(4, 8, 8)).eval()
    images = torch.rand(shape)
    logits, features = net(images), net.features(images)
    assert (logits.shape, features.shape) == ((2, 7), (2, net.feature_size))
    torch.testing.assert_close(net.head(features), logits)
    turned = net.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
        images.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(turned, logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images).dtype == torch.float32
    assert list(net.observe(images, layers=None).activations) == net.recorded_layers()


@pytest.mark.parametrize("bad", [{"widths": (16, 8)}, {"blocks": 0}])
def test_what_cannot_be_built_is_told(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ResNet(**bad)
