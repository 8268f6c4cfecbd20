"""Pictures made by Pillow, for the tests beside this file."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (12, 12), channels: int = 1) -> Image.Image:
    """A random picture of (height, width)."""
    shape = size if channels == 1 else (*size, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def save(path: Path, seed: int, size: tuple[int, int] = (12, 12), channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size, channels).save(path)
    return path
