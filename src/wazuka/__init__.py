"""Wazuka: image recognition from a few labels.

    import wazuka
    data = wazuka.images("photos")              # a folder, a CSV, Parquet, arrays, or a public set's name
    run = wazuka.fit("photos", out="runs/leaves")
    model = wazuka.load("runs/leaves")
    wazuka.Classifier().fit(X, y)               # scikit-learn's way; y == -1 means unlabeled

Everything heavy is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Classifier", "UserError", "__version__", "fit", "images", "load"]

_HOMES = {
    "Classifier": ("wazuka.app.classifier", "Classifier"),
    "UserError": ("wazuka.errors", "UserError"),
    "fit": ("wazuka.app.job", "fit"),
    "images": ("wazuka.data", "open_images"),
    "load": ("wazuka.app.model", "load"),
}

if TYPE_CHECKING:
    from wazuka.app.classifier import Classifier
    from wazuka.app.job import fit
    from wazuka.app.model import load
    from wazuka.data import open_images as images
    from wazuka.errors import UserError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wazuka' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
