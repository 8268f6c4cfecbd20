"""Moving pixels: flips, reflected shifts, affine maps, crops that are resized, boxes painted over.

Every function is pure: uint8 images (N, C, H, W) and one set of parameters per image, on the images' device, in; uint8
images of the same shape out. An affine map is six numbers (a, b, c, d, e, f) that send the *output* pixel (x, y) to
the input at (a x + b y + c, d x + e y + f), pixel centers at halves, which is Pillow's `Image.transform`. Nearest
sampling repeats Pillow's fixed-point arithmetic, so the pixels are the same.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.functional.sending import to_device

Size = tuple[int, int]  # height, width
Resample = Literal["nearest", "bilinear"]
FILTERS = ("lanczos", "bicubic", "bilinear", "box", "hamming", "nearest")  # in CTAugment's order


def flip(images: Tensor, horizontal: Tensor, vertical: Tensor | None = None) -> Tensor:
    """Mirror some images. horizontal, vertical: (N,) bool, left-right and top-bottom."""
    height, width = images.shape[2:]
    columns = _mirrored(torch.arange(width, device=images.device)[None], horizontal, width)
    rows = torch.arange(height, device=images.device)[None]
    rows = rows.expand(len(images), -1) if vertical is None else _mirrored(rows, vertical, height)
    return _gather(images, rows, columns)


def reflected_shift(images: Tensor, down: Tensor, right: Tensor, flipped: Tensor | None = None) -> Tensor:
    """Pad by reflection (the border itself is not repeated), then crop elsewhere; flipping first costs nothing more.

    down, right  (N,) int64 pixels, of either sign: how far the picture moves
    flipped      (N,) bool: mirror left-right before moving; None: never
    """
    height, width = images.shape[2:]
    rows = _reflected(torch.arange(height, device=images.device) - down[:, None], height)
    columns = _reflected(torch.arange(width, device=images.device) - right[:, None], width)
    if flipped is not None:
        columns = _mirrored(columns, flipped, width)
    return _gather(images, rows, columns)


def affine(images: Tensor, maps: Tensor, resample: Resample = "nearest", fill: int = 0) -> Tensor:
    """Send every output pixel through its image's map and take the input there.

    maps      (N, 6) float, output to input (see the top of the file), on the images' device or the CPU
    resample  "nearest" equals Pillow's exactly; "bilinear" to within one gray level
    fill      gray level, in 0..255, where the map leaves the image
    """
    maps = maps.to(torch.float64)
    return _affine_nearest(images, maps, fill) if resample == "nearest" else _affine_bilinear(images, maps, fill)


def translate(images: Tensor, x: Tensor, y: Tensor, resample: Resample = "nearest", fill: int = 0) -> Tensor:
    """Look `x` pixels to the right and `y` down: the picture moves left and up, as in Pillow. (N,) float each."""
    return affine(images, translation(x, y), resample, fill)


def shear(images: Tensor, x: Tensor, y: Tensor, resample: Resample = "nearest", fill: int = 0) -> Tensor:
    """Slide row r by x * r pixels, column c by y * c; the top left corner stays. (N,) float each."""
    return affine(images, slant(x, y), resample, fill)


def rotate(images: Tensor, degrees: Tensor, resample: Resample = "nearest", fill: int = 0) -> Tensor:
    """Turn about the image's center, counter-clockwise. degrees: (N,) float."""
    return affine(images, around_center(size_of(images), degrees=degrees), resample, fill)


def scale(images: Tensor, factor: Tensor, resample: Resample = "nearest", fill: int = 0) -> Tensor:
    """Enlarge about the image's center. factor: (N,) float, above 0; 2 shows everything twice as large."""
    return affine(images, around_center(size_of(images), factor=factor), resample, fill)


def size_of(images: Tensor) -> Size:
    """(height, width)."""
    return images.shape[2], images.shape[3]


def translation(x: Tensor, y: Tensor) -> Tensor:
    """(N, 6) maps of `translate`."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack([one, zero, x, zero, one, y], dim=1)


def slant(x: Tensor, y: Tensor) -> Tensor:
    """(N, 6) maps of `shear`."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack([one, x, zero, y, one, zero], dim=1)


def around_center(
    size: Size,
    *,
    degrees: Tensor | None = None,
    factor: Tensor | None = None,
    shear: Tensor | None = None,
    right: Tensor | None = None,
    down: Tensor | None = None,
) -> Tensor:
    """(N, 6) maps that enlarge by `factor`, slant by `shear` (columns per row), turn counter-clockwise by `degrees`,
    all about the center, and then move the picture by (right, down) pixels. Each (N,) float, or None for no change.
    """
    given = next(value for value in (degrees, factor, shear, right, down) if value is not None)
    # the inverse of "enlarge, slant, turn": turn back, slant back, shrink (y points down)
    if degrees is None:
        cosine, sine = torch.ones_like(given), torch.zeros_like(given)
    else:
        angle = torch.deg2rad(degrees)
        cosine, sine = angle.cos(), angle.sin()
    a, b, d, e = cosine, -sine, sine, cosine
    if shear is not None:
        a, b = a - shear * d, b - shear * e
    if factor is not None:
        a, b, d, e = a / factor, b / factor, d / factor, e / factor
    y, x = size[0] / 2, size[1] / 2
    x_before = x if right is None else x + right
    y_before = y if down is None else y + down
    return torch.stack([a, b, x - a * x_before - b * y_before, d, e, y - d * x_before - e * y_before], dim=1)


def resized_crop(images: Tensor, boxes: Tensor, method: str | Tensor = "bilinear") -> Tensor:
    """Cut out a box and resize it to the full image, as Pillow's `image.crop(box).resize(size, method)` does.

    boxes    (N, 4) whole pixels: left, top, right, bottom; right and bottom are the first that are left out
    method   one of FILTERS, or (N,) int64 positions in FILTERS; shrinking is antialiased
    returns  within one gray level of Pillow's, whose filters are fixed-point
    """
    left, top, right, bottom = boxes.to(torch.float64).unbind(dim=1)
    rows = _resize_weights(top, bottom, images.shape[2], method)
    columns = _resize_weights(left, right, images.shape[3], method)
    # Pillow rounds after either direction, halves up
    across = torch.matmul(images.to(torch.float32), columns.mT[:, None]).add_(0.5).floor_().clamp_(0, 255)
    return torch.matmul(rows[:, None], across).add_(0.5).clamp_(0, 255).to(torch.int16).to(torch.uint8)


def rescale(images: Tensor, margin: Tensor, method: Tensor, pixels: bool = False) -> Tensor:
    """Crop a margin off every side and resize back (CTAugment's `rescale`).

    margin   (N,) share of the side, in [0, 0.5); with `pixels`, in pixels
    method   (N,) int64 positions in FILTERS
    """
    height, width = images.shape[2:]
    x, y = (margin, margin) if pixels else (margin * width, margin * height)
    boxes = torch.stack([x, y, width - x, height - y], dim=1).round()  # half to even, as Python rounds in Pillow's crop
    return resized_crop(images, boxes, method)


def cutout(images: Tensor, boxes: Tensor, fill: int = 127) -> Tensor:
    """Paint a box over. boxes: (N, 4) int left, top, right, bottom (right and bottom left out); may leave the image."""
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    covered_rows = ((rows >= top) & (rows < bottom))[:, None, :, None]
    covered_columns = ((columns >= left) & (columns < right))[:, None, None, :]
    covered = (covered_rows & covered_columns).to(torch.uint8)
    return images * (1 - covered) + covered * fill  # much faster than a masked fill


def centered_boxes(x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """(N, 4) int64 squares of `size` pixels around the pixel (x, y), for `cutout`. (N,) int64 each."""
    left, top = x - size // 2, y - size // 2
    return torch.stack([left, top, left + size, top + size], dim=1)


def _mirrored(index: Tensor, chosen: Tensor, size: int) -> Tensor:
    return torch.where(chosen[:, None], size - 1 - index, index)


def _reflected(index: Tensor, size: int) -> Tensor:
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index) if size > 1 else index * 0


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixel (rows[n, y], columns[n, x]) of image n. rows (N, H), columns (N, W), int64."""
    rows, columns = (rows * images.shape[3]).to(torch.int32), columns.to(torch.int32)
    return _take(images, rows[:, :, None] + columns[:, None, :])


def _take(pixels: Tensor, index: Tensor) -> Tensor:
    """Pixels by their place in a flattened image, the same for all channels.

    pixels   (N, C, h, w)
    index    (N, H, W) int32 in 0 .. h*w - 1; int32 because half the bytes are twice as fast to make
    returns  (N, C, H, W)
    """
    n, channels = pixels.shape[:2]
    spread = index.flatten(1).to(torch.int64)[:, None].expand(-1, channels, -1)
    return pixels.flatten(2).gather(2, spread).view(n, channels, *index.shape[1:])


def _affine_nearest(images: Tensor, maps: Tensor, fill: int) -> Tensor:
    height, width = images.shape[2:]
    # 16.16 fixed point and the half pixel, exactly as Pillow's affine_fixed (libImaging/Geometry.c)
    maps = maps.clone().view(-1, 2, 3)
    maps[:, :, 2] += maps[:, :, :2].sum(dim=2) * 0.5
    fixed = maps.mul_(65536).add_(0.5).floor_().to(torch.int32)
    fixed[:, :, 2] += 65536  # one pixel on, into a frame of `fill` that answers for everything outside the image
    fixed = to_device(fixed, images.device)
    across, down, start = fixed[..., None, None].unbind(dim=2)                                # (N, 2, 1, 1) each
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    x, y = (((start + down * y) + across * x) >> 16).unbind(dim=1)                            # (N, H, W) each
    index = y.clamp(0, height + 1).mul_(width + 2).add_(x.clamp(0, width + 1))
    return _take(F.pad(images, (1, 1, 1, 1), value=fill), index)


def _affine_bilinear(images: Tensor, maps: Tensor, fill: int) -> Tensor:
    height, width = images.shape[2:]
    # straight to grid_sample's coordinates, in which the image spans -1..1
    side = to_device(torch.tensor([width, height], dtype=maps.dtype), maps.device)
    maps = maps.view(-1, 1, 1, 2, 3) * 2 / side[:, None]
    maps = to_device(maps.to(torch.float32), images.device)
    across, down, start = maps.unbind(dim=4)                                                  # (N, 1, 1, 2) each
    x = torch.arange(width, dtype=torch.float32, device=images.device)[:, None] + 0.5
    y = torch.arange(height, dtype=torch.float32, device=images.device)[:, None, None] + 0.5
    grid = (start - 1 + down * y) + across * x                                                # (N, H, W, 2)
    sampled = F.grid_sample(images.to(torch.float32), grid, "bilinear", "border", align_corners=False)
    # truncated as Pillow does, but 1e-3 spares whole numbers that arithmetic left a little below
    sampled = sampled.add_(1e-3).to(torch.int16).to(torch.uint8)
    beyond = ((grid < -1) | (grid >= 1)).any(dim=3)[:, None].to(torch.uint8)
    return sampled.mul_(1 - beyond).add_(beyond * fill)


def _resize_weights(start: Tensor, stop: Tensor, size: int, method: str | Tensor) -> Tensor:
    """(N, size, size) share of each input pixel in each output pixel, along one axis; start, stop (N,) whole pixels."""
    ratio = ((stop - start) / size)[:, None]
    output = torch.arange(size, device=start.device)
    center = start[:, None] + (output + 0.5) * ratio                                       # (N, size)
    away = output + 0.5 - center[:, :, None]                                               # input minus output center
    in_box = (output >= start[:, None, None]) & (output < stop[:, None, None])
    if isinstance(method, str):
        weights = _filter_weights(method, away, ratio[:, :, None])
    else:
        weights = torch.zeros_like(away)
        for place, name in enumerate(FILTERS):
            chosen = (method == place)[:, None, None]
            weights = torch.where(chosen, _filter_weights(name, away, ratio[:, :, None]), weights)
    weights = weights * in_box
    return (weights / weights.sum(dim=2, keepdim=True)).to(torch.float32)


def _filter_weights(name: str, away: Tensor, ratio: Tensor) -> Tensor:
    if name == "nearest":
        return ((away > -0.5) & (away <= 0.5)).to(away.dtype)
    stretched = away / ratio.clamp(min=1)  # a shrinking filter widens: antialiasing
    return _KERNELS[name](stretched)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


def _hamming(x: Tensor) -> Tensor:
    return torch.sinc(x) * (0.54 + 0.46 * torch.cos(torch.pi * x)) * (x.abs() < 1)


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()  # Keys' kernel with a = -0.5
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far * (x < 2))


def _lanczos(x: Tensor) -> Tensor:
    return torch.sinc(x) * torch.sinc(x / 3) * (x.abs() < 3)


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "lanczos": _lanczos,
    "bicubic": _bicubic,
    "bilinear": _triangle,
    "box": _box,
    "hamming": _hamming,
}
