"""The portable scale, and how codes are packed into bytes (the integer ranges are ranges.py's).

A portable scale is one that every runtime's file format holds exactly: LiteRT and XNNPACK keep about eight mantissa
bits (bf16), GGUF keeps fp16, ONNX and Core ML keep fp16 or fp32. Their intersection is `fp16(bf16(s))` between
2**-14 (the smallest normal fp16) and 65280 (the largest bf16 below fp16's maximum).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.core.ranges import INT2 as INT2
from octavo.core.ranges import INT3 as INT3
from octavo.core.ranges import INT4 as INT4
from octavo.core.ranges import INT8 as INT8
from octavo.core.ranges import TERNARY as TERNARY
from octavo.core.ranges import IntegerRange as IntegerRange
from octavo.core.ranges import packed_row_bytes as packed_row_bytes
from octavo.errors import Refused

SCALE_FLOOR = 2.0**-14
SCALE_CEILING = 65280.0


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 values to the nearest bfloat16, ties to even, kept as float32 (IEEE 754 round-to-nearest)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    number = (bits & np.uint32(0x7FFFFFFF)) <= np.uint32(0x7F800000)  # the sum would wrap some NaNs round to zero
    return np.where(number, rounded & np.uint32(0xFFFF0000), np.uint32(0x7FC00000)).view(np.float32)


def portable_scale(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round positive scales to the portable grid: bf16, clamped below at 2**-14.

    Raises Refused when a scale exceeds 65280 (no clamp is possible there without changing the weights) or is NaN.
    """
    rounded = to_bfloat16(scale)
    over = int((rounded > SCALE_CEILING).sum()) + int((~np.isfinite(rounded)).sum())
    if over:
        raise Refused(
            f"{over} of {rounded.size} scales exceed {SCALE_CEILING:g}, the largest that every runtime can hold.",
            "Scale the weights down, or keep this tensor in float.",
        )
    return np.maximum(rounded, np.float32(SCALE_FLOOR))


def is_portable(scale: NDArray[np.float32]) -> bool:
    """Whether every scale already lies on the portable grid."""
    inside = (scale >= SCALE_FLOOR) & (scale <= SCALE_CEILING)
    return bool(inside.all() and (to_bfloat16(scale) == scale).all())


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Pack codes [rows, columns] into bytes [rows, ceil(columns·bits / 8)].

    Element j of a row occupies bits j·bits … (j+1)·bits − 1 of the row's little-endian bit stream; padding is zero.
    """
    rows, columns = codes.shape
    if bits == 8:
        return np.ascontiguousarray(codes).view(np.uint8)
    fields = codes.view(np.uint8) & np.uint8((1 << bits) - 1)
    if 8 % bits == 0:
        per_byte = 8 // bits
        padded = np.zeros((rows, packed_row_bytes(columns, bits) * per_byte), np.uint8)
        padded[:, :columns] = fields
        packed = padded[:, 0::per_byte].copy()
        for place in range(1, per_byte):
            packed |= padded[:, place::per_byte] << np.uint8(place * bits)
        return packed
    stream = (fields[:, :, None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    return np.packbits(stream.reshape(rows, columns * bits), axis=1, bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.int8]:
    """Undo `pack`: bytes [rows, ceil(columns·bits / 8)] to codes int8 [rows, columns]."""
    rows = packed.shape[0]
    if bits == 8:
        return packed.view(np.int8)[:, :columns]
    if 8 % bits == 0:
        per_byte = 8 // bits
        spread = np.empty((rows, packed.shape[1], per_byte), np.uint8)
        for place in range(per_byte):
            spread[:, :, place] = packed >> np.uint8(place * bits)
        fields = spread.reshape(rows, -1)[:, :columns]
    else:
        stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : columns * bits]
        weights = (1 << np.arange(bits)).astype(np.uint8)
        fields = (stream.reshape(rows, columns, bits) * weights).sum(axis=2, dtype=np.uint8)
    shift = np.uint8(8 - bits)
    return (fields << shift).view(np.int8) >> np.int8(8 - bits)
