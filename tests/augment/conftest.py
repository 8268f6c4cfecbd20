"""Pillow beside every batched operation."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

_Ours = Callable[[Tensor, Tensor], Tensor]
_Pillow = Callable[[Image.Image, float], Image.Image]


def as_pillow(image: Tensor) -> Image.Image:
    """(C, H, W) uint8 -> a gray or RGB picture."""
    pixels = image.movedim(0, 2).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def as_tensor(picture: Image.Image) -> Tensor:
    """A gray or RGB picture -> (C, H, W) uint8."""
    return torch.from_numpy(np.atleast_3d(np.asarray(picture)).copy()).movedim(2, 0)


def pictures(count: int, channels: int, height: int = 32, width: int = 27) -> Tensor:
    """(count, C, H, W) uint8: noise, of which some is dim, some flat, some of few levels, as photos may be."""
    generator = torch.Generator().manual_seed(count * channels + height)
    images = torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    images[0::5] = images[0::5] // 4 + 60
    images[1::5] = images[1::5] // 64 * 64
    images[2::10] = 77
    return images


@pytest.fixture(params=[1, 3], ids=["gray", "RGB"])
def difference(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Absolute differences in gray levels between an operation and Pillow's, over images and parameters."""

    def compare(ours: _Ours, pillow: _Pillow, parameters: Sequence[float], size: tuple[int, int] = (32, 27)) -> Tensor:
        images = pictures(len(parameters), request.param, *size)
        before = images.clone()
        result = ours(images, torch.tensor(parameters, dtype=torch.float64))
        assert torch.equal(images, before), "the images handed in were changed"
        assert (result.dtype, result.shape) == (torch.uint8, images.shape)
        expected = [as_tensor(pillow(as_pillow(x), value)) for x, value in zip(images, parameters, strict=True)]
        return (result.int() - torch.stack(expected).int()).abs()

    return compare
