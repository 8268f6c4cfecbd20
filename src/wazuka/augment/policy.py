"""Policies: from images and a generator to randomly changed images, in one call for the whole batch.

A policy is any callable `(images, generator) -> images`: uint8 (N, C, H, W) on any device, gray or RGB, in; the same
shape, type and device out; the images handed in are left alone. The generator lives on the CPU: the few random
numbers that each image needs are drawn there, so that a seed gives the same picture on every device, and so that the
number of images that get an operation is known without asking the device.

Lengths are shares of the image's side, so that a policy means the same at any size: the papers' 4 pixels of 32 are
0.125, their cutout of 16 is 0.5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from wazuka.augment import color, filters, geometry
from wazuka.augment.operations import IDENTITY, Change, OperationTable
from wazuka.functional.sending import to_device

Policy = Callable[[Tensor, Generator], Tensor]


def draw(generator: Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [low, high), float64, on the CPU."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low


@dataclass(frozen=True)
class Plain:
    """The images as they are."""

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return images


@dataclass(frozen=True)
class Chain:
    """Policies one after another."""

    policies: tuple[Policy, ...]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        for policy in self.policies:
            images = policy(images, generator)
        return images


@dataclass(frozen=True, kw_only=True)
class Weak:
    """Mirror some images left-right, then move each a little: the standard weak view.

    flip      mirror half of them. Off by default: it changes the meaning of digits, text and orientations
    shift     largest move as a share of the side, in [0, 1); 0.125 is the 4 of 32 pixels (and 12 of 96) of the papers
    subpixel  False: whole pixels, the border reflected (FixMatch, libml/augment.py). True: any distance, bilinear,
              `fill` beyond the border; for images so small that a pixel is a long way
    fill      gray level, 0..255, for subpixel moves
    """

    flip: bool = False
    shift: float = 0.125
    subpixel: bool = False
    fill: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.shift < 1, f"shift is a share of the side, in [0, 1), got {self.shift}")
        _require(0 <= self.fill <= 255, f"fill is a gray level, in 0..255, got {self.fill}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, (height, width) = len(images), images.shape[2:]
        numbers = draw(generator, 3, n)
        flipped = (numbers[0] < 0.5) & self.flip
        sides = torch.tensor([[height], [width]], dtype=torch.float64)
        if self.subpixel:
            down, right = (numbers[1:] * 2 - 1) * self.shift * sides
            maps = _mirrored_maps(geometry.around_center((height, width), right=right, down=down), flipped, width)
            return geometry.affine(images, maps, "bilinear", self.fill)
        reach = (sides * self.shift).round()
        down, right = ((numbers[1:] * (2 * reach + 1)).floor() - reach).to(torch.int64)
        down, right, mirror = to_device(torch.stack([down, right, flipped.to(torch.int64)]), images.device)
        return geometry.reflected_shift(images, down, right, mirror.bool() if self.flip else None)


@dataclass(frozen=True, kw_only=True)
class AffineStrong:
    """Turn, enlarge, slant and move each image, change its contrast, paint a gray square over it.

    A strong view for small digits and letters, where operations on color mean nothing. Lengths are shares of the side.

    rotation     largest turn, degrees
    scale        largest change of size, in [0, 1): factor 1 - scale .. 1 + scale
    shear        largest slant, columns per row
    translation  largest move
    contrast     largest change of contrast: factor 1 - contrast .. 1 + contrast about the image's mean
    cutout       side of the gray square, in [0, 1]; 0: none
    fill         gray level, 0..255, that appears where the map leaves the image
    """

    rotation: float = 30.0
    scale: float = 0.2
    shear: float = 0.3
    translation: float = 0.125
    contrast: float = 0.4
    cutout: float = 0.375
    fill: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.rotation <= 180, f"rotation lies in [0, 180] degrees, got {self.rotation}")
        _require(0 <= self.scale < 1, f"scale lies in [0, 1), got {self.scale}")
        _require(self.shear >= 0, f"shear must not be negative, got {self.shear}")
        _require(0 <= self.translation < 1, f"translation is a share of the side, in [0, 1), got {self.translation}")
        _require(0 <= self.contrast <= 1, f"contrast lies in [0, 1], got {self.contrast}")
        _require(0 <= self.cutout <= 1, f"cutout is a share of the side, in [0, 1], got {self.cutout}")
        _require(0 <= self.fill <= 255, f"fill is a gray level, in 0..255, got {self.fill}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, (height, width) = len(images), images.shape[2:]
        turn, size, slant, right, down, harder, x, y = draw(generator, 8, n)
        maps = geometry.around_center(
            (height, width),
            degrees=(turn * 2 - 1) * self.rotation,
            factor=1 + (size * 2 - 1) * self.scale,
            shear=(slant * 2 - 1) * self.shear,
            right=(right * 2 - 1) * self.translation * width,
            down=(down * 2 - 1) * self.translation * height,
        )
        numbers = torch.stack([*maps.unbind(1), 1 + (harder * 2 - 1) * self.contrast, x, y], dim=1)
        numbers = to_device(numbers, images.device)
        images = geometry.affine(images, numbers[:, :6], "bilinear", self.fill)
        images = color.contrast(images, numbers[:, 6])
        return random_cutout(images, numbers[:, 7:9], self.cutout)


def random_cutout(images: Tensor, center: Tensor, share: float, fill: int = 127) -> Tensor:
    """Paint a square over each image: `share` of the shorter side, clipped at the border.

    center  (N, 2) in [0, 1) on the images' device: where the square's center pixel lies, across and down
    """
    height, width = images.shape[2:]
    size = int(share * min(height, width))
    if size == 0:
        return images
    x, y = (center[:, 0] * width).to(torch.int64), (center[:, 1] * height).to(torch.int64)
    return geometry.cutout(images, geometry.centered_boxes(x, y, torch.full_like(x, size)), fill)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A part of each photo, of random area and shape, resized to the full image, and mirrored half of the time.

    area    least and largest share of the image's area, in (0, 1]; ImageNet training takes (0.08, 1)
    aspect  least and largest ratio of width to height; its logarithm is drawn uniformly
    flip    mirror half of them left-right
    method  Pillow's name of the filter, in small letters
    """

    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    method: str = "bilinear"
    tries: int = 10  # until a box fits, as in torchvision; then the largest centered box of an allowed shape

    def __post_init__(self) -> None:
        _require(0 < self.area[0] <= self.area[1] <= 1, f"area must rise within (0, 1], got {self.area}")
        _require(0 < self.aspect[0] <= self.aspect[1], f"aspect must rise and be positive, got {self.aspect}")
        _require(self.method in geometry.FILTERS, f"method must be one of {geometry.FILTERS}, got {self.method!r}")
        _require(self.tries >= 1, f"tries must be at least 1, got {self.tries}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, (height, width) = len(images), images.shape[2:]
        pixels = draw(generator, n, self.tries, low=self.area[0], high=self.area[1]) * (height * width)
        ratio = draw(generator, n, self.tries, low=math.log(self.aspect[0]), high=math.log(self.aspect[1])).exp()
        across, down, mirror = draw(generator, 3, n)
        wide, high = (pixels * ratio).sqrt().round(), (pixels / ratio).sqrt().round()
        fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        shape = min(max(width / height, self.aspect[0]), self.aspect[1])
        fallback_wide = torch.tensor(min(width, round(height * shape)), dtype=torch.float64)
        fallback_high = torch.tensor(min(height, round(width / shape)), dtype=torch.float64)
        found = fits.any(dim=1)
        wide = torch.where(found, wide.gather(1, first)[:, 0], fallback_wide)
        high = torch.where(found, high.gather(1, first)[:, 0], fallback_high)
        left = torch.where(found, (across * (width - wide + 1)).floor(), ((width - wide) / 2).floor())
        top = torch.where(found, (down * (height - high + 1)).floor(), ((height - high) / 2).floor())
        boxes = to_device(torch.stack([left, top, left + wide, top + high, mirror], dim=1), images.device)
        cropped = geometry.resized_crop(images, boxes[:, :4], self.method)
        return geometry.flip(cropped, boxes[:, 4] < 0.5) if self.flip else cropped


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Change brightness, contrast, color and hue in random order; lose color; blur: SimCLR's changes of photos.

    Chen et al. 2020, arXiv:2002.05709, App. A, at strength 0.5 (the CIFAR setting, which has no blur).

    brightness, contrast, saturation  largest change: factor max(0, 1 - b) .. 1 + b
    hue           largest turn, as a share of the circle, in [0, 0.5]
    probability   of the four above
    gray          probability of losing all color
    blur          probability of a Gaussian blur with sigma 0.1 .. 2 pixels
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8
    gray: float = 0.2
    blur: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.brightness, self.contrast, self.saturation)
        _require(least >= 0, f"brightness, contrast and saturation must not be negative, got {least}")
        _require(0 <= self.hue <= 0.5, f"hue lies in [0, 0.5], got {self.hue}")
        for name in ("probability", "gray", "blur"):
            _require(0 <= getattr(self, name) <= 1, f"{name} is a probability, got {getattr(self, name)}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        order = draw(generator, n, 4).argsort(dim=1)
        chance, gray, blur = draw(generator, 3, n)
        reach = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue], dtype=torch.float64)
        level = draw(generator, n, 4, low=-1) * reach
        level[:, :3] = (1 + level[:, :3]).clamp(min=0)
        choices = torch.where(chance < self.probability, order.mT, 4)
        images = _JITTER.apply(images, choices, level.gather(1, order).mT[:, None])
        images = _GRAY.apply(images, (gray < self.gray).to(torch.int64)[None], level.mT[None])
        if self.blur == 0:
            return images
        sigma = draw(generator, 1, 1, n, low=0.1, high=2.0)
        return _BLUR.apply(images, (blur < self.blur).to(torch.int64)[None], sigma)


_JITTER = OperationTable(
    {
        "brightness": Change(color.brightness),
        "contrast": Change(color.contrast),
        "color": Change(color.color),
        "hue": Change(color.hue),
        "none": IDENTITY,
    }
)
_GRAY = OperationTable({"none": IDENTITY, "gray": Change(lambda images, *columns: color.gray(images))})
_BLUR = OperationTable({"none": IDENTITY, "blur": Change(filters.gaussian_blur)})


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gaussian noise of standard deviation `std`, in gray levels of 255; drawn on the CPU, number by number."""

    std: float = 10.0

    def __post_init__(self) -> None:
        _require(self.std >= 0, f"std must not be negative, got {self.std}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        noise = to_device(torch.randn(images.shape, generator=generator), images.device)
        return filters.add_noise(images, torch.full((len(images),), self.std, device=images.device), noise)


def _mirrored_maps(maps: Tensor, mirrored: Tensor, width: int) -> Tensor:
    """Maps (N, 6) that mirror the input left-right first, for the chosen (N,) images: x becomes width - x."""
    sign = torch.where(mirrored, -1.0, 1.0).to(maps.dtype)
    maps = maps.clone()
    maps[:, :3] *= sign[:, None]
    maps[:, 2] += width * mirrored
    return maps


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
