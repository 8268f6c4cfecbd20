"""Every recipe and benchmark can still be imported: what it takes from the package is there."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [path for folder in ("recipes", "benchmarks") for path in sorted((ROOT / folder).glob("[a-z]*.py"))]


@pytest.mark.skipif(not SCRIPTS, reason="recipes are not part of an installed package")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_imported(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"script_{path.parent.name}_{path.stem}", path)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except ModuleNotFoundError as error:
        if error.name in ("pytorch_ood", "onnxruntime", "lightly", "semilearn"):
            pytest.skip(f"{error.name} is not installed")
        raise
