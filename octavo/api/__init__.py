"""The verbs. Each has the name and arguments of its command and returns a frozen record; here the rooms meet.

A verb's module is imported when the verb is first asked for: a plan is over before the others would have been loaded.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.api.bench import bench
    from octavo.api.compress import compress
    from octavo.api.decide import decide
    from octavo.api.devices import devices_fit, devices_list, devices_probe, devices_show
    from octavo.api.doctor import doctor
    from octavo.api.export import export
    from octavo.api.fit import fit
    from octavo.api.inspect import inspect
    from octavo.api.load import load
    from octavo.api.plan import plan
    from octavo.api.run import run
    from octavo.api.verify import verify

__all__ = [
    "bench", "compress", "decide", "devices_fit", "devices_list", "devices_probe", "devices_show", "doctor", "export",
    "fit", "inspect", "load", "plan", "run", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'octavo.api' has no attribute '{name}'")
    module = name.partition("_")[0]  # the verbs of a group of commands share a file
    return getattr(import_module(f"octavo.api.{module}"), name)


class _Package(ModuleType):
    """Keeps `octavo.api.plan` the verb: importing the module of that name would put the module there instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
