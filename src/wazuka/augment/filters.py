"""Looking at neighbors: smoothing, blurring, sharpening; and noise.

Pure functions of uint8 images (N, C, H, W) and one parameter per image, on the images' device. `smooth`, `blur` and
`sharpness` give Pillow's pixels exactly; as there, the border that a kernel can't reach is left as it is.
"""

import torch
from torch import Tensor

from wazuka.augment.color import as_bytes, blend


def smooth(images: Tensor) -> Tensor:
    """Pillow's SMOOTH: a 3x3 mean in which the center counts five times."""
    if min(images.shape[2:]) < 3:
        return images
    x = images.to(torch.float32)  # sums of whole numbers are exact; 13 is odd, so none lies halfway between two levels
    total = _window_sum(x, 3).add_(x[:, :, 1:-1, 1:-1], alpha=4)
    return _with_border_of(images, total.add_(6.5).mul_(1 / 13), 1)


def blur(images: Tensor) -> Tensor:
    """Pillow's BLUR: the mean of the 16 pixels that ring a 5x5 window."""
    if min(images.shape[2:]) < 5:
        return images
    x = images.to(torch.float32)
    ring = _window_sum(x, 5).sub_(_window_sum(x[:, :, 1:-1, 1:-1], 3))
    return _with_border_of(images, ring.add_(8).mul_(1 / 16), 2)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend the smoothed image with the image. factor: (N,) float; 0 smooth, 1 unchanged, above 1 sharper."""
    return blend(smooth(images), images, factor)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, the border repeated. sigma: (N,) pixels; 0 changes nothing. (Pillow's is three box blurs.)"""
    rows = _gaussian_weights(sigma, images.shape[2])
    columns = _gaussian_weights(sigma, images.shape[3])
    blurred = torch.matmul(torch.matmul(rows[:, None], images.to(torch.float32)), columns.mT[:, None])
    return as_bytes(blurred.round_())


def add_noise(images: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """images + std * noise, rounded and cut off. std: (N,) gray levels; noise: like the images, standard normal."""
    scaled = noise * std.to(noise.dtype).view(-1, 1, 1, 1)
    return as_bytes(scaled.add_(images).round_())


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Sum over every size x size window that fits: (N, C, H - size + 1, W - size + 1)."""
    height, width = x.shape[2] - size + 1, x.shape[3] - size + 1
    down = x[:, :, :height] + x[:, :, 1 : 1 + height]
    for row in range(2, size):
        down += x[:, :, row : row + height]
    across = down[..., :width] + down[..., 1 : 1 + width]
    for column in range(2, size):
        across += down[..., column : column + width]
    return across


def _with_border_of(images: Tensor, inner: Tensor, border: int) -> Tensor:
    """inner (float levels in 0..255, truncated) within the outermost `border` pixels of the images."""
    result = images.clone()
    result[:, :, border:-border, border:-border] = inner.to(torch.int16)
    return result


def _gaussian_weights(sigma: Tensor, size: int) -> Tensor:
    """(N, size, size) share of each input in each output along one axis; what lies beyond the border is its pixel."""
    place = torch.arange(size, dtype=torch.float32, device=sigma.device)
    wide = torch.arange(-size, 2 * size, dtype=torch.float32, device=sigma.device)
    spread = sigma.to(torch.float32).clamp(min=1e-3)[:, None, None]
    weights = torch.exp(-0.5 * ((wide - place[:, None]) / spread) ** 2)       # (N, size, 3 size)
    weights = weights / weights.sum(dim=2, keepdim=True)
    inside = weights[:, :, size:-size].clone()
    inside[:, :, 0] += weights[:, :, :size].sum(dim=2)
    inside[:, :, -1] += weights[:, :, -size:].sum(dim=2)
    return inside
