"""Imports point one way, as docs/design.md draws it; a lower room never knows a higher one."""

import ast
from pathlib import Path

import pytest

import wazuka

ROOT = Path(wazuka.__file__).parent
LEAVES = {"errors", "atomic"}  # modules that import nothing of ours
ALLOWED = {
    "contract": set(),
    "functional": set(),
    "parts": {"functional", "contract"},
    "nets": {"functional", "contract"},
    "augment": {"functional"},
    "data": {"augment", "contract", "functional"},
    "methods": {"parts", "nets", "functional", "augment", "contract"},
    "training": {"contract", "functional", "parts"},
    "evaluation": {"functional", "contract"},
    "explain": {"functional", "contract", "nets", "augment", "evaluation"},
    "app": {"contract", "functional", "parts", "nets", "augment", "data", "methods", "training", "evaluation",
            "explain"},
}  # fmt: skip
OUTSIDE = {"contract": {"torch"}, "functional": {"torch"}, "parts": {"torch"}, "nets": {"torch"}, "methods": {"torch"}}
STANDARD = {"collections", "dataclasses", "types", "typing", "math", "copy", "contextlib", "functools", "itertools"}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem == "contract")


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    for name in imported(path):
        first, *rest = name.split(".")
        if first == "wazuka":
            target = rest[0] if rest else ""
            if here == "app" or target == here or target in LEAVES:
                continue
            assert target in ALLOWED[here], f"{here} must not import {name}"
        elif here in OUTSIDE:
            assert first in OUTSIDE[here] | STANDARD, f"{here} must not import {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "methods").rglob("*.py")), ids=lambda path: path.stem)
def test_methods_never_import_each_other(path: Path) -> None:
    others = [name for name in imported(path) if name.startswith("wazuka.methods")]
    assert not others


def test_the_check_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from wazuka.data.streams import Batches\n")
    assert imported(wrong) == ["wazuka.data.streams.Batches"]
    assert "data" not in ALLOWED["methods"]
