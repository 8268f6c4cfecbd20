"""The view of surfaces: faults stand out, and neither brightness of the whole nor their place decides how far."""

import pytest
import torch

from wazuka.nets import EfficientNetLite0
from wazuka.nets.texture import WINDOWS, Texture, surface


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_it_tells():
    maps = noise(3, 4, 20, 30) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None] + 5
    told = surface(maps)
    assert told.shape == (3, 2 * 4 + len(WINDOWS))
    torch.testing.assert_close(told[:, :4], maps.mean(dim=(2, 3)))
    torch.testing.assert_close(told[:, 4:8], maps.var(dim=(2, 3), correction=0).log(), atol=0.02, rtol=0)


def test_a_window_as_the_closed_form_has_it():
    """One channel: the distance is the window's mean, less the photo's, squared, over the variance."""
    maps = noise(1, 1, 12, 12, seed=1)
    for number, side in enumerate(WINDOWS):
        means = torch.nn.functional.avg_pool2d(maps, side, stride=1)
        far = ((means - maps.mean()) ** 2).max() / (maps.var(correction=0) * 1.001)
        assert float(surface(maps)[0, 2 + number]) == pytest.approx(float(far.log()), abs=1e-4)


def test_a_fault_stands_out_wherever_it_is():
    clean = noise(8, 6, 40, 40, seed=2)
    faulty = clean.clone()
    for image in range(8):
        faulty[image, :, 3 * image : 3 * image + 5, 4 * image : 4 * image + 5] += 2
    assert (surface(faulty)[:, -2] > surface(clean)[:, -2].max()).all()


def test_channels_may_be_mixed_scaled_and_moved():
    maps, mixing = noise(2, 5, 24, 24, seed=3), noise(5, 5, seed=4) + 3 * torch.eye(5)
    moved = torch.einsum("dc,nchw->ndhw", mixing, maps) + 7
    torch.testing.assert_close(surface(moved)[:, -3:], surface(maps)[:, -3:], atol=0.05, rtol=0)
    torch.testing.assert_close(surface(10 * maps)[:, -3:], surface(maps)[:, -3:], atol=1e-3, rtol=0)


def test_a_plain_image_gives_finite_numbers():
    assert surface(torch.zeros(1, 4, 12, 12)).isfinite().all()
    assert surface(torch.full((1, 4, 12, 12), 3.0)).isfinite().all()


def test_the_network_s_early_layers_are_shared():
    net = EfficientNetLite0().eval()
    view = Texture(net).eval()
    with torch.no_grad():
        told = view(torch.rand(2, 3, 64, 64))
    assert told.shape == (2, Texture.feature_size)
    assert view.stem is net.stem
