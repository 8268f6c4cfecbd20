import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Each test has an empty cache, and sees public data only if it asks for it."""
    monkeypatch.setenv("WAZUKA_CACHE", str(tmp_path_factory.mktemp("cache")))


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


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of three images, two unlabeled ones and a loose one."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("crack/a", "crack/b", "crack/c", "fine/a", "fine/b", "fine/c", "unlabeled/u", "loose")):
        save(folder / f"{name}.png", seed=i)
    save(folder / "unlabeled" / "deep" / "v.png", seed=8)
    return folder
