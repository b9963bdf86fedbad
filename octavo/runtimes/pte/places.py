"""Where constants lie in a .pte file, and how to read a tensor's codes and scales, or its values, out of one.

    qcint8, qint8    codes int8; scales fp32, one per output channel, or one in all
    qcint4           two codes to a byte, low bits first, code + 8, rows padded to whole bytes; scales fp32 per channel
    qbint4           the same; scales bf16 per group of a row
    qcint32, qint32  a bias: int32 codes, scale = the input's times the weight's
    fp32, fp16       values
    int8             codes of an embedding, for portable kernels; scales another constant, fp32 per row or group

XNNPACK wants convolutions' weights channels last, and with the first two axes swapped where each channel has its own
filter. Which of these moves was made is recorded when the file is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.model import TensorValue
from octavo.core.scheme import SCHEMES, Scheme
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import Refused
from octavo.runtimes.pte import xnnpack
from octavo.runtimes.pte.container import SCALARS, Container, Span, Tensor
from octavo.runtimes.pte.xnnpack import Quantised

Shape = tuple[int, ...]
CODE_BITS = {"qcint8": 8, "qint8": 8, "int8": 8, "qcint4": 4, "qbint4": 4}
NIBBLE_ZERO = 8  # a 4-bit code of 0 is stored as 8
FLOATS = {"fp32": "<f4", "fp16": "<f2", "float32": "<f4", "float16": "<f2"}
BIASES = ("qcint32", "qint32")


@dataclass(frozen=True)
class Place:
    """One constant: `xnnpackD:V` is value V of the graph of delegate D, `constant:V` value V of the program, and
    `constant:V*S` codes there with scales that are value S."""

    name: str
    datatype: str
    data: Span
    quantised: Quantised | None = None

    @property
    def spans(self) -> list[Span]:
        """Its bytes, and those of its scales."""
        scales = self.quantised.scales if self.quantised else None
        return [self.data] if scales is None else [self.data, scales]


def places(container: Container, graphs: dict[int, xnnpack.Graph]) -> dict[str, Place]:
    """Every constant of a file, by name."""
    found: dict[str, Place] = {}
    for number, graph in graphs.items():
        for index, value in enumerate(graph.values):
            if value.data is not None:
                name = f"xnnpack{number}:{index}"
                found[name] = Place(name, value.datatype, value.data, value.quantised)
    for index, held in enumerate(container.values):
        if isinstance(held, Tensor) and held.data is not None:
            name = f"constant:{index}"
            found[name] = Place(name, SCALARS[held.kind][0], held.data)
    return found | _coded(container)


def graphs(container: Container) -> dict[int, xnnpack.Graph]:
    """The graphs of a file's XNNPACK delegates, by the delegate's number. Raises BadInput for a damaged one."""
    return {
        number: xnnpack.graph(container, delegate.blob)
        for number, delegate in enumerate(container.delegates)
        if delegate.backend == xnnpack.BACKEND
    }


def _coded(container: Container) -> dict[str, Place]:
    """Portable kernels' int8 constants, each with every constant that could be its scales."""
    held = [(n, v.kind, v.shape, v.data) for n, v in enumerate(container.values) if isinstance(v, Tensor) and v.data]
    found: dict[str, Place] = {}
    for index, kind, shape, data in held:
        for other, scalar, sizes, scales in held:
            if SCALARS[kind][0] == "int8" and SCALARS[scalar][0] == "float32" and shape[:1] == sizes[:1]:
                name = f"constant:{index}*{other}"
                found[name] = Place(name, "int8", data, Quantised(scales=scales, count=scales.size // 4))
    return found


def moves(shape: Shape) -> list[str]:
    """The moves that XNNPACK's writer may have made to a tensor of `shape`; "" is none."""
    if len(shape) == 2:
        return ["", "transposed"]
    if len(shape) not in (3, 4):
        return [""]
    groups = [g for g in range(2, shape[0] + 1) if shape[0] % g == 0]
    return ["", "channels last", *(f"swapped in {g} groups, channels last" for g in [1, *groups])]


def undo(stored: NDArray[Any], shape: Shape, move: str) -> NDArray[Any]:
    """Flat stored elements back in the tensor's own order. Raises Refused for a move that is not known."""
    if not move:
        return stored.reshape(shape)
    if move == "transposed" and len(shape) == 2:
        return stored.reshape(shape[::-1]).T
    rest = tuple(range(1, len(shape) - 1))
    if move == "channels last" and len(shape) > 2:
        return stored.reshape((shape[0], *shape[2:], shape[1])).transpose((0, len(shape) - 1, *rest))
    if move.startswith("swapped in ") and move in moves(shape):
        groups = int(move.split()[2])
        inner = stored.reshape((groups, shape[1], *shape[2:], shape[0] // groups))
        return np.moveaxis(inner, -1, 1).reshape(shape)
    raise Refused(f"a tensor of {len(shape)} axes is not stored '{move}'.")


def read(container: Container, place: Place, scheme: str, shape: Shape, move: str) -> TensorValue:
    """The tensor at a place. Raises Refused when what lies there cannot be one of that scheme and shape."""
    grid = SCHEMES.get(scheme)
    if grid is None or grid.is_float:
        return _floats(container, place, shape, move)
    return _codes(container, place, grid, shape, move)


def digest_of(value: TensorValue) -> str:
    return value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)


def _floats(container: Container, place: Place, shape: Shape, move: str) -> NDArray[np.float32]:
    count = prod(shape)
    if place.datatype in FLOATS:
        kind = np.dtype(FLOATS[place.datatype])
        _check_size(place, count * kind.itemsize, shape)
        values = np.frombuffer(container.bytes(place.data), kind).astype(np.float32)
        return np.ascontiguousarray(undo(values, shape, move))
    if place.datatype not in BIASES or place.quantised is None:
        raise Refused(f"{place.name} holds {place.datatype}, not floats.")
    _check_size(place, count * 4, shape)
    codes = np.frombuffer(container.bytes(place.data), "<i4")
    scales = _scales(container, place.quantised)
    if scales.size not in (1, count):
        raise Refused(f"{place.name} has {scales.size} scales for {count} values.")
    return (codes * scales.astype(np.float64)).astype(np.float32).reshape(shape)


def _codes(container: Container, place: Place, grid: Scheme, shape: Shape, move: str) -> QuantizedTensor:
    bits = CODE_BITS.get(place.datatype)
    if bits is None or place.quantised is None or place.quantised.dynamic or grid.range is None:
        raise Refused(f"{place.name} holds {place.datatype}, not codes with scales.")
    codes = _eight(container, place, shape) if bits == 8 else _four(container, place, shape)
    codes = np.ascontiguousarray(undo(codes, shape, move))
    if not grid.range.holds(codes):
        raise Refused(
            f"codes from {codes.min()} to {codes.max()} lie at {place.name}; "
            f"{grid.name} has {grid.range.low} to {grid.range.high}."
        )
    if place.quantised.per_tensor and place.quantised.zero_point:
        raise Refused(f"{place.name} has the zero point {place.quantised.zero_point}, not 0.")
    return QuantizedTensor(codes, _own_scales(container, place, grid, shape), grid.block(shape), grid.range)


def _eight(container: Container, place: Place, shape: Shape) -> NDArray[np.int8]:
    _check_size(place, prod(shape), shape)
    return np.frombuffer(container.bytes(place.data), np.int8)


def _four(container: Container, place: Place, shape: Shape) -> NDArray[np.int8]:
    if len(shape) != 2:
        raise Refused(f"{place.name} holds 4-bit codes of a matrix, not of {list(shape)}.")
    rows, columns = shape
    _check_size(place, rows * -(-columns // 2), shape)
    packed = np.frombuffer(container.bytes(place.data), np.uint8).reshape(rows, -1)
    spread = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1).astype(np.int8) - np.int8(NIBBLE_ZERO)
    if spread[:, columns:].any():
        raise Refused(f"{place.name}: the padding after its {columns} columns is not zero.")
    return np.ascontiguousarray(spread[:, :columns]).reshape(-1)


def _own_scales(container: Container, place: Place, grid: Scheme, shape: Shape) -> NDArray[np.float32]:
    """The scales in the scheme's own shape; those that were repeated per row must agree."""
    assert place.quantised is not None
    scales = _scales(container, place.quantised)
    groups = tuple(s // b for s, b in zip(shape, grid.block(shape), strict=True))
    if prod(groups) == 1 and scales.size == shape[0]:
        if (scales != scales[0]).any():
            raise Refused(f"{place.name}: {grid.name} has one scale, and {len(set(scales.tolist()))} lie there.")
        scales = scales[:1]
    grouped = place.datatype == "int8" or (place.quantised.group or 0) == (grid.group or 0)
    if scales.size != prod(groups) or not grouped:
        raise Refused(f"{place.name}: {scales.size} scales lie there; {grid.name} of {list(shape)} has {prod(groups)}.")
    if not np.isfinite(scales).all():
        raise Refused(f"{place.name}: {int((~np.isfinite(scales)).sum())} scales are not finite.")
    return np.ascontiguousarray(scales.reshape(groups))


def _scales(container: Container, quantised: Quantised) -> NDArray[np.float32]:
    if quantised.scales is None:
        return np.array([quantised.scale], np.float32)
    raw = container.bytes(quantised.scales)
    if quantised.group:
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _check_size(place: Place, size: int, shape: Shape) -> None:
    if place.data.size != size:
        raise Refused(f"{place.data.size:,} bytes lie at {place.name}; {list(shape)} as {place.datatype} has {size:,}.")


class Finder:
    """Finds tensors by their content: which places hold a tensor of this digest, and after which move."""

    def __init__(self, container: Container, there: dict[str, Place]) -> None:
        self._container, self._there = container, there
        self._known: dict[tuple[str, Shape], dict[str, list[tuple[str, str]]]] = {}

    def find(self, scheme: str, shape: Shape, digest: str) -> tuple[tuple[str, ...], str]:
        """(names of the places, the move); nothing when no place holds it."""
        key = (scheme, shape)
        if key not in self._known:
            self._known[key] = self._index(scheme, shape)
        found = self._known[key].get(digest, [])
        if not found:
            return (), ""
        move = found[0][1]
        return tuple(name for name, made in found if made == move), move

    def _index(self, scheme: str, shape: Shape) -> dict[str, list[tuple[str, str]]]:
        known: dict[str, list[tuple[str, str]]] = {}
        for place in self._there.values():
            for move in moves(shape) if place.datatype not in (*BIASES, "qcint4", "qbint4") else [""]:
                try:
                    value = read(self._container, place, scheme, shape, move)
                except Refused:
                    break  # of this size or type it is after no move
                known.setdefault(digest_of(value), []).append((place.name, move))
        return known


def walk(there: dict[str, Place]) -> Iterator[tuple[str, Shape, str]]:
    """(name, shape, type) of every constant, as `listing` wants them; the shape is that of its stored elements."""
    bits = CODE_BITS | {"fp16": 16, "float16": 16, "int8": 8, "uint8": 8, "bool": 8, "int16": 16, "int64": 64}
    for place in (place for place in there.values() if "*" not in place.name):
        yield place.name, (place.data.size * 8 // bits.get(place.datatype, 32),), place.datatype
