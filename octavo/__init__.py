"""Octavo folds a trained model until it fits a device that nobody can upgrade, and proves that it still works there.

`import octavo` is light: neither torch nor any runtime is loaded until a verb needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo.errors import OctavoError

__version__ = "0.1.0"
__all__ = ["OctavoError", "__version__", "compress", "doctor", "export", "fit", "inspect", "load", "run", "verify"]

if TYPE_CHECKING:
    from octavo.api import compress, doctor, export, fit, inspect, load, run, verify


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("octavo.api"), name)
    raise AttributeError(f"module 'octavo' has no attribute '{name}'")
