"""NumPy arrays (or anything that turns into one) and .npy / .npz files -> Dataset."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from wazuka.data.decode import Shape, resize
from wazuka.data.imageset import UNLABELED, Dataset, ImageSet, luma
from wazuka.data.table import label_name, natural
from wazuka.errors import UserError

_IMAGE_KEYS = ("images", "image", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "targets", "target", "arr_1")


def open_arrays(images: Any, labels: Any, shape: Shape, name: str = "arrays") -> Dataset:
    """Images in memory, with labels or without.

    images    (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3, or 4 (alpha, laid over white); bool, uint8, uint16
              (divided by 257), other integers in 0...255, or floats in [0, 1]
    labels    (N,) integers (negative: unlabeled) or names (None or "": unlabeled); None: all unlabeled
    """
    pixels = _packed(np.asarray(images), shape)
    numbers, classes = _labels(labels, len(pixels))
    names = tuple(f"image-{i:0{len(str(max(len(pixels) - 1, 0)))}d}" for i in range(len(pixels)))
    digest = blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return Dataset(name, name, ImageSet(pixels, numbers, classes, names, fingerprint=digest.hexdigest()))


def open_array_file(path: Path, labels: Any, shape: Shape) -> Dataset:
    """A .npy file of images, or a .npz file of images and labels: images/labels, x/y, or x_train, y_train, x_test..."""
    try:
        content = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a readable NumPy file of plain numbers: {reason}") from None
    if isinstance(content, np.ndarray):
        return _named(open_arrays(content, labels, shape), path)
    with content:
        arrays = {key.lower(): content[key] for key in content.files}
    train = _pick(arrays, [f"{key}_train" for key in _IMAGE_KEYS] + [f"train_{key}" for key in _IMAGE_KEYS])
    if train is None:
        images = _pick(arrays, _IMAGE_KEYS)
        if images is None:
            raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}, but no array called images (or x)")
        return _named(open_arrays(images, labels if labels is not None else _pick(arrays, _LABEL_KEYS), shape), path)
    test = _pick(arrays, [f"{key}_test" for key in _IMAGE_KEYS] + [f"test_{key}" for key in _IMAGE_KEYS])
    given = [
        _pick(arrays, [f"{key}_{part}" for key in _LABEL_KEYS] + [f"{part}_{key}" for key in _LABEL_KEYS])
        for part in ("train", "test")
    ]
    if test is None:
        return _named(open_arrays(train, given[0], shape), path)
    parts = [np.asarray(train), np.asarray(test)]
    if parts[0].shape[1:] != parts[1].shape[1:] or parts[0].dtype != parts[1].dtype:
        raise UserError(f"the train and test images in {path} differ in size or type: bring them to one size")
    known = [
        np.full(len(part), UNLABELED) if some is None else np.asarray(some).reshape(-1)
        for part, some in zip(parts, given, strict=True)
    ]
    if any(len(part) != len(some) for part, some in zip(parts, known, strict=True)):
        raise UserError(f"in {path} there are not as many labels as images")
    both = open_arrays(np.concatenate(parts), np.concatenate(known), shape)
    is_test = np.arange(len(both.train)) >= len(parts[0])
    return _named(Dataset("", "", both.train.subset(~is_test), both.train.subset(is_test)), path)


def _named(data: Dataset, path: Path) -> Dataset:
    return Dataset(path.stem, str(path), data.train, data.test)


def _pick(arrays: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((arrays[key] for key in keys if key in arrays), None)


def _packed(images: np.ndarray, shape: Shape) -> np.ndarray:
    """Any accepted array -> (N, C, H, W) uint8 of the wanted shape."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4:
        first, last = images.shape[1] in (1, 3, 4), images.shape[3] in (1, 3, 4)
        if first and last and min(images.shape[2:]) > 0:
            raise UserError(
                f"images of shape {images.shape} may have their channels first or last: "
                "pass them as (N, H, W) if they are gray, else as (N, C, H, W) with H and W above 4"
            )
        if not first and not last:
            raise UserError(f"images of shape {images.shape} have neither 1, 3 nor 4 channels, first or last")
        images = images if first else images.transpose(0, 3, 1, 2)
    else:
        raise UserError(f"images must have the shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {images.shape}")
    if 0 in images.shape:
        raise UserError(f"there is no pixel in images of shape {images.shape}")
    pixels = _eight_bits(images)
    if pixels.shape[1] == 4:
        alpha = pixels[:, 3:].astype(np.uint32)
        over_white = pixels[:, :3] * alpha + 255 * (255 - alpha)
        pixels = ((over_white + 127) // 255).astype(np.uint8)
    if shape.size is not None and pixels.shape[2:] != shape.size:
        pixels = np.stack([resize(image, shape) for image in pixels])
    pixels = np.ascontiguousarray(pixels)
    if shape.channels is None or shape.channels == pixels.shape[1]:
        return pixels
    return luma(pixels) if shape.channels == 1 else np.repeat(pixels, 3, axis=1)


def _eight_bits(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if images.dtype == np.uint16:
        return ((images.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if images.dtype.kind not in "iuf":
        raise UserError(f"images must be numbers, got an array of {images.dtype}")
    low, high = images.min(), images.max()
    if images.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise UserError(
                f"float images must lie in [0, 1], these reach from {low:g} to {high:g}: "
                "divide by the largest value possible, or pass uint8"
            )
        return np.round(images * 255).astype(np.uint8)
    if low < 0 or high > 255:
        raise UserError(f"integer images must lie in 0...255 (or be uint16), these reach from {low} to {high}")
    return images.astype(np.uint8)


def _labels(labels: Any, total: int) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels is None:
        return np.full(total, UNLABELED, dtype=np.int64), ()
    given = np.asarray(labels)
    if given.ndim == 2 and given.shape[1] == 1:  # as Keras stores them
        given = given[:, 0]
    if given.shape != (total,):
        raise UserError(f"there are {total} images but labels of shape {given.shape}: give one label an image")
    if given.dtype.kind == "f" and not (np.isnan(given) | (given == np.round(given))).all():
        raise UserError("labels must be whole numbers or names, got fractions")
    text = [_text(value) for value in given.tolist()]
    classes = tuple(sorted({value for value in text if value}, key=natural))
    position = {value: i for i, value in enumerate(classes)} | {"": UNLABELED}
    return np.array([position[value] for value in text], dtype=np.int64), classes


def _text(value: Any) -> str:
    """A label's name, "" for none."""
    if value is None or value != value:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, (int, float)):
        return str(int(value)) if value >= 0 else ""
    return label_name(str(value)) or ""
