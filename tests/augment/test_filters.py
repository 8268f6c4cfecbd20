import numpy as np
import pytest
import torch
from PIL import ImageEnhance, ImageFilter
from scipy import ndimage

from wazuka.augment import filters


@pytest.mark.parametrize("size", [(32, 27), (5, 5), (3, 4), (2, 9)])
def test_filters_are_pillows_border_included(size, difference):
    some = [0.0] * 6
    assert difference(lambda x, p: filters.smooth(x), lambda i, p: i.filter(ImageFilter.SMOOTH), some, size).max() == 0
    assert difference(lambda x, p: filters.blur(x), lambda i, p: i.filter(ImageFilter.BLUR), some, size).max() == 0


def test_sharpness_is_pillows(difference):
    factors = [0.0, 0.1, 0.28, 0.6, 1.0, 1.3, 1.72, 2.0]
    assert difference(filters.sharpness, lambda i, p: ImageEnhance.Sharpness(i).enhance(p), factors).max() == 0


def test_gaussian_blur_is_scipys():
    images = torch.randint(0, 256, (5, 2, 20, 13), dtype=torch.uint8)
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0])
    blurred = filters.gaussian_blur(images, sigma).numpy().astype(float)
    for n, width in enumerate(sigma.tolist()):
        for channel in range(2):
            exact = ndimage.gaussian_filter(images[n, channel].numpy().astype(float), width, mode="nearest", truncate=9)
            assert np.abs(blurred[n, channel] - exact).max() <= 0.51
    assert torch.equal(filters.gaussian_blur(images, torch.zeros(5)), images)


def test_noise_has_the_asked_spread_in_each_image_and_is_cut_off():
    images = torch.full((3, 1, 60, 60), 128, dtype=torch.uint8)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = filters.add_noise(images, torch.tensor([0.0, 5.0, 20.0]), noise).float()
    assert torch.equal(noisy[0], images[0].float())
    torch.testing.assert_close(noisy.flatten(1).std(dim=1), torch.tensor([0.0, 5.0, 20.0]), atol=0.5, rtol=0.02)
    assert filters.add_noise(images, torch.full((3,), 1e6), noise).unique().tolist() in ([0, 255], [0, 128, 255])
