"""An XNNPACK delegate's blob: its values (types, quantisation, where constants lie) and its nodes.

The fields are those of executorch/backends/xnnpack/serialization/schema.fbs (version 1.5). Constants lie in the file's
named data, under the SHA-256 of their bytes, or behind the blob's own flatbuffer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from octavo.core.flatbuffer import Damaged, Table, root
from octavo.errors import BadInput
from octavo.runtimes.pte.container import AGAIN, Container, Span

BACKEND = "XnnpackBackend"
MAGIC, GRAPH = b"XH00", b"XN01"
HEADER = struct.Struct("<4x4sHIIIQ")  # magic, its own length, flatbuffer offset and size, constants' offset and size
DATATYPES = ("invalid", "fp32", "fp16", "qint8", "quint8", "qint32", "qcint8", "qcint32", "qcint4", "qdint8", "qbint4",
             "qpint8", "int32", "pfp32", "bf16")  # fmt: skip
NODES = (
    "", "Add", "FullyConnected", "Softmax", "Sigmoid", "StaticTranspose", "Clamp", "Conv2d", "Div",
    "StaticResizeBilinear2D", "StaticConstantPad", "AvgPooling2d", "Minimum", "DepthwiseConv2d", "MaxPooling2d",
    "Multiply", "Subtract", "Floor", "Convert", "GlobalAvgPooling2d", "StaticReshape", "ArgMaxPooling2d", "SquareRoot",
    "Ceiling", "Hardswish", "LeakyReLU", "Maximum", "Negate", "Square", "ELU", "Abs", "PReLU", "Concatenate2",
    "Concatenate3", "Concatenate4", "StaticSlice", "ScaledDotProductAttention", "BatchMatrixMultiply", "Concatenate5",
    "ConvTranspose2d", "ReciprocalSquareRoot", "Log", "Gelu", "Tanh", "Exp", "Sin", "Copy", "Cos",
)  # fmt: skip
PER_CHANNEL, PER_TENSOR, PER_TOKEN, PER_GROUP = 1, 2, 3, 4  # members of the union XNNQuantParams


@dataclass(frozen=True)
class Quantised:
    """How a value is quantised: one scale and zero point, or `count` scales of `width` bytes in the file at `scales`
    (fp32 per channel of `axis`, bf16 per group), or dynamically, at run time."""

    scale: float = 0.0
    zero_point: int = 0
    scales: Span | None = None
    count: int = 0
    group: int = 0
    dynamic: bool = False

    @property
    def per_tensor(self) -> bool:
        return self.scales is None and not self.dynamic


@dataclass(frozen=True)
class Value:
    """One value of the graph: a name of DATATYPES, its shape, its constant's place, its quantisation."""

    datatype: str
    shape: tuple[int, ...]
    data: Span | None
    quantised: Quantised | None


@dataclass(frozen=True)
class Graph:
    """One delegated subgraph; `nodes` are names of NODES, in order."""

    values: tuple[Value, ...]
    nodes: tuple[str, ...]


def graph(container: Container, blob: Span) -> Graph:
    """Read the blob of an XNNPACK delegate. Raises BadInput when it is damaged."""
    try:
        return _Reader(container, blob).graph()
    except (Damaged, ValueError, IndexError, KeyError, struct.error, OverflowError) as error:
        raise BadInput(
            f"{container.path}: the XNNPACK part at byte {blob.start:,} is damaged ({error}).", AGAIN
        ) from error


class _Reader:
    def __init__(self, container: Container, blob: Span) -> None:
        self.container = container
        data = container.bytes(blob)
        self.end = blob.stop
        start, size, self.constants = 0, len(data), blob.stop
        if data[4:8] == MAGIC:
            _, _, start, size, constants, _ = HEADER.unpack_from(data)
            self.constants = blob.start + constants
            if start + size > len(data):
                raise ValueError(f"its graph ends at byte {start + size:,} of {len(data):,}")
        self.buffer = data[start : start + size]
        if self.buffer[4:8] != GRAPH:
            raise ValueError(f"it begins with {self.buffer[4:8]!r}, not {GRAPH!r}")

    def graph(self) -> Graph:
        top = root(self.buffer)
        self.places = [self._constant(item) for item in top.tables(8)]
        nodes = tuple(NODES[item.scalar(0, "B")] for item in top.tables(1))
        return Graph(tuple(self._value(item) for item in top.tables(2)), nodes)

    def _constant(self, item: Table) -> Span:
        name, size = item.text(2), item.scalar(1, "Q")
        if not name:
            start = self.constants + item.scalar(0, "Q")
            if size and start + size > self.end:
                raise ValueError(f"a constant ends at byte {start + size:,} of {self.end:,}")
            return Span(start, start + size)
        found = self.container.named[name]
        if size > found.size:
            raise ValueError(f"constant {name} has {found.size} bytes, not {size}")
        return Span(found.start, found.start + size)

    def _value(self, item: Table) -> Value:
        kind, outer = item.scalar(0, "B"), item.table(1)
        quantised = None
        tensor = outer
        if kind == 2 and outer is not None:
            tensor, quantised = outer.table(0), self._quantised(outer.scalar(1, "B"), outer.table(2))
        if tensor is None:
            raise ValueError("a value without a tensor")
        index = tensor.scalar(3, "I")
        data = self.places[index] if index else None
        return Value(DATATYPES[tensor.scalar(0, "h")], tensor.numbers(2, "I") or (), data, quantised)

    def _quantised(self, kind: int, item: Table | None) -> Quantised:
        if item is None or kind == PER_TOKEN:
            return Quantised(dynamic=True)
        if kind == PER_TENSOR:
            return Quantised(scale=item.scalar(0, "f"), zero_point=item.scalar(1, "i"))
        if kind not in (PER_CHANNEL, PER_GROUP):
            raise ValueError(f"quantised in a way ({kind}) that is not known")
        index, count = (item.scalar(4, "I"), item.scalar(5, "I")) if kind == PER_GROUP else _channel(item)
        group = item.scalar(2, "i") if kind == PER_GROUP else 0
        place, width = self.places[index], 2 if group else 4
        if count * width > place.size:
            raise ValueError(f"{count} scales in {place.size} bytes")
        return Quantised(scales=Span(place.start, place.start + count * width), count=count, group=group)


def _channel(item: Table) -> tuple[int, int]:
    return item.scalar(2, "I"), item.scalar(3, "I")
