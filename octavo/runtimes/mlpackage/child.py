"""What runs in the worker: packages opened with coremltools' own reader, decoded, and interpreted with torch.

Opened packages are kept under a number, so that one process (coremltools takes seconds to import) serves many calls.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY
from octavo.errors import BadInput, Refused
from octavo.runtimes.mlpackage.edges import parameters
from octavo.runtimes.mlpackage.program import program_digest

Arrays = dict[str, NDArray[Any]]
Emit = Callable[[dict[str, Any]], None]
Answer = tuple[dict[str, Any], Arrays]
AGAIN = "The package is incomplete or damaged; export it again."


@dataclass
class Opened:
    """One package: its message, coremltools' program of it, and the operations by the name of their first output."""

    spec: Any
    program: Any
    operations: dict[str, Any]
    runner: Any = None


_OPENED: dict[int, Opened] = {}
_COUNT = itertools.count(1)


def open_package(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """params: model (the file), weights (the folder), path (for messages). Raises BadInput when it is damaged."""
    from coremltools import proto
    from coremltools.converters.mil.frontend.milproto.load import load
    from google.protobuf.message import DecodeError

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    path, spec = params["path"], proto.Model_pb2.Model()
    try:
        spec.ParseFromString(Path(params["model"]).read_bytes())
    except DecodeError as error:
        raise BadInput(f"{path}: its program is no Core ML message ({error}).", AGAIN) from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram" or list(spec.mlProgram.functions) != ["main"]:
        raise BadInput(f"{path}: holds {kind or 'nothing'}; Octavo reads ML programs of one function.", AGAIN)
    metadata = dict(spec.description.metadata.userDefined)
    try:
        program = load(spec, spec.specificationVersion, params["weights"])
        carried = set(_carried(metadata.get(KEY, "")))
        digest = program_digest(spec, Path(params["weights"]), carried)
    except Exception as error:  # coremltools raises what its parts raise
        raise BadInput(f"{path}: coremltools cannot read it ({type(error).__name__}: {error}).", AGAIN) from error
    held = {o.name: op for op in program.functions["main"].operations for o in op.outputs}
    number = next(_COUNT)
    _OPENED[number] = Opened(spec, program, held)
    return {
        "number": number,
        "metadata": metadata,
        "digest": digest,
        "version": spec.specificationVersion,
        "inputs": [_feature(item) for item in spec.description.input],
        "outputs": [_feature(item) for item in spec.description.output],
        "listing": [entry for op in program.functions["main"].operations for entry in _listed(op)],
        "edges": _edges(program),
    }, {}


def fetch(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """params: number, at. The numbers of one constant: values; or codes, scale and perhaps offset."""
    operation = _OPENED[params["number"]].operations.get(params["at"])
    if operation is None:
        raise Refused(f"the program has no {params['at']}.", AGAIN)
    return {"type": operation.op_type}, _numbers(operation)


def step(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """params: number. One run of the program in torch, on `arrays` by input name; returns outputs by name."""
    from octavo.runtimes.mlpackage.interpret import Interpreter

    opened = _OPENED[params["number"]]
    if opened.runner is None:
        opened.runner = Interpreter(opened.program)
    return {}, opened.runner.run(arrays)


def check(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """params: number. The kinds of operations that `step` has no meaning for."""
    from octavo.runtimes.mlpackage.interpret import unknown

    return {"unknown": unknown(_OPENED[params["number"]].program)}, {}


def forget(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """params: number."""
    _OPENED.pop(params["number"], None)
    return {}, {}


def _carried(text: str) -> list[str]:
    """Names of the operations that hold tensors, as far as the manifest can be read; its seal is checked elsewhere."""
    import json

    try:
        return [str(at) for item in json.loads(text)["tensors"] for at in item["at"]]
    except (ValueError, KeyError, TypeError):
        return []


def _feature(item: Any) -> dict[str, Any]:
    array = item.type.multiArrayType
    kinds = {65568: "float32", 131104: "int32", 65552: "float16", 65600: "float64"}
    return {"name": item.name, "shape": list(array.shape), "dtype": kinds.get(array.dataType, str(array.dataType))}


def _listed(operation: Any) -> list[Any]:
    if operation.op_type == "const":
        value = operation.outputs[0].val
        return (
            [[operation.outputs[0].name, list(value.shape), str(value.dtype)]] if isinstance(value, np.ndarray) else []
        )
    if operation.op_type.startswith("constexpr_"):
        return [[operation.outputs[0].name, list(operation.outputs[0].shape), operation.op_type]]
    return []


def _edges(program: Any) -> list[Any]:
    """[operation, its name, scale, zero point of int8] of every quantize and dequantize with one scale."""
    operations = [op for op in program.functions["main"].operations if op.op_type in ("quantize", "dequantize")]
    numbers = [(op, parameters(op)) for op in operations]
    return [[op.op_type, op.outputs[0].name, *found] for op, found in numbers if found is not None]


def _numbers(operation: Any) -> Arrays:
    kind = operation.op_type
    if kind == "const":
        return {"values": np.asarray(operation.outputs[0].val)}
    if kind == "constexpr_cast":
        return {"values": np.asarray(operation.source_val.val)}
    if kind == "constexpr_affine_dequantize":
        scale, offset = np.asarray(operation.scale.val), np.asarray(operation.zero_point.val)
        codes = np.asarray(operation.quantized_data.val)
        wide = [1] * codes.ndim
        if scale.ndim:
            wide[int(operation.axis.val)] = -1
        return {"codes": codes, "scale": scale.reshape(wide), "offset": offset.reshape(-1)}
    if kind != "constexpr_blockwise_shift_scale":
        raise Refused(f"{operation.name} is {kind}, which Octavo does not write for a tensor.", AGAIN)
    data = operation.data
    if data.val is not None and np.asarray(data.val).dtype.kind == "f":  # whole values, read as fp16
        return {"values": np.asarray(data.val), "scale": np.asarray(operation.scale.val)}
    codes = data.val if data.val is not None else data.op.materialized_val_inference()
    found = {"codes": np.asarray(codes).astype(_plain(np.asarray(codes))), "scale": np.asarray(operation.scale.val)}
    if operation.offset is not None:
        found["offset"] = np.asarray(operation.offset.val).astype(np.int8)
    return found


def _plain(codes: NDArray[Any]) -> type[np.signedinteger[Any]] | type[np.unsignedinteger[Any]]:
    """coremltools marks its narrow integers on numpy's own types; the mark does not travel."""
    return np.uint8 if codes.dtype.kind == "u" else np.int8
