"""QuantizedTensor: integer codes and their scales, and the moves that change neither.

    w ≈ scale · (code − zero_point)

`block` says how many neighbouring elements share a scale along each axis (the granularity of torchao, made one rule):

    per tensor      shape [O, I], block [O, I]     scale [1, 1]
    per channel     shape [O, I], block [1, I]     scale [O, 1]
    per group of g  shape [O, I], block [1, g]     scale [O, I/g]
    convolution     shape [O, I, h, w], block [1, I, h, w]  scale [O, 1, 1, 1]
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import IntegerRange, pack
from octavo.errors import Refused

_INT8 = IntegerRange(8, -128, 127)  # what codes and zero points are held in


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes int8 of the tensor's own shape, scale float32 of shape `shape / block`, optional zero point of that shape.

    Raises ValueError when the shapes, the block or the range do not agree.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    block: tuple[int, ...]
    range: IntegerRange
    zero_point: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        shape = self.codes.shape
        if self.codes.dtype != np.int8 or self.scale.dtype != np.float32:
            raise ValueError(f"codes {self.codes.dtype} and scale {self.scale.dtype}: expected int8 and float32")
        if len(self.block) != len(shape) or any(b < 1 or s % b for s, b in zip(shape, self.block, strict=True)):
            raise ValueError(f"block {self.block} does not divide shape {shape}")
        groups = tuple(s // b for s, b in zip(shape, self.block, strict=True))
        if self.scale.shape != groups:
            raise ValueError(f"scale of shape {self.scale.shape} for shape {shape} and block {self.block}: {groups}")
        if self.zero_point is not None and (self.zero_point.shape != groups or self.zero_point.dtype != np.int8):
            raise ValueError(
                f"zero point {self.zero_point.dtype} of shape {self.zero_point.shape}: expected int8 {groups}"
            )
        if not self.range.holds(self.codes):
            raise ValueError(
                f"codes in [{self.codes.min()}, {self.codes.max()}] outside [{self.range.low}, {self.range.high}]"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.codes.shape
        return shape

    def dequantize(self) -> NDArray[np.float32]:
        """Return scale · (code − zero_point) as float32 of the tensor's shape."""
        split, groups = _split(self.shape, self.block)
        codes = self.codes.reshape(split).astype(np.float32)
        if self.zero_point is not None:
            codes -= self.zero_point.reshape(groups).astype(np.float32)
        return (codes * self.scale.reshape(groups)).reshape(self.shape)

    def widen(self, range: IntegerRange) -> QuantizedTensor:
        """The same codes in a wider integer type. Raises Refused when the range does not hold them."""
        if not range.holds(self.codes):
            raise Refused(f"codes of {self.range} do not fit {range}.", "Choose a wider type.")
        return QuantizedTensor(self.codes, self.scale, self.block, range, self.zero_point)

    def refine(self, block: tuple[int, ...]) -> QuantizedTensor:
        """Repeat each scale over smaller blocks. Raises Refused when `block` does not divide the present one."""
        if not _divides(block, self.block):
            raise Refused(f"block {block} does not divide the present block {self.block}.")
        scale, zero_point = self.scale, self.zero_point
        for axis, (old, new) in enumerate(zip(self.block, block, strict=True)):
            if old != new:
                scale = np.repeat(scale, old // new, axis=axis)
                zero_point = None if zero_point is None else np.repeat(zero_point, old // new, axis=axis)
        return QuantizedTensor(self.codes, scale, block, self.range, zero_point)

    def coarsen(self, block: tuple[int, ...]) -> QuantizedTensor:
        """Undo `refine`. Raises Refused when the scales or zero points inside one larger block differ."""
        if not _divides(self.block, block) or not _divides(block, self.shape):
            raise Refused(f"block {block} of shape {self.shape} is not made of whole blocks {self.block}.")
        firsts = tuple(slice(None, None, new // old) for old, new in zip(self.block, block, strict=True))
        scale = self.scale[firsts]
        zero_point = None if self.zero_point is None else self.zero_point[firsts]
        coarse = QuantizedTensor(self.codes, np.ascontiguousarray(scale), block, self.range, zero_point)
        repeated = coarse.refine(self.block)
        if not np.array_equal(repeated.scale, self.scale):
            raise Refused(f"scales differ inside a block {block}: they cannot be stored once.")
        before, after = self.zero_point, repeated.zero_point
        if before is not None and after is not None and not np.array_equal(before, after):
            raise Refused(f"zero points differ inside a block {block}: they cannot be stored once.")
        return coarse

    def shift(self, offset: int, range: IntegerRange) -> QuantizedTensor:
        """Add an integer to every code and to the zero point: the values stay. Raises Refused out of range."""
        codes = self.codes.astype(np.int64) + offset
        if not range.holds(codes) or not _INT8.holds(codes):
            raise Refused(f"codes shifted by {offset} leave [{range.low}, {range.high}] (held as int8).")
        before = np.zeros(self.scale.shape, np.int8) if self.zero_point is None else self.zero_point
        zero_point = before.astype(np.int64) + offset
        if not _INT8.holds(zero_point):
            raise Refused(f"zero points shifted by {offset} leave [{_INT8.low}, {_INT8.high}].")
        return QuantizedTensor(codes.astype(np.int8), self.scale, self.block, range, zero_point.astype(np.int8))

    def permute(self, axes: tuple[int, ...]) -> QuantizedTensor:
        """Reorder the axes."""
        zero_point = None if self.zero_point is None else np.ascontiguousarray(self.zero_point.transpose(axes))
        return QuantizedTensor(
            np.ascontiguousarray(self.codes.transpose(axes)),
            np.ascontiguousarray(self.scale.transpose(axes)),
            tuple(self.block[axis] for axis in axes),
            self.range,
            zero_point,
        )

    def take_rows(self, index: NDArray[np.integer[Any]]) -> QuantizedTensor:
        """Choose or reorder output channels (axis 0); every scale follows its row.

        Raises Refused when several rows, but not all, share a scale.
        """
        codes, scale, block, zero_point = self.codes[index], self.scale, self.block, self.zero_point
        if block[0] == 1:
            scale, zero_point = scale[index], None if zero_point is None else zero_point[index]
        elif block[0] == self.shape[0]:
            block = (len(codes), *block[1:])
        else:
            raise Refused(f"rows share their scales in blocks {block}: they cannot be moved one by one.")
        return QuantizedTensor(codes, scale, block, self.range, zero_point)

    def digest(self) -> str:
        """SHA-256 over the content: header, packed codes, scales, zero points; see `TensorDigest`."""
        digest = TensorDigest(self.shape, self.block, self.range)
        digest.codes(pack(self.codes.reshape(self.shape[0], prod(self.shape[1:])), self.range.bits))
        digest.scales(self.scale)
        if self.zero_point is not None:
            digest.zero_points(self.zero_point)
        return digest.hexdigest()


class TensorDigest:
    """The content digest of a quantised tensor, fed in row blocks so that no tensor need be held whole.

    It covers shape, block, range, the packed codes and the float32 scales: never how a file lays them out.
    """

    def __init__(self, shape: tuple[int, ...], block: tuple[int, ...], range: IntegerRange) -> None:
        header: dict[str, Any] = {"kind": "quantized", "shape": list(shape), "block": list(block)}
        header |= {"bits": range.bits, "low": range.low, "high": range.high}
        self._header = json.dumps(header, sort_keys=True).encode()
        self._parts = {"codes": hashlib.sha256(), "scales": hashlib.sha256(), "zero_points": hashlib.sha256()}

    def codes(self, packed: NDArray[np.uint8]) -> None:
        """Feed packed codes, rows in order."""
        self._parts["codes"].update(np.ascontiguousarray(packed).data)

    def scales(self, scale: NDArray[np.float32]) -> None:
        """Feed scales, rows in order."""
        self._parts["scales"].update(np.ascontiguousarray(scale, "<f4").data)

    def zero_points(self, zero_point: NDArray[np.int8]) -> None:
        """Feed zero points, rows in order."""
        self._parts["zero_points"].update(np.ascontiguousarray(zero_point).data)

    def hexdigest(self) -> str:
        whole = hashlib.sha256(self._header)
        for part in self._parts.values():
            whole.update(part.digest())
        return whole.hexdigest()


class FloatDigest:
    """The content digest of a float tensor: shape and values widened to float32 (exact for bf16 and fp16)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(json.dumps({"kind": "float", "shape": list(shape)}, sort_keys=True).encode())

    def update(self, values: NDArray[np.float32]) -> None:
        """Feed values, in order."""
        self._hash.update(np.ascontiguousarray(values, "<f4").data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def float_digest(values: NDArray[np.float32]) -> str:
    """SHA-256 of one float tensor; see `FloatDigest`."""
    digest = FloatDigest(values.shape)
    digest.update(values)
    return digest.hexdigest()


def _divides(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return len(small) == len(large) and all(s >= 1 and n % s == 0 for s, n in zip(small, large, strict=True))


def _split(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes that let a scale broadcast over its block: [s/b, b, …] for codes and [s/b, 1, …] for scales."""
    split: list[int] = []
    groups: list[int] = []
    for size, b in zip(shape, block, strict=True):
        split += [size // b, b]
        groups += [size // b, 1]
    return tuple(split), tuple(groups)
