"""Changing gray levels: enhancers, histogram operations, hue.

Every function is pure: uint8 images (N, C, H, W), gray (C = 1) or RGB (C = 3), and one parameter per image, on the
images' device, in; uint8 images out. All but `hue` give Pillow's pixels exactly.
"""

import torch
from torch import Tensor


def blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """first + factor * (second - first), cut off at 0 and 255, truncated: Pillow's `Image.blend`.

    first, second  uint8, shapes that broadcast to (N, C, H, W)
    factor         (N,) float: 0 gives the first, 1 the second; beyond 1 goes on in that direction
    """
    start = first.to(torch.float32)
    step = (second.to(torch.float32) - start).mul_(_per_image(factor))
    return as_bytes(step.add_(start))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend black with the image. factor: (N,) float, 1 changes nothing."""
    return as_bytes(images.to(torch.float32).mul_(_per_image(factor)))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend the image's mean gray with the image. factor: (N,) float, 1 changes nothing."""
    return blend(mean_gray(images), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend the gray image with the colored one (saturation). factor: (N,) float, 1 changes nothing; gray stays."""
    return images if images.shape[1] == 1 else blend(luma(images), images, factor)


def luma(images: Tensor) -> Tensor:
    """(N, 1, H, W) uint8: ITU-R 601 gray, rounded as Pillow's `convert("L")`."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.to(torch.float32)[:, :, None].unbind(dim=1)  # all sums stay below 2^24: exact in float32
    return as_bytes((red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).mul_(2**-16))


def black(images: Tensor) -> Tensor:
    """(1, 1, 1, 1) uint8: what `brightness` blends with."""
    return torch.zeros((1, 1, 1, 1), dtype=torch.uint8, device=images.device)


def mean_gray(images: Tensor) -> Tensor:
    """(N, 1, 1, 1) uint8: the mean of `luma`, rounded, halves up."""
    pixels = images.shape[2] * images.shape[3]
    total = luma(images).sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    return torch.div(2 * total + pixels, 2 * pixels, rounding_mode="floor").to(torch.uint8)


def gray(images: Tensor) -> Tensor:
    """The image without its color, with as many channels as before."""
    return luma(images).expand_as(images)


def invert(images: Tensor) -> Tensor:
    """255 - x."""
    return 255 - images


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert all gray levels not below the threshold. threshold: (N,) float in [0, 256]; 256 changes nothing."""
    threshold = threshold.ceil().view(-1, 1, 1, 1)
    bright = torch.maximum(images, threshold.clamp(max=255).to(torch.uint8)) == images
    flip = (threshold < 256).to(torch.uint8) * 255  # 255 - x is x with all bits flipped
    return images ^ (bright.to(torch.uint8) * flip)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` bits of every gray level. bits: (N,) in 0..8; 8 changes nothing, 0 is black."""
    dropped = 8 - bits.to(torch.int32).view(-1, 1, 1, 1)
    return images & (255 >> dropped << dropped).to(torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel so that its darkest level becomes 0 and its brightest 255; a flat channel stays."""
    pixels = images.flatten(2)
    low, high = pixels.amin(dim=2, keepdim=True), pixels.amax(dim=2, keepdim=True)  # aminmax is four times slower
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    low, span = low.to(torch.float64), (high - low).to(torch.float64)
    slope = torch.full_like(span, 255) / span.clamp(min=1)  # `255 / span` would round twice, by way of 1 / span
    stretched = (levels * slope - low * slope).clamp_(0, 255)  # Pillow's order of operations, in its double precision
    return _look_up(torch.where(span > 0, stretched, levels).to(torch.uint8), images)


def equalize(images: Tensor) -> Tensor:
    """Make the histogram of every channel as flat as a table of levels can (Pillow's rounding)."""
    pixels = images.flatten(2)
    count = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int32, device=images.device)
    count.scatter_add_(2, pixels.to(torch.int64), torch.ones_like(pixels, dtype=torch.int32))
    # Pillow shares all pixels but those of the brightest level present among 255 steps
    brightest = count.gather(2, pixels.amax(dim=2, keepdim=True).to(torch.int64))
    step = torch.div(pixels.shape[2] - brightest, 255, rounding_mode="floor")
    below = count.cumsum(dim=2, dtype=torch.int32) - count
    share = torch.div(below + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    levels = torch.arange(256, dtype=torch.int32, device=images.device)
    return _look_up(torch.where(step > 0, share.clamp(max=255), levels).to(torch.uint8), images)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn all hues. turn: (N,) float, share of the circle, in [-0.5, 0.5]; gray stays gray.

    Exact HSV arithmetic in float, where Pillow rounds hue and saturation to 8 bits: a few gray levels apart.
    """
    if images.shape[1] == 1:
        return images
    rgb = images.to(torch.float32)
    value, low = rgb.amax(dim=1, keepdim=True), rgb.amin(dim=1, keepdim=True)
    chroma = value - low
    red, green, blue = rgb[:, :, None].unbind(dim=1)
    safe = chroma.clamp(min=1)
    sextant = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sextant = torch.where(value == red, (green - blue) / safe, sextant) + 6 * _per_image(turn)
    place = torch.cat([sextant + 5, sextant + 3, sextant + 1], dim=1).remainder(6)
    lost = torch.minimum(place, 4 - place).clamp(0, 1)
    return as_bytes((value - chroma * lost).round_())


def as_bytes(levels: Tensor) -> Tensor:
    """Float gray levels, which are overwritten, to uint8: cut off at 0 and 255, truncated."""
    return levels.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # by way of int16: three times faster on a CPU


def _look_up(tables: Tensor, images: Tensor) -> Tensor:
    """tables (N, C, 256) uint8: the new level of every old one."""
    return tables.gather(2, images.flatten(2).to(torch.int64)).view(images.shape)


def _per_image(parameter: Tensor) -> Tensor:
    return parameter.to(torch.float32).view(-1, 1, 1, 1)
