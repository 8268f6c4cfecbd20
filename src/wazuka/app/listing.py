"""`wazuka methods`: read from the methods' files, so that nothing here needs to know them."""

import dataclasses
import inspect
import re
from typing import Any

from wazuka.app.catalog import Entry, entries
from wazuka.app.console import table
from wazuka.errors import UserError


def print_methods() -> None:
    """A table of all methods, by setting."""
    rows = [
        [item.name, item.setting, "wazuka fit" if item.fits else "Python", _say(item)] for item in entries().values()
    ]
    table("Methods", ["name", "setting", "from", "what it does"], rows, numbers=False)
    print("\n`wazuka methods NAME` shows one method's source and settings.")


def print_method(name: str) -> None:
    """One method: its paper and its settings with defaults and where they come from."""
    if name not in entries():
        raise UserError(f"There is no method {name!r}; there are {', '.join(entries())}.")
    item = entries()[name]
    module = inspect.getmodule(item.kind)
    print(inspect.cleandoc(module.__doc__ or "") if module else "")
    if item.settings is None:
        print("\nIt has no settings.")
        return
    notes = _comments(item.settings)
    rows = [
        [path, _show(value), notes.get(path.split(".")[0], "") if "." not in path else ""]
        for path, value in _flat(item.settings())
    ]
    print()
    table(f"Settings of {name}", ["name", "default", "meaning, source"], rows, numbers=False)
    if item.fits:
        print(f"\nChange them with: wazuka fit PHOTOS --method {name} --set NAME=VALUE")


def _say(item: Entry) -> str:
    return item.summary.partition(":")[2].strip().rstrip(".") or item.summary.rstrip(".")


def _flat(settings: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        name = prefix + field.name
        found += _flat(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]
    return found


def _show(value: Any) -> str:
    return value.__name__ if callable(value) else str(value)


def _comments(settings: type) -> dict[str, str]:
    """The comment at the end of each field's line."""
    source = inspect.getsource(settings)
    return {match[1]: match[2].strip() for match in re.finditer(r"^ {4}(\w+):[^\n#]*#([^\n]*)", source, re.MULTILINE)}
