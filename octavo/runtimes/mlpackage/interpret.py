"""An interpreter of ML programs over torch: our semantics, read off coremltools' documentation, not Apple's.

It exists so that a package can be run, and compared with its original, on a machine without macOS. Weights are decoded
by coremltools itself; the arithmetic is torch's on the CPU, in the types that the program names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, OctavoError
from octavo.runtimes.mlpackage.arithmetic import ARITHMETIC
from octavo.runtimes.mlpackage.quantities import QUANTITIES
from octavo.runtimes.mlpackage.shapes import SHAPES
from octavo.runtimes.mlpackage.windows import WINDOWS

OPERATIONS = ARITHMETIC | WINDOWS | SHAPES | QUANTITIES


def unknown(program: Any) -> list[str]:
    """The kinds of operations in `program` that have no meaning here, each once."""
    kinds = {op.op_type for op in program.functions["main"].operations}
    return sorted(kind for kind in kinds if kind not in OPERATIONS and not _constant(kind))


class Interpreter:
    """Runs the main function of a program. Raises BadInput, naming them, for operations that it does not know."""

    def __init__(self, program: Any) -> None:
        lacking = unknown(program)
        if lacking:
            raise BadInput(
                f"The program has {', '.join(lacking)}, which Octavo's interpreter of ML programs does not know.",
                "Run it on macOS, where Core ML itself does.",
            )
        self._function = program.functions["main"]
        self._constants: dict[str, Any] = {}
        for operation in self._function.operations:
            if _constant(operation.op_type):
                for output in operation.outputs:
                    self._constants[output.name] = _constant_value(operation)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name. Raises OctavoError naming the operation that failed."""
        import torch

        values = dict(self._constants)
        values |= {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        with torch.no_grad():
            for operation in self._function.operations:
                if not _constant(operation.op_type):
                    _step(operation, values)
        found = {output.name: values[output.name] for output in self._function.outputs}
        return {name: np.ascontiguousarray(value.numpy()) for name, value in found.items()}


def _step(operation: Any, values: dict[str, Any]) -> None:
    given = {
        name: [values[item.name] for item in var] if isinstance(var, list | tuple) else values[var.name]
        for name, var in operation.inputs.items()
    }
    try:
        result = OPERATIONS[operation.op_type](**given)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise OctavoError(
            f"{operation.name} ({operation.op_type}) failed in Octavo's interpreter: {error}",
            "Run it on macOS, where Core ML itself does.",
        ) from error
    results = result if isinstance(result, tuple) else (result,)
    for output, value in zip(operation.outputs, results, strict=True):
        values[output.name] = value


def _constant(kind: str) -> bool:
    return kind == "const" or kind.startswith("constexpr_")


def _constant_value(operation: Any) -> Any:
    """Arrays and floats as tensors of their own types, everything else (text, flags, integers) as it is."""
    import torch

    value = operation.outputs[0].val if operation.op_type == "const" else operation.materialized_val_inference()
    if isinstance(value, np.floating):
        return torch.from_numpy(np.array(value))
    if not isinstance(value, np.ndarray):
        return value.item() if isinstance(value, np.generic) else value
    if value.dtype.kind in "US" or value.dtype == object:
        return value.tolist()
    if value.dtype.kind in "iu" and value.dtype.itemsize == 1:  # coremltools marks narrow integers on numpy's types
        value = value.astype(np.int8 if value.dtype.kind == "i" else np.uint8)
    return torch.from_numpy(np.ascontiguousarray(value).copy())
