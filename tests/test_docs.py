"""The pages that promise code are run, block by block, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(python|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not DOCS.exists(), reason="the pages are not part of an installed package")
@pytest.mark.parametrize("page", ["tutorial.md", "methods.md", "selfsup.md", "uncertainty.md", "fewshot.md"])
def test_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    found = blocks(page)
    assert len(found) >= 2
    lines = []
    for language, code in found:
        if language == "python":
            lines.append(code)
        else:
            for command in code.strip().splitlines():
                name, *words = shlex.split(command)
                assert name == "wazuka"
                lines.append(f"from wazuka.app.cli import main\nmain({words!r})")
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(lines), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    if page == "tutorial.md":
        header = (tmp_path / "named.csv").read_text().splitlines()[0]
        assert header.startswith("file,label,probability")
        assert (tmp_path / "runs" / "scans" / "report.html").exists()
