"""Shared by all tests: one thread each, a cache of their own, and nothing learned from the user's machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # the tests run side by side; subprocesses inherit it


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("WAZUKA_CACHE")
    os.environ["WAZUKA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["WAZUKA_CACHE"]
    else:
        os.environ["WAZUKA_CACHE"] = before


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def public_data() -> Path:
    """The folder of public sets; tests that need it skip where there is none."""
    folder = os.environ.get("WAZUKA_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs a folder of public image sets in WAZUKA_DATA")
    return Path(folder)
