"""How a tensor lies in a .tflite file, and the exact moves between that and codes and scales.

codes    INT8, or INT4 in one run of nibbles (low first), axes permuted; scales FLOAT32 per channel or tensor in the
         tensor's quantisation, or FLOAT16 per block of a row in a tensor of their own (blockwise)
floats   FLOAT32, or FLOAT16 behind a DEQUANTIZE
bias     INT32 or INT64 codes, whose scale is the input's times the weight's
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import pack, unpack
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused


def bits_of(scheme: str) -> int:
    """Bits that a code of `scheme` takes in the file."""
    grid = SCHEMES[scheme].range
    assert grid is not None
    return 4 if grid.bits <= 4 else 8


def encode(value: QuantizedTensor, axes: tuple[int, ...], bits: int) -> NDArray[np.uint8]:
    """The bytes of INT8 or INT4 codes with their axes permuted."""
    turned = np.ascontiguousarray(value.codes.transpose(axes))
    return pack(turned.reshape(1, -1), bits).reshape(-1).view(np.uint8)


def decode(
    name: str, scheme: str, shape: tuple[int, ...], axes: tuple[int, ...], data: NDArray[np.uint8], bits: int,
    scale: NDArray[np.float32],
) -> QuantizedTensor:  # fmt: skip
    """Bytes and scales back to the scheme's own codes and scales. Raises Refused when they cannot be of that scheme."""
    grid, count = SCHEMES[scheme], prod(shape)
    assert grid.range is not None
    if data.size != (count * bits + 7) // 8:
        raise Refused(
            f"{name}: {data.size} bytes lie there; {count} codes of {bits} bits take {(count * bits + 7) // 8}."
        )
    turned = unpack(data.reshape(1, -1), bits, count).reshape([shape[axis] for axis in axes])
    codes = np.ascontiguousarray(turned.transpose(np.argsort(axes)))
    if not grid.range.holds(codes):
        raise Refused(
            f"{name}: codes from {codes.min()} to {codes.max()}; {scheme} has {grid.range.low} to {grid.range.high}."
        )
    block = grid.block(shape)
    groups = tuple(size // step for size, step in zip(shape, block, strict=True))
    if prod(groups) == 1 and scale.size and (scale == scale.reshape(-1)[0]).all():
        scale = scale.reshape(-1)[:1]  # one scale per tensor, written once per channel where a kernel wants it so
    if scale.size != prod(groups):
        raise Refused(f"{name}: {scale.size} scales lie there; {scheme} of {list(shape)} has {prod(groups)}.")
    return QuantizedTensor(codes, np.ascontiguousarray(scale.reshape(groups), np.float32), block, grid.range)


ZEROS = "negative zeros at "
BIAS = "to integers, scales multiplied "
PRODUCTS = {"in float32": np.float32, "in float64": np.float64}


def bias_values(
    codes: NDArray[Any], into: np.float32, weight: NDArray[np.float32], product: str
) -> NDArray[np.float32]:
    """float32 values of a bias's codes: times the input's scale times the weight's, computed as `product` says."""
    kind = PRODUCTS[product]
    scale = kind(into) * weight.astype(kind)
    found: NDArray[np.float32] = (codes.astype(kind) * scale.astype(kind)).astype(np.float32)
    return found


def negative_zeros(values: NDArray[np.float32]) -> tuple[str, ...]:
    """The move that says where a float tensor has −0, which no integer code can say."""
    places = np.nonzero(np.signbit(values.reshape(-1)) & (values.reshape(-1) == 0))[0]
    return (f"{ZEROS}{','.join(map(str, places))}",) if places.size else ()


def with_negative_zeros(values: NDArray[np.float32], moves: tuple[str, ...]) -> NDArray[np.float32]:
    """Undo that move. Raises ValueError for a place that holds another number."""
    for move in moves:
        if move.startswith(ZEROS):
            places = [int(place) for place in move.removeprefix(ZEROS).split(",")]
            if values[places].any():
                raise ValueError(f"'{move}': other numbers lie there")
            values[places] = np.float32(-0.0)
    return values


def product_of(moves: tuple[str, ...]) -> str:
    """How the scale of a bias was computed, out of its moves."""
    return next((move.removeprefix(BIAS) for move in moves if move.startswith(BIAS)), "in float64")


def constant_values(codes: NDArray[Any], scale: np.float32, zero: int) -> NDArray[np.float32]:
    """float32 values of a constant that was quantised as activations are."""
    return (codes.astype(np.int64) - zero).astype(np.float32) * np.float32(scale)
