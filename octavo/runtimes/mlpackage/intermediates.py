"""Every operation's output of a package, in Octavo's interpreter: our semantics, not Apple's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo.runtimes.base import Arrays
from octavo.runtimes.mlpackage.service import STEP_SECONDS, Package


def record_package(path: Path, inputs: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Run the package once; as a worker's record does (runtimes/intermediates.py). Raises BadInput, OctavoError."""
    from octavo.runtimes.mlpackage.session import _Ends

    package = Package(path)
    try:
        ends = _Ends(package)
        given = {name: inputs[name] for name in ends.inputs if name in inputs}
        if len(given) < len(ends.inputs):
            given = dict(zip(ends.inputs, inputs.values(), strict=False))
        reply = package._worker.call(
            "octavo.runtimes.mlpackage.intermediates:values", {"number": package.info["number"]},
            ends.bind(given, None), timeout=STEP_SECONDS,
        )  # fmt: skip
        return reply.result, reply.arrays
    finally:
        package.close()


def values(params: dict[str, Any], arrays: Arrays, emit: Any) -> tuple[dict[str, Any], Arrays]:
    """A worker's target: number, of a package that is open there."""
    import torch

    from octavo.runtimes.mlpackage.child import _OPENED
    from octavo.runtimes.mlpackage.interpret import Interpreter, _constant, _step

    program = _OPENED[params["number"]].program
    runner = Interpreter(program)
    function = program.functions["main"]
    held: dict[str, Any] = dict(runner._constants)
    held |= {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    last = {output.name for output in function.outputs}
    listed: list[list[str]] = []
    outputs: list[int] = []
    found: Arrays = {}
    with torch.no_grad():
        for operation in function.operations:
            if _constant(operation.op_type):
                continue
            _step(operation, held)
            for output in operation.outputs:
                value = held[output.name]
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                    outputs += [len(listed)] if output.name in last else []
                    found[str(len(listed))] = np.ascontiguousarray(value.float().numpy())
                    listed.append([operation.op_type, _name(operation, output.name)])
    return {"values": listed, "outputs": outputs}, found


def _name(operation: Any, name: str) -> str:
    """The value's name; of a dequantised edge the name of the value that was quantised."""
    if operation.op_type == "dequantize":
        quantised = getattr(operation.input, "op", None)
        source = getattr(quantised, "input", None)
        if quantised is not None and quantised.op_type == "quantize" and source is not None:
            return str(source.name)
    return name
