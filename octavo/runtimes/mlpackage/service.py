"""The one worker process of Core ML: started when first needed, and again after it died."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from octavo.errors import Missing
from octavo.runtimes.mlpackage.package import DATA, WEIGHTS, model_file
from octavo.workers.local import Reply, Worker

CONVERT_SECONDS, READ_SECONDS, STEP_SECONDS = 1800, 600, 600
_ROOM = "octavo.runtimes.mlpackage"
_WORKERS: list[Worker] = []


def call(
    target: str,
    params: Mapping[str, Any] | None = None,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    *,
    timeout: float = READ_SECONDS,
) -> Reply:
    """Call `file:function` of this folder in the worker. Raises what it raises, WorkerDied, WorkerTimeout; Missing."""
    from importlib.util import find_spec

    lacking = [name for name in ("coremltools", "torch") if find_spec(name) is None]
    if lacking:
        raise Missing(f"Core ML needs {' and '.join(lacking)}.", "pip install 'octavo[coreml]'")
    if not _WORKERS or not _WORKERS[0].alive:
        _WORKERS[:] = [Worker()]
    return _WORKERS[0].call(f"{_ROOM}.{target}", params, arrays, timeout=timeout)


class Package:
    """A package opened in the worker: what it says of itself, and its constants on demand.

    Raises BadInput for a damaged package (see `model_file` and `child.open_package`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        model = model_file(path)
        params = {"path": str(path), "model": str(model.resolve()), "weights": str((path / DATA / WEIGHTS).resolve())}
        self.info = call("child:open_package", params).result
        self._worker = _WORKERS[0]

    def call(self, name: str, arrays: Mapping[str, NDArray[Any]] | None = None, **params: Any) -> Reply:
        """Call a function of child.py on this package; after the worker died, WorkerDied."""
        full = {"number": self.info["number"]} | params
        return self._worker.call(f"{_ROOM}.child:{name}", full, arrays, timeout=STEP_SECONDS)

    def close(self) -> None:
        """Let the worker forget it."""
        if self._worker.alive:
            self.call("forget")
