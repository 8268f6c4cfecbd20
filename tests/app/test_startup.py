"""What is not imported costs no time: checked by what is there afterwards, for a clock would lie on a busy machine."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    *("torch", "numpy", "sklearn", "scipy", "pyarrow", "matplotlib", "PIL", "safetensors", "lightning_fabric"),
    *("jinja2", "datasets", "wazuka.app.job", "wazuka.data"),
)


def imported_after(code: str) -> tuple[set[str], str]:
    """The heavy packages a fresh Python holds after `code`, and what the code printed."""
    ask = f"{code}\nimport sys\nprint('LOADED', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    printed, _, loaded = done.stdout.rpartition("LOADED")
    return set(loaded.split()), printed


def test_the_package_alone_imports_nothing_heavy():
    assert imported_after("import wazuka\nassert wazuka.__version__ and 'fit' in dir(wazuka)") == (set(), "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--help"], "wazuka fit photos"),
        (["--version"], "0."),
        (["fit", "--help"], "--labels-per-class"),
        (["predict", "--help"], "file,label,probability"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_imports_nothing_heavy(words, told):
    loaded, printed = imported_after(f"from wazuka.app.cli import main\nmain({words!r})")
    assert told in printed
    assert loaded == set()


def test_a_mistyped_command_is_told_before_anything_heavy_is_imported():
    code = """
from wazuka.app.cli import main
try:
    main(["fti", "photos"])
except SystemExit as end:
    assert end.code == 2
"""
    assert imported_after(code) == (set(), "")


def test_the_command_is_installed():
    command = Path(sys.executable).parent / "wazuka"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
