"""The methods there are, found by walking `wazuka.methods`: a new method joins by existing."""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

import wazuka.methods
from wazuka.contract import Detector, Head, Method
from wazuka.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One method, head or detector.

    name      its file's name
    setting   its folder's: "semi", "selfsup", ...
    kind      the class
    settings  its Settings dataclass, or None
    summary   the first line of its file
    fits      whether `wazuka fit` can train it: it learns from labeled and unlabeled images (a head: from their
              features), and names classes
    """

    name: str
    setting: str
    kind: type[Method] | type[Head] | type[Detector]
    settings: type | None
    summary: str
    fits: bool


@cache
def entries() -> dict[str, Entry]:
    """Name -> entry, in the order of the folders."""
    found = {}
    for module_info in pkgutil.walk_packages(wazuka.methods.__path__, "wazuka.methods."):
        if module_info.ispkg:
            continue
        module = importlib.import_module(module_info.name)
        own = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
        kinds = [kind for kind in own if issubclass(kind, (Method, Head, Detector))]
        settings = [kind for kind in own if dataclasses.is_dataclass(kind) and kind.__name__.endswith("Settings")]
        setting, name = module_info.name.split(".")[-2:]
        for kind in kinds:
            label = name if len(kinds) == 1 else kind.__name__.lower()
            chosen = next((s for s in settings if s.__name__ == f"{kind.__name__}Settings"), None)
            summary = (module.__doc__ or "").strip().splitlines()[0] if module.__doc__ else ""
            learns = setting in ("supervised", "semi", "transfer") and issubclass(kind, Method)
            fits = learns or issubclass(kind, Head)
            found[label] = Entry(label, setting, kind, chosen, summary, fits)
    return found


def entry(name: str) -> Entry:
    """The method of that name that `wazuka fit` can train. Raises UserError with the names there are."""
    fitting = [known for known, item in entries().items() if item.fits]
    if name in fitting:
        return entries()[name]
    if name in entries():
        raise UserError(
            f"{name} belongs to {entries()[name].setting} and can't be trained by fit, which takes "
            f"{', '.join(fitting)}; use it from Python, see `wazuka methods {name}`."
        )
    close = difflib.get_close_matches(name, fitting, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fitting)}."
    raise UserError(f"There is no method {name!r}; {hint}")


def make_settings(item: Entry, given: Mapping[str, Any], start: Any = None) -> Any:
    """The method's settings with `given` in place of those of `start` (None: its defaults); "optimizer.lr" reaches
    inside.

    Values may be strings, as typed on a command line. Raises UserError for a name or value that does not fit.
    """
    if item.settings is None:
        if given:
            raise UserError(f"{item.name} has no settings, but {', '.join(given)} was given.")
        return None
    try:
        settings = item.settings() if start is None else start
        for path, value in given.items():
            settings = _replaced(settings, path.split("."), value, item.name)
        return settings
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"The settings of {item.name} don't fit: {error}.") from error


def planned_settings(item: Entry, planned: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """The method's settings: its defaults, in place of them what a plan says of those it has, then what was given."""
    if item.settings is None:
        return make_settings(item, given)
    names = {field.name for field in dataclasses.fields(item.settings)}
    start = dataclasses.replace(item.settings(), **{name: planned[name] for name in planned if name in names})
    return make_settings(item, given, start)


def _replaced(settings: Any, path: list[str], value: Any, method: str) -> Any:
    names = [field.name for field in dataclasses.fields(settings)]
    if path[0] not in names:
        close = difflib.get_close_matches(path[0], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}."
        raise UserError(f"{method} has no setting {path[0]!r}; {hint}")
    old = getattr(settings, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(old):
            raise UserError(f"The setting {path[0]} of {method} is a plain value: nothing lies inside it.")
        return dataclasses.replace(settings, **{path[0]: _replaced(old, path[1:], value, method)})
    if dataclasses.is_dataclass(old):
        inner = ", ".join(f"{path[0]}.{field.name}" for field in dataclasses.fields(old))
        raise UserError(f"The setting {path[0]} of {method} has parts; change one of {inner}.")
    if callable(old):
        raise UserError(f"The setting {path[0]} of {method} is a function and can't be changed here.")
    return dataclasses.replace(settings, **{path[0]: _read(value, old, path[0])})


def _read(value: Any, old: Any, name: str) -> Any:
    """A typed string as the kind of value that the default is."""
    if not isinstance(value, str) or isinstance(old, str):
        return value
    try:
        if isinstance(old, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
        if isinstance(old, int):
            return int(value)
        return float(value)
    except (KeyError, ValueError):
        kind = "yes or no" if isinstance(old, bool) else "a whole number" if isinstance(old, int) else "a number"
        raise UserError(f"The setting {name} must be {kind}, got {value!r}.") from None


def build(item: Entry, net: nn.Module, classes: int, settings: Any, **more: Any) -> Method:
    """Make the method; its constructor gets those of net, classes, settings and `more` that it names.

    more    unlabeled: how many images its pool of unlabeled ones holds; shape: (C, H, W) of an image
    """
    given = {"net": net, "classes": classes, "settings": settings, **more}
    wanted = inspect.signature(item.kind.__init__).parameters
    method = item.kind(**{name: value for name, value in given.items() if name in wanted})
    assert isinstance(method, Method)
    return method
