"""Octavo folds a trained model until it fits a device that nobody can upgrade, and proves that it still works there.

`import octavo` is light: neither torch nor any runtime is loaded until a verb needs it.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from octavo.errors import OctavoError

__version__ = "0.1.0"
VERBS = (
    "bench", "compress", "decide", "devices_fit", "devices_list", "devices_probe", "devices_show", "doctor", "export",
    "fit", "inspect", "load", "plan", "run", "verify",
)  # fmt: skip
__all__ = ["OctavoError", "__version__", *VERBS]


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return getattr(import_module("octavo.api"), name)
    raise AttributeError(f"module 'octavo' has no attribute '{name}'")


class _Package(ModuleType):
    """Keeps `octavo.compress` the verb: importing the room of that name would put the module there instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
