from pathlib import Path

import pytest

from .pictures import save


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Each test has an empty cache, and sees public data only if it asks for it."""
    monkeypatch.setenv("WAZUKA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of three images, two unlabeled ones and a loose one."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("crack/a", "crack/b", "crack/c", "fine/a", "fine/b", "fine/c", "unlabeled/u", "loose")):
        save(folder / f"{name}.png", seed=i)
    save(folder / "unlabeled" / "deep" / "v.png", seed=8)
    return folder
