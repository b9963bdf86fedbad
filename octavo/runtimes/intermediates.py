"""What every operator of a file gives, in the file's own runtime: for finding the one that diverges.

ExecuTorch is the exception: XNNPACK shows nothing from inside its part of a file, so only the outputs are recorded.
Recording runs in a worker process (the file is suspect by then), on a copy whose intermediate values are outputs too.
Values come as floats: integers with a scale are decoded by the scale that the file has for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Refused
from octavo.runtimes.base import Arrays
from octavo.workers.local import Worker

SECONDS = 600
LAYOUTS = {"litert": ("nchw", "nhwc")}
TARGETS = {
    "onnxruntime": "octavo.runtimes.onnx.intermediates:record",
    "litert": "octavo.runtimes.tflite.intermediates:record",
    "executorch": "octavo.runtimes.pte.intermediates:record",
}


@dataclass(frozen=True)
class Recorded:
    """A value of the file: the kind of operator that gives it, its name (the edge's or node's where it has that)."""

    operator: str
    name: str
    array: NDArray[Any]


@dataclass(frozen=True)
class Recording:
    """Values in the order in which they are computed; `outputs`: the file's own, by their place in `values`.
    `layouts`: the orders of axes that the format may use."""

    values: tuple[Recorded, ...]
    outputs: tuple[int, ...]
    layouts: tuple[str, ...]


def record(runtime: str, path: Path, inputs: Arrays, *, threads: int = 1) -> Recording:
    """Run `path` once on `inputs` (the program's, by name or else in order; absent ones, a state, are zeros).

    Raises Refused for a runtime that shows no intermediate values; BadInput, OctavoError, WorkerDied as the runtime
    fails.
    """
    if runtime == "coreml":
        from octavo.runtimes.mlpackage.intermediates import record_package

        result, arrays = record_package(path, inputs)
    elif runtime in TARGETS:
        given = {f"in{place}": np.asarray(value) for place, value in enumerate(inputs.values())}
        params = {"path": str(path.resolve()), "names": list(inputs), "threads": threads}
        with Worker(threads=threads) as worker:
            reply = worker.call(TARGETS[runtime], params, given, timeout=SECONDS)
        result, arrays = reply.result, reply.arrays
    else:
        raise Refused(f"{runtime} shows no values of single operators.")
    values = tuple(Recorded(kind, name, arrays[str(place)]) for place, (kind, name) in enumerate(result["values"]))
    return Recording(values, tuple(result["outputs"]), LAYOUTS.get(runtime, ("nchw",)))


def bound(names: list[str], arrays: Arrays, taken: dict[str, tuple[tuple[int, ...], Any]]) -> Arrays:
    """The feeds of a file: by name, else in order; zeros for what is not given. `taken`: {name: (shape, type)}."""
    given = dict(zip(names, arrays.values(), strict=True))
    if not set(given) <= set(taken):
        given = dict(zip(taken, given.values(), strict=False))
    feeds: Arrays = {}
    for name, (shape, kind) in taken.items():
        value = given.get(name)
        feeds[name] = np.zeros(shape, kind) if value is None else np.ascontiguousarray(value)
    return feeds
