"""What `kernels` computes, written to be read: plain numpy in float64, no speed. The tests' oracle.

Only two things are float32 here because the kernels define them so: the plain scale before it is rounded to the grid,
and the weights themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import SCALE_FLOOR, IntegerRange, to_bfloat16

Floats = NDArray[np.float64]


def widen(rows: NDArray[Any], dtype: str) -> Floats:
    """Rows of "bf16" or "fp16" (uint16 bits, or float16) or "fp32" as float64, exactly."""
    if dtype == "bf16":
        return (rows.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "fp16" and rows.dtype == np.uint16:
        return rows.view(np.float16).astype(np.float64)
    return rows.astype(np.float64)


def plain_scale(part: Floats, codes: IntegerRange, signed: bool = False) -> float:
    """The scale of one group at which nothing is clipped by more than half a step (8 bits: at all), unrounded.

    signed: the scale may be negative, so that the lowest code serves the side that reaches further.
    """
    slack = 0.5 if codes.bits <= 4 else 0.0
    up = np.float32(max(part.max(initial=0.0), 0.0))
    down = np.float32(max(-part.min(initial=0.0), 0.0))
    high, low = np.float32(codes.high + slack), np.float32(slack - codes.low)
    if signed and up > down:
        return -float(max(up / low, down / high))
    return float(max(up / high, down / low))


def round_scale(scale: float, signed: bool = False) -> float:
    """Onto the grid: portable (bf16, at least 2**-14), or fp16 of either sign."""
    if signed:
        return float(np.float16(scale))
    return max(float(to_bfloat16(np.array([scale], np.float32))[0]), SCALE_FLOOR)


def code(part: Floats, scale: float, codes: IntegerRange) -> NDArray[np.int8]:
    """clip(round_half_even(w / scale)); 0 everywhere for scale 0."""
    if scale == 0.0:
        return np.zeros(part.shape, np.int8)
    coded: NDArray[np.int8] = np.clip(np.rint(part / scale), codes.low, codes.high).astype(np.int8)
    return coded


def loss(part: Floats, scale: float, codes: IntegerRange, weight: Floats | float = 1.0) -> float:
    """Σu(w − scale·code)²."""
    return float((weight * (part - scale * code(part, scale, codes).astype(np.float64)) ** 2).sum())


def every_scale(start: float, signed: bool = False) -> list[float]:
    """All scales of the grid between 0.08 and 1.4 of `start`: bf16 steps; for fp16 as many, of both signs."""
    first = int(np.float32(0.08 * abs(start)).view(np.uint32)) >> 16
    last = int(np.float32(1.4 * abs(start)).view(np.uint32)) >> 16
    steps = (np.arange(first, last + 1, dtype=np.uint32) << 16).view(np.float32)
    found = [round_scale(float(s), signed) for s in steps]
    return found + [-s for s in found] if signed else found


def best_scale(part: Floats, codes: IntegerRange, signed: bool = False, weight: Floats | float = 1.0) -> float:
    """The scale of the least loss of all on the grid: exhaustive."""
    start = plain_scale(part, codes, signed)
    return min(every_scale(start, signed), key=lambda s: loss(part, s, codes, weight)) if start else round_scale(0.0)


def least_loss(part: Floats, codes: IntegerRange, signed: bool = False) -> float:
    """The least Σ(w − s·code)² that any real scale s > 0 (signed: or < 0) reaches: exact, but for rounding s.

    Codes change only where some w/s is half an integer. Between two such scales they are fixed, and the best scale for
    them explains (Σw·code)²/Σcode² of the energy.
    """
    energy = float((part**2).sum())
    explained = 0.0
    for side in (part, -part) if signed else (part,):
        edges = (side[:, None] / (np.arange(codes.low, codes.high) + 0.5)).ravel()
        edges = np.unique(edges[edges > 0])
        between = np.sqrt(edges[1:] * edges[:-1]) if edges.size > 1 else edges
        q = np.clip(np.rint(side / between[:, None]), codes.low, codes.high)
        used = q.any(axis=1)
        explained = max(explained, *((q[used] @ side) ** 2 / (q[used] ** 2).sum(axis=1)), 0.0)
    return energy - explained


def fold(rows: Floats, codes: IntegerRange, group: int, signed: bool = False) -> tuple[NDArray[np.int8], Floats]:
    """Codes int8 [R, K] and plain scales [R, K/group] (all-zero groups: the floor, or 0 where signed)."""
    coded = np.zeros(rows.shape, np.int8)
    scales = np.zeros((rows.shape[0], -(-rows.shape[1] // group)), np.float64)
    for r, row in enumerate(rows):
        for g in range(scales.shape[1]):
            part = row[g * group : (g + 1) * group]
            scales[r, g] = round_scale(plain_scale(part, codes, signed), signed)
            coded[r, g * group : (g + 1) * group] = code(part, scales[r, g], codes)
    return coded, scales


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Element j of a row at bits j·bits of its little-endian stream, through one Python integer per row."""
    rows = []
    for row in codes:
        stream = sum((int(c) & ((1 << bits) - 1)) << (j * bits) for j, c in enumerate(row))
        rows.append(np.frombuffer(stream.to_bytes((len(row) * bits + 7) // 8, "little"), np.uint8))
    return np.stack(rows)


def q4_0_blocks(codes: NDArray[np.int8], scales: Floats) -> NDArray[np.uint8]:
    """llama.cpp's block_q4_0 of codes [R, K], fp16 scales [R, K/32]: d, then byte j = q[j] + 8 | (q[j+16] + 8) << 4."""
    rows, columns = codes.shape
    q = (codes.astype(np.int16) + 8).astype(np.uint8).reshape(rows, columns // 32, 2, 16)
    nibbles = q[:, :, 0] | (q[:, :, 1] << np.uint8(4))
    d = scales.astype("<f2").view(np.uint8).reshape(rows, columns // 32, 2)
    blocks: NDArray[np.uint8] = np.concatenate([d, nibbles], axis=2)
    return blocks.reshape(rows, -1)
