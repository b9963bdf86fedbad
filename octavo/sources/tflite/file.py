"""A .tflite as records: its first subgraph's tensors with their numbers, its operators with their options.

Field numbers and enumerations: tensorflow/lite/schema/schema.fbs. Every offset is checked before it is followed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.flatbuffer import Damaged, Table, root
from octavo.errors import BadInput
from octavo.sources.facts.tflite import IDENTIFIER, TYPES, operator_name

NUMPY = {
    "fp32": "<f4", "fp16": "<f2", "fp64": "<f8", "int32": "<i4", "uint8": "u1", "int64": "<i8", "bool": "?",
    "int16": "<i2", "int8": "i1",
}  # fmt: skip
CODES = ("int8", "uint8", "int16", "int4", "uint4", "int2")
LIMIT = 2**28  # elements of one tensor: 1 GiB in float32; a damaged file asks for more


@dataclass(frozen=True)
class Stored:
    """A tensor. `free`: axes whose size may vary. `data`: its numbers, as float32 where they are halves or codes (of
    type `codes`); None if computed."""

    name: str
    shape: tuple[int, ...]
    free: tuple[int, ...]
    kind: str
    data: NDArray[Any] | None = field(repr=False)
    codes: str = ""


@dataclass(frozen=True)
class Operation:
    """An operator: tensor numbers in and out, −1 where an optional input is absent; its table of options if any."""

    index: int
    op: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None


@dataclass(frozen=True)
class Graph:
    """The first subgraph. `inputs`, `outputs`: {name: tensor number}, named by the file's signature if it has one."""

    tensors: list[Stored]
    operations: list[Operation]
    inputs: dict[str, int]
    outputs: dict[str, int]

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever folds this should know: it is not wholly the float model that was trained."""
        coded = [tensor for tensor in self.tensors if tensor.codes]
        if not coded:
            return ()
        return (
            f"{len(coded)} weights were stored as {coded[0].codes} codes (dynamic-range quantisation), first "
            f"'{coded[0].name}'; they are taken for the numbers that the codes stand for.",
        )


def read(path: Path) -> Graph:
    """The float graph in `path`. Raises BadInput: no .tflite, damaged, quantised already, or a tensor of a kind that is
    not imported (named)."""
    try:
        data = path.read_bytes()
        if data[4:8] != IDENTIFIER:
            raise Damaged(f"it says {data[4:8]!r}, not {IDENTIFIER!r}")
        return _graph(root(data), data, path)
    except (OSError, ValueError, IndexError, struct.error, OverflowError) as error:
        raise BadInput(
            f"{path}: not a .tflite, or damaged ({type(error).__name__}: {error}).", "Convert it again."
        ) from error


def _graph(model: Table, data: bytes, path: Path) -> Graph:
    graphs = model.tables(2)
    if not graphs:
        raise Damaged("it has no subgraph")
    signatures = model.tables(7)
    if len(signatures) > 1:
        names = ", ".join(f"'{item.text(2)}'" for item in signatures)
        raise BadInput(f"{path}: {len(signatures)} signatures: {names}.", "Convert the one to fold by itself.")
    tables = graphs[0].tables(0)
    _refuse_quantised(tables, model.tables(4), path)
    buffers = model.tables(4)
    tensors = [_tensor(index, table, buffers, data) for index, table in enumerate(tables)]
    codes = [(operator_name(code), max(1, code.scalar(2, "i", 1))) for code in model.tables(1)]
    operations = []
    for index, table in enumerate(graphs[0].tables(3)):
        op, version = codes[table.scalar(0, "I")]
        taken, made = (_checked(table.numbers(number, "i") or (), len(tensors)) for number in (1, 2))
        operations.append(Operation(index, op, version, taken, made, table.table(4)))
    if not operations:
        raise Damaged("it has no operator")
    signature = signatures[0] if signatures and signatures[0].scalar(4, "I") == 0 else None
    ends = [_names(graphs[0], number, place, signature, tensors) for number, place in ((1, 0), (2, 1))]
    return Graph(tensors, operations, ends[0], ends[1])


def _names(graph: Table, number: int, place: int, signature: Table | None, tensors: list[Stored]) -> dict[str, int]:
    """{name: tensor number} of the graph's inputs (field 1) or outputs (2), in its order."""
    indices = _checked(graph.numbers(number, "i") or (), len(tensors))
    if not indices or min(indices) < 0:
        raise Damaged(f"its {('inputs', 'outputs')[place]} are {list(indices)}")
    given = {entry.scalar(1, "I"): entry.text(0) for entry in signature.tables(place)} if signature else {}
    found: dict[str, int] = {}
    for index in indices:
        name = base = given.get(index) or tensors[index].name
        copy = 1
        while name in found:
            copy, name = copy + 1, f"{base}_{copy + 1}"
        found[name] = index
    return found


def _checked(indices: tuple[int, ...], count: int) -> tuple[int, ...]:
    if any(not -1 <= index < count for index in indices):
        raise Damaged(f"tensors {list(indices)} of {count}")
    return indices


def _refuse_quantised(tables: list[Table], buffers: list[Table], path: Path) -> None:
    """A file whose values are codes as they pass is finished. Codes that only weights are stored in can be decoded."""
    passing = [table for table in tables if _is_quantised(table) and not buffers[table.scalar(2, "I")].length(0)]
    if passing:
        weights = [table for table in tables if _is_quantised(table) and buffers[table.scalar(2, "I")].length(0)]
        first = f", first weight '{weights[0].text(3)}'" if weights else ""
        raise BadInput(
            f"{path}: quantised already: {len(passing)} of its values, first '{passing[0].text(3)}', and "
            f"{len(weights)} of its weights{first} are integer codes.",
            "Give the float model that it was made from; `octavo inspect` takes it as it is.",
        )


def _is_quantised(table: Table) -> bool:
    """Integer codes with a scale; a scale of float32 tensors is a converter's note, one of int32 a bias's."""
    quantization = table.table(4)
    kind = TYPES.get(table.scalar(1, "b"), ("unknown", 0))[0]
    return kind in CODES and quantization is not None and quantization.length(2, 4) > 0


def _tensor(index: int, table: Table, buffers: list[Table], data: bytes) -> Stored:
    name = table.text(3) or f"tensor {index}"
    shape = tuple(int(size) for size in table.numbers(0, "i") or ())
    kind, size = TYPES.get(table.scalar(1, "b"), ("unknown", 0))
    signature = table.numbers(7, "i") or ()
    free = tuple(axis for axis, size in enumerate(signature) if size < 0) if len(signature) == len(shape) else ()
    if any(item < 0 for item in shape) or prod(shape) > LIMIT:
        raise Damaged(f"tensor '{name}' has shape {list(shape)}")
    for number, what in ((5, "a variable"), (6, "sparse"), (10, "outside the file")):
        if table.table(number) if number == 6 else table.scalar(number, "B" if number == 5 else "I"):
            raise BadInput(f"Tensor '{name}' is {what}, which is not imported.", "Convert the model without it.")
    raw = _bytes(buffers[table.scalar(2, "I")], data)
    if not raw:
        return Stored(name, shape, free, kind, None)
    if kind not in (*NUMPY, "bf16"):
        return Stored(name, shape, free, kind, None)
    if len(raw) != prod(shape) * size:
        raise Damaged(f"tensor '{name}' {list(shape)} of {kind} has {len(raw)} bytes")
    found = _numbers(raw, kind).reshape(shape)
    if _is_quantised(table):
        return Stored(name, shape, free, "fp32", _decoded(found, name, table.table(4)), kind)
    return Stored(name, shape, free, kind, found)


def _decoded(codes: NDArray[Any], name: str, quantization: Table | None) -> NDArray[np.float32]:
    """What the codes stand for: scale · (code − zero point), per tensor or along one axis.

    Fields: scales 2, zero points 3, kind of details 4 (blocks, and what a converter invents), axis 6.
    """
    assert quantization is not None
    scales = np.array(quantization.numbers(2, "f"), np.float32)
    zeros = np.array(quantization.numbers(3, "q") or [0] * len(scales), np.int64)
    axis = quantization.scalar(6, "i")
    per_axis = len(scales) > 1
    if quantization.scalar(4, "B") or len(zeros) != len(scales) or not np.isfinite(scales).all():
        raise BadInput(f"Tensor '{name}' is quantised in a way that is not imported.", "Give the float model.")
    if per_axis and not (0 <= axis < codes.ndim and codes.shape[axis] == len(scales)):
        raise Damaged(f"tensor '{name}' {list(codes.shape)} has {len(scales)} scales along axis {axis}")
    line = [-1 if i == axis else 1 for i in range(codes.ndim)] if per_axis else [1] * codes.ndim
    found: NDArray[np.float32] = (codes - zeros.reshape(line)).astype(np.float32) * scales.reshape(line)
    return found


def _bytes(buffer: Table, data: bytes) -> bytes:
    """What a buffer holds: in its vector, or (files over 2 GB) at an offset behind the tables."""
    offset, size = buffer.scalar(1, "Q"), buffer.scalar(2, "Q")
    if offset <= 1:  # 0 and 1 mark a buffer that lies in the tables
        return buffer.raw(0)
    if offset + size > len(data):
        raise Damaged(f"{size} bytes at byte {offset} of {len(data)}")
    return data[offset : offset + size]


def _numbers(raw: bytes, kind: str) -> NDArray[Any]:
    """Half precision is widened, which is exact."""
    if kind == "bf16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    found = np.frombuffer(raw, NUMPY[kind])
    return found.astype(np.float32) if kind == "fp16" else found.copy()
