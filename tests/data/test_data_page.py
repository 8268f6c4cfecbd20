"""The examples of docs/data.md run, one after the other, in a folder with the files they speak of."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from .pictures import save
from .test_parquet import write

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the docs are not installed with the package")
def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["crack/001", "crack/002", "crack/003", "fine/004", "fine/005", "fine/006"]
    for i, name in enumerate([*names, "unlabeled/007", "unlabeled/008", "009"]):
        save(tmp_path / "photos" / f"{name}.jpg", i, (100 + i, 120), 3)
    for i in (1, 2, 3):
        save(tmp_path / "pets" / f"IMG_000{i}.jpg", i)
    text = PAGE.read_text(encoding="utf-8")
    (tmp_path / "labels.csv").write_text(next(re.finditer(r"```\n(file,label\n.+?)```", text, re.DOTALL))[1])
    more = {"lot": (["x", "y", "z"], {"_type": "Value"})}
    write(tmp_path / "pets.parquet", range(3), [0, 1, 0], names=["cat", "dog"], label="species", more=more)
    namespace: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"```python\n(.+?)```", text, re.DOTALL):
            if "data.skipped" in block:
                path = tmp_path / "photos" / "crack" / "003.jpg"
                path.write_bytes(path.read_bytes()[:1500])
            exec(block, namespace)
    lines = printed.getvalue().splitlines()
    # What the page says is printed, is.
    for shown in re.findall(r"print\(.*\) +# (.+)", text)[:3]:
        assert shown in lines
    assert namespace["few"].n_labeled == 40
    assert namespace["again"].labels.tolist() == namespace["few"].labels.tolist()
    assert len(namespace["validation"]) == 200
