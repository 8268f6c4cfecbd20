import pytest
import torch
from torch import nn

from wazuka.nets import Conv4


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("channels", "side", "features", "parameters"),
    [(1, 28, 64, 111_936), (3, 84, 1_600, 113_088)],
    ids=["omniglot", "miniimagenet"],
)
def test_it_has_the_size_of_the_authors_network(channels: int, side: int, features: int, parameters: int) -> None:
    net = Conv4(channels).eval()
    assert count(net) == parameters
    assert net(torch.rand(2, channels, side, side)).shape == (2, features)


def test_width_reaches_every_block() -> None:
    # MAML's 32 channels on miniImageNet
    net = Conv4(3, width=32)
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [32] * 4
    assert net.eval()(torch.rand(1, 3, 84, 84)).shape == (1, 800)


def test_each_block_is_conv_norm_relu_pool() -> None:
    net = Conv4(width=4).eval()
    images = torch.rand(3, 1, 28, 28)
    expected = images
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, -1, 1)  # also negative: pooling before the norm would differ
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
    for conv, norm in zip(convs, norms, strict=True):
        x = nn.functional.conv2d(expected, conv.weight, conv.bias, padding=1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        x = (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        expected = nn.functional.max_pool2d(x.relu(), 2)
    torch.testing.assert_close(net(images), expected.flatten(1))


def test_pixels_enter_as_they_are() -> None:
    # no normalization layer, as in the authors' code: a black image gives the first convolution's bias
    net = Conv4(width=4).eval()
    black = net.layers[0](torch.zeros(1, 1, 28, 28))
    torch.testing.assert_close(black, net.layers[0].bias[None, :, None, None].expand(1, 4, 28, 28))
    assert isinstance(net.layers[0], nn.Conv2d)


def test_the_embedding_is_float32_whatever_the_layers_compute_in() -> None:
    net, images = Conv4().eval(), torch.rand(2, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images).dtype == torch.float32
    torch.testing.assert_close(net(images.contiguous(memory_format=torch.channels_last)), net(images))
