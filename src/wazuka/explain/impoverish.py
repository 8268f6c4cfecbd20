"""Photos with the object taken out, or taken apart: what a classifier should not be able to name.

Whatever fills a hole is made from the kept pixels of the same photo alone, so that nothing of the hidden part leaks.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wazuka.evaluation.arrays import Floats

Images = NDArray[np.uint8]
Kind = Literal["border", "surroundings", "patches"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GRID = 4        # patches a side
FRAME = 8       # the border is 1 / FRAME of each side
SHADES = 4      # levels of each channel in the color histogram
MOMENTS = 0.1   # weight of the channels' mean and deviation beside the histogram


def impoverish(images: Images, kind: Kind, seed: int) -> Images:
    """The same photos, poorer. Each photo's result depends on it, its row and the seed alone.

    images   (N, C, H, W)  uint8; not changed
    kind     "border"        the outer eighth on each side stays, the rest gets the mean color of what stays
             "surroundings"  the middle half of both sides gets the mean color of what stays
             "patches"       the patches of a 4 x 4 grid change places at random; what the grid can't divide stays
    returns  (N, C, H, W)  uint8
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (N, C, H, W), got {images.dtype} of shape {images.shape}")
    if kind == "patches":
        return _shuffled(images, np.random.default_rng(seed))
    height, width = images.shape[2:]
    part = 1 / FRAME if kind == "border" else 1 / 4
    top, left = max(1, round(height * part)), max(1, round(width * part))
    result = images.copy()
    middle = result[:, :, top : max(top, height - top), left : max(left, width - left)]
    hidden = middle.shape[2] * middle.shape[3]
    kept = images.sum(axis=(2, 3), dtype=np.int64) - middle.sum(axis=(2, 3), dtype=np.int64)
    middle[...] = (kept / (height * width - hidden)).round().astype(np.uint8)[:, :, None, None]
    return result


def _shuffled(images: Images, generator: np.random.Generator) -> Images:
    count, channels, height, width = images.shape
    h, w = height // GRID, width // GRID
    whole = images[:, :, : GRID * h, : GRID * w].reshape(count, channels, GRID, h, GRID, w)
    patches = whole.transpose(0, 2, 4, 1, 3, 5).reshape(count, GRID * GRID, channels, h, w)
    order = generator.permuted(np.tile(np.arange(GRID * GRID), (count, 1)), axis=1)
    moved = np.take_along_axis(patches, order[:, :, None, None, None], axis=1)
    moved = moved.reshape(count, GRID, GRID, channels, h, w).transpose(0, 3, 1, 4, 2, 5)
    result = images.copy()
    result[:, :, : GRID * h, : GRID * w] = moved.reshape(count, channels, GRID * h, GRID * w)
    return result


def color_features(images: Images) -> Floats:
    """What is left when every pixel has lost its place: which colors there are, and how many of each.

    images   (N, C, H, W)  uint8
    returns  (N, 4**C + 2 C)  roots of the joint histogram's shares, so that their distance is Hellinger's; then the
             channels' means and deviations over this set's spread, for shifts too small to change a bin
    """
    count, channels = images.shape[:2]
    pixels = images.reshape(count, channels, -1)
    bins = SHADES**channels
    shares = np.empty((count, bins))
    for one, share in zip(pixels, shares, strict=True):
        code = np.zeros(one.shape[1], dtype=np.intp)
        for channel in one:
            code = code * SHADES + channel // (256 // SHADES)
        share[:] = np.bincount(code, minlength=bins) / len(code)
    moments = np.concatenate([pixels.mean(axis=2), pixels.std(axis=2)], axis=1)
    spread = moments.std(axis=0)
    moments = (moments - moments.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.concatenate([np.sqrt(shares), MOMENTS * moments], axis=1)
