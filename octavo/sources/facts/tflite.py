"""Facts of a .tflite: its FlatBuffer's tables, read directly. No weight is read, no interpreter is needed.

Field numbers and enumerations: tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path

from octavo.core.facts import ModelFacts, OperatorKind
from octavo.core.flatbuffer import Table, root
from octavo.errors import BadInput
from octavo.sources.facts.network import Network, Shape, kinds

IDENTIFIER = b"TFL3"
CUSTOM = 32
TYPES: dict[int, tuple[str, float]] = {
    0: ("fp32", 4), 1: ("fp16", 2), 2: ("int32", 4), 3: ("uint8", 1), 4: ("int64", 8), 5: ("string", 0),
    6: ("bool", 1), 7: ("int16", 2), 8: ("complex64", 8), 9: ("int8", 1), 10: ("fp64", 8), 11: ("complex128", 16),
    12: ("uint64", 8), 15: ("uint32", 4), 16: ("uint16", 2), 17: ("int4", 0.5), 18: ("bf16", 2), 19: ("int2", 0.25),
    20: ("uint4", 0.5), 21: ("fp8", 1), 22: ("fp8", 1),
}  # fmt: skip
SHAPES_ONLY = {  # inputs that are sizes, axes and paddings, not weights: {operator: places}
    "RESHAPE": (1,), "TRANSPOSE": (1,), "PAD": (1,), "PADV2": (1, 2), "MIRROR_PAD": (1,), "MEAN": (1,), "SUM": (1,),
    "STRIDED_SLICE": (1, 2, 3), "SLICE": (1, 2), "TRANSPOSE_CONV": (0,), "RESIZE_BILINEAR": (1,), "TILE": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,), "SPLIT": (0,), "SPLIT_V": (1, 2), "EXPAND_DIMS": (1,), "REDUCE_MAX": (1,),
    "REDUCE_MIN": (1,), "ARG_MAX": (1,), "BROADCAST_TO": (1,), "FILL": (0,), "BATCH_TO_SPACE_ND": (1, 2),
    "SPACE_TO_BATCH_ND": (1, 2),
}  # fmt: skip


def tflite_facts(path: Path) -> ModelFacts:
    """Facts of one inference of the first subgraph. Raises BadInput when the file is no .tflite or is damaged."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[4:8] != IDENTIFIER:
                raise ValueError(f"it says {data[4:8]!r}, not {IDENTIFIER!r}")
            return _Reader(root(data)).facts(path)
    except (OSError, ValueError, IndexError, struct.error, OverflowError) as error:
        raise BadInput(
            f"{path}: not a .tflite, or damaged ({type(error).__name__}: {error}).", "Convert it again."
        ) from error


@cache
def _operators() -> list[str]:
    """BuiltinOperator's names in the order of their numbers."""
    return Path(__file__).with_name("tflite_operators.txt").read_text("ascii").split()


class _Reader:
    def __init__(self, model: Table) -> None:
        self.net, self.kinds = Network(), kinds("tflite")
        self.codes = [operator_name(code) for code in model.tables(1)]
        self.buffers = [max(table.length(0), table.scalar(2, "Q")) for table in model.tables(4)]
        graphs = model.tables(2)
        if not graphs:
            raise ValueError("it has no subgraph")
        self.graph = graphs[0]
        self.names: list[str] = []
        self.shapes: dict[str, Shape] = {}
        if len(graphs) > 1:
            self.net.missing.append(f"{len(graphs)} subgraphs: only the first is planned (branches, other signatures).")

    def facts(self, path: Path) -> ModelFacts:
        for index, tensor in enumerate(self.graph.tables(0)):
            self._tensor(index, tensor)
        for index, operator in enumerate(self.graph.tables(3)):
            self._operator(index, operator)
        self.net.unknown_operators()
        for name in [name for name, weight in self.net.weights.items() if not self._is_parameter(name)]:
            del self.net.weights[name]
        inputs, outputs = (self._named(self.graph.numbers(number, "i")) for number in (1, 2))
        return self.net.facts(path.stem, inputs, outputs, f"the tables of {path.name}")

    def _tensor(self, index: int, tensor: Table) -> None:
        """A tensor with a buffer is a weight, any other an edge; −1 in its shape is 1."""
        signature = tensor.numbers(7, "i")
        shape = tuple(int(size) for size in tensor.numbers(0, "i") or ())
        stored, size = TYPES.get(tensor.scalar(1, "b"), ("unknown", 0))
        name = tensor.text(3) or f"tensor {index}"
        name = name if name not in self.shapes else f"{name} #{index}"
        if signature and -1 in signature[1:]:
            self.net.missing.append(f"{name}: free sizes {list(signature)}, planned as {list(shape)}.")
        shape = tuple(max(size, 1) for size in shape)
        self.names.append(name)
        self.shapes[name] = shape
        held = self.buffers[tensor.scalar(2, "I")]
        if held:
            quantization = tensor.table(4)
            scales = quantization.length(2, 4) if quantization else 0
            self.net.weight(name, shape, stored, held + 4 * scales)
        else:
            self.net.edge(name, shape, size)

    def _operator(self, index: int, operator: Table) -> None:
        op = self.codes[operator.scalar(0, "I")]
        inputs, outputs = self._named(operator.numbers(1, "i")), self._named(operator.numbers(2, "i"))
        places = SHAPES_ONLY.get(op, ())
        for place, name in enumerate(inputs):
            if place in places and name in self.net.weights:
                del self.net.weights[name]
                self.net.constants.add(name)
        if op in ("DEQUANTIZE", "DENSIFY") and inputs and inputs[0] in self.net.weights:
            self.net.edges.pop(outputs[0], None)
            self.net.alias(outputs[0], inputs[0])
            return
        kind = self.kinds.get(op, "other")
        macs, kind = self._macs(op, kind, operator, inputs, outputs)
        self.net.operator(f"{index} {op}", op, kind, macs, inputs, outputs)

    def _macs(
        self, op: str, kind: OperatorKind, operator: Table, inputs: list[str], outputs: list[str]
    ) -> tuple[int, OperatorKind]:
        rule = MACS.get(op)
        if rule is None or not inputs or not outputs:
            return 0, kind
        shapes = [self.shapes.get(name, ()) for name in inputs]
        if op == "BATCH_MATMUL":
            adjoint = bool((options := operator.table(4)) and options.scalar(0, "?"))
            depth = shapes[0][-2 if adjoint else -1]
            fixed = any(self.net.is_constant(name) for name in inputs[:2])
            return prod(self.shapes[outputs[0]]) * depth, "matmul" if fixed else "attention"
        macs = rule(shapes, self.shapes[outputs[0]])
        if op == "CONV_2D" and shapes[1][3] == 1 and shapes[0][-1] > 1:
            kind = "depthwise"
        return macs, kind

    def _named(self, indices: tuple[int, ...] | None) -> list[str]:
        return [self.names[index] if index >= 0 else "" for index in indices or ()]

    def _is_parameter(self, name: str) -> bool:
        """Integers that nobody multiplies with are sizes; int32 biases are parameters."""
        weight = self.net.weights[name]
        return weight.stored not in ("int64", "bool", "string") and not (weight.stored == "int32" and not weight.shape)


def operator_name(code: Table) -> str:
    """The name of an OperatorCode: BuiltinOperator's, or a custom operator's own."""
    number = max(code.scalar(0, "b"), code.scalar(3, "i"))
    if number == CUSTOM:
        return code.text(1) or "CUSTOM"
    names = _operators()
    return names[number] if number < len(names) else f"OPERATOR {number}"


def _convolution(shapes: list[Shape], out: Shape) -> int:
    """Weights [O, H, W, I / groups]."""
    return prod(out) * prod(shapes[1][1:])


def _depthwise(shapes: list[Shape], out: Shape) -> int:
    """Weights [1, H, W, O]."""
    return prod(out) * shapes[1][1] * shapes[1][2]


def _transposed(shapes: list[Shape], out: Shape) -> int:
    """Inputs: size, weights [O, H, W, I], data; each element of the data is multiplied with O · H · W weights."""
    return prod(shapes[2]) * prod(shapes[1][:3])


def _fully_connected(shapes: list[Shape], out: Shape) -> int:
    """Weights [O, I]."""
    return prod(out) * shapes[1][-1]


def _volume(shapes: list[Shape], out: Shape) -> int:
    """Weights [D, H, W, I, O]."""
    return prod(out) * prod(shapes[1][:4])


def _sequence_lstm(shapes: list[Shape], out: Shape) -> int:
    """Four gates with input weights (1 to 4) and recurrent weights (5 to 8), at every step of every batch."""
    steps = prod(shapes[0][:-1])
    return steps * sum(prod(shape) for shape in shapes[1:9] if len(shape) == 2)


def _svdf(shapes: list[Shape], out: Shape) -> int:
    """Features [filters, I] on the input, then time weights [filters, memory]."""
    return prod(shapes[0][:-1]) * (prod(shapes[1]) + prod(shapes[2]))


MACS: dict[str, Callable[[list[Shape], Shape], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "CONV_3D": _volume,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _fully_connected,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _sequence_lstm,
    "LSTM": _sequence_lstm,
    "SVDF": _svdf,
}
