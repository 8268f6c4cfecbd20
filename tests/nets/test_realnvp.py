import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.realnvp import Chain, Coupling, ImageRealNVP, Logit, MaskedCoupling, VectorRealNVP, WeightNormConv

FLOWS = {
    "vectors": (lambda: VectorRealNVP(5, couplings=4, hidden=8, dropout=0.0), (5,)),
    "images of one scale": (lambda: ImageRealNVP((2, 3, 5), scales=1, blocks=1, filters=4), (2, 3, 5)),
    "images of two scales": (lambda: ImageRealNVP((1, 4, 6), scales=2, blocks=1, filters=4), (1, 4, 6)),
    "images of three scales": (lambda: ImageRealNVP((2, 4, 8), scales=3, blocks=0, filters=4), (2, 4, 8)),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def decided(net: nn.Module) -> nn.Module:
    """In eval mode and float64, with nothing left at zero or one where a mistake could hide."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in ((module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0)):
                nn.init.uniform_(value, low, high)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, Coupling):
            nn.init.uniform_(module.scale, 0.5, 1.5)
    return net.double().eval()


def ready(name: str, count: int = 3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = FLOWS[name]
    net = decided(make())
    return net, torch.rand(count, *shape, dtype=torch.float64)


def couplings(net: nn.Module) -> list[Coupling]:
    return [module for module in net.modules() if isinstance(module, Coupling)]


@every_flow
def test_log_det_is_that_of_the_jacobian(name: str) -> None:
    net, inputs = ready(name)
    _, log_det = net(inputs)
    assert log_det.shape == (3,)
    for x, found in zip(inputs, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: net(one[None])[0][0], x)
        _, expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel()))
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        assert abs(expected) > 1e-2


@every_flow
def test_the_inverse_undoes_it_both_ways(name: str) -> None:
    net, inputs = ready(name)
    latents, _ = net(inputs)
    assert latents.shape == (3, inputs[0].numel())
    torch.testing.assert_close(net.inverse(latents), inputs, atol=1e-10, rtol=0)
    torch.testing.assert_close(net(net.inverse(latents))[0], latents, atol=1e-10, rtol=0)


def test_the_inverse_holds_in_float32_at_the_size_of_a_digit() -> None:
    net = decided(ImageRealNVP((1, 8, 8), scales=2, blocks=1, filters=8)).float()
    images = torch.rand(8, 1, 8, 8)
    torch.testing.assert_close(net.inverse(net(images)[0]), images, atol=1e-4, rtol=0)


@every_flow
def test_couplings_keep_half_and_the_next_one_changes_it(name: str) -> None:
    net, _ = ready(name)
    for chain in [module for module in net.modules() if isinstance(module, Chain)]:
        kept = [kept_by(coupling) for coupling in chain]
        for mask in kept:
            assert abs(float(mask.float().mean()) - 0.5) < 0.2  # odd sizes have no exact half
        for one, other in itertools.pairwise(kept):
            assert torch.equal(one, ~other), "two in a row keep the same entries"


def kept_by(coupling: Coupling) -> Tensor:
    """Which entries of one input come out as they went in."""
    if isinstance(coupling, MaskedCoupling):
        shape = torch.broadcast_shapes(coupling.mask.shape, coupling.scale.shape)
    else:
        shape = torch.Size((1, 2 * len(coupling.scale), 2, 3))
    probe = torch.rand(shape, dtype=torch.float64) + 0.5
    return (coupling(probe)[0] == probe)[0]


def test_the_first_checkerboard_changes_the_top_left_pixel_and_the_first_vector_coupling_the_last_features() -> None:
    images, vectors = ready("images of two scales")[0], ready("vectors")[0]
    assert images.before[0][0].mask[0, 0, :2, :2].tolist() == [[0, 1], [1, 0]]
    assert vectors.couplings[0].mask.tolist() == [[1, 1, 0, 0, 0]]


def test_without_couplings_it_folds_pixels_and_lets_half_of_the_channels_leave() -> None:
    net, inputs = ready("images of two scales")
    for coupling in couplings(net):
        nn.init.zeros_(coupling.net.leave[-1].length)
        nn.init.zeros_(coupling.net.leave[-1].bias)
    latents, log_det = net(inputs)
    logits = Logit()(inputs)[0]
    top = logits[:, :, 0::2]  # of each 2x2 pixels: channels 0 and 1 go on
    bottom = logits[:, :, 1::2]  # channels 2 and 3 leave
    expected = [half[..., column::2].flatten(1) for half in (bottom, top) for column in (0, 1)]
    torch.testing.assert_close(latents, torch.cat(expected, dim=1))
    torch.testing.assert_close(log_det, Logit()(inputs)[1])


def test_logit_is_symmetric_and_bounded() -> None:
    places = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    latents, log_det = Logit()(places)
    bound = math.log(0.95 / 0.05)
    torch.testing.assert_close(latents, torch.tensor([[-bound, 0.0, bound]], dtype=torch.float64))
    steepness = math.log(0.9 * 4) + 2 * math.log(0.9 / (0.05 * 0.95))
    torch.testing.assert_close(log_det, torch.tensor([steepness], dtype=torch.float64))


def test_it_has_the_size_of_the_authors_network() -> None:
    # theirs has 19,631,640: weight norm keeps a sign beside each of the 51 scales
    net = ImageRealNVP((3, 32, 32), scales=2, blocks=8, filters=64)
    assert sum(parameter.numel() for parameter in net.parameters()) == 19_631_640 - 51
    vectors = VectorRealNVP(2, couplings=5, hidden=512, dropout=0.0)
    assert sum(parameter.numel() for parameter in vectors.parameters()) == 5 * (3 * 512 + 513 * 512 + 513 * 4 + 2)


def test_weight_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours = WeightNormConv(3, 4, 3)
    theirs = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        theirs.weight.copy_(ours.direction.view_as(theirs.weight))
        theirs.bias.copy_(ours.bias)
    theirs = nn.utils.parametrizations.weight_norm(theirs)
    images = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(ours(images), theirs(images))  # lengths begin as torch's
    with torch.no_grad():
        ours.length.mul_(3)
        theirs.parametrizations.weight.original0.mul_(3)
        ours.direction.mul_(7)  # has no size that could matter
    torch.testing.assert_close(ours(images), theirs(images))


def test_weight_decay_reaches_lengths_and_scales_of_an_image_network_alone() -> None:
    net = ImageRealNVP((1, 4, 4), scales=2, blocks=1, filters=4)
    decaying = {name.rsplit(".", 1)[1] for name, parameter in net.named_parameters() if parameter.ndim > 1}
    resting = {name.rsplit(".", 1)[1] for name, parameter in net.named_parameters() if parameter.ndim <= 1}
    assert decaying == {"length", "scale"}
    assert resting == {"direction", "bias", "weight"}  # the weights are batch norm's


def test_a_masked_input_is_doubled_after_its_norm() -> None:
    net, _ = ready("images of two scales")
    first, wide = net.before[0][0].net, net.after[0][0].net
    for coupling_net, gain in ((first, 2.0), (wide, 1.0)):
        x = torch.randn(2, coupling_net.norm.num_features, 3, 3, dtype=torch.float64)
        seen = []
        coupling_net.enter.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        coupling_net(x)
        normalized = gain * coupling_net.norm(x)
        torch.testing.assert_close(seen[0], F.relu(torch.cat([normalized, -normalized], dim=1)))


@every_flow
def test_every_parameter_learns(name: str) -> None:
    net, inputs = ready(name)
    latents, log_det = net(inputs)
    (latents.square().sum() - log_det.sum()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    still = [key for key, parameter in net.named_parameters() if parameter.grad.abs().max() == 0]
    assert not still


def test_dropout_is_for_training_alone() -> None:
    net = VectorRealNVP(4, couplings=2, hidden=32, dropout=0.5)
    vectors = torch.randn(3, 4)
    assert not torch.equal(net(vectors)[0], net(vectors)[0])
    net.eval()
    assert torch.equal(net(vectors)[0], net(vectors)[0])


def test_sizes_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 2"):
        ImageRealNVP((1, 7, 8), scales=2, blocks=1, filters=4)
    with pytest.raises(ValueError, match="divisible by 4"):
        ImageRealNVP((1, 8, 6), scales=3, blocks=1, filters=4)
    with pytest.raises(ValueError, match="two features"):
        VectorRealNVP(1, couplings=2, hidden=4, dropout=0.0)
