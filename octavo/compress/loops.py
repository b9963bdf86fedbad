"""The compiled loops under `kernels`: widening, scale choice, coding and packing of one row at a time.

Rules that make the same input give the same bytes on every machine: no fast-math, so LLVM may neither reorder a sum
nor fuse a multiply-add; every sum has a fixed order (16 lanes over candidates or over elements); every rounding is to
nearest, ties to even. Dividing a float32 weight by a scale of at most 11 significant bits rounds to the same side of a
half as exact arithmetic does, so the codes equal those of a float64 reference.

Loops run over a constant 16 lanes inside one array because that is the form LLVM turns into vector code without
run-time overlap checks; scalars stay float32 because a float64 operand would halve the width.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

LANES = 16
BLOCK = 128  # elements per float32 partial sum, before it is folded into float64
BF16, FP16, FP32 = 0, 1, 2
PLAIN, SEARCH, GIVEN = 0, 1, 2
PORTABLE, NATIVE_Q4_0 = 0, 1
MSE, SQUARE, SPREAD, MAGNITUDE = 0, 1, 2, 3
Q4_0_BLOCK, Q4_0_BYTES = 32, 18

_MAGIC = np.float32(12582912.0)  # 1.5·2²³: adding it leaves the nearest integer in the low mantissa bits
_MAGIC_BITS = np.int32(0x4B400000)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_FLOOR = np.float32(2.0**-14)
_CEILING = np.float32(65280.0)
_HALF_MAX = np.float32(65504.0)
_HALF_WIDEN = np.float32(2.0**112)  # moves fp16's exponent bias (15) to float32's (127)
_HALF_TINY = np.float32(2.0**24)  # one over fp16's smallest step
_INFINITY = np.uint32(0x7F800000)
_SIGN = np.uint32(0x80000000)
_KEEP_GAIN = 1e-6  # a predicted gain below this share of the energy is checked by coding both

_JIT = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**_JIT)
def _as_float(u):
    return np.uint32(u).view(np.float32)


@njit(**_JIT)
def _widen(halves, words, kind, r, bits, w):
    """Write row r as float32 into `bits` (uint32) and its view `w` (float32); exact for all three types."""
    if kind == FP32:
        row = words[r]
        for j in range(bits.size):
            bits[j] = row[j]
        return
    half = halves[r]
    if kind == BF16:
        for j in range(bits.size):
            bits[j] = np.uint32(half[j]) << np.uint32(16)
        return
    for j in range(bits.size):
        bits[j] = (np.uint32(half[j]) & np.uint32(0x7FFF)) << np.uint32(13)
    for j in range(bits.size):
        w[j] = w[j] * _HALF_WIDEN
    for j in range(bits.size):
        magnitude = np.uint32(half[j]) & np.uint32(0x7FFF)
        lost = _INFINITY if magnitude >= np.uint32(0x7C00) else np.uint32(0)
        bits[j] = bits[j] | lost | ((np.uint32(half[j]) & np.uint32(0x8000)) << np.uint32(16))


@njit(**_JIT)
def _largest(bits, a, b, flip):
    """Largest value of ±w[a:b] (minus when flip is the sign bit), at least 0, as float32 bits: an integer maximum."""
    top = np.int32(0)
    for j in range(a, b):
        v = np.int32(bits[j] ^ flip)
        top = v if v > top else top
    return np.uint32(top)


@njit(**_JIT)
def _count_nonfinite(bits, a, b):
    n = 0
    for j in range(a, b):
        if (bits[j] & _INFINITY) == _INFINITY:
            n += 1
    return n


@njit(**_JIT)
def _to_bf16(s):
    u = np.float32(s).view(np.uint32)
    odd = (u >> np.uint32(16)) & np.uint32(1)
    return np.uint32(np.uint32(u + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)


@njit(**_JIT)
def _half_bits(s):
    """The fp16 nearest to s (ties to even, saturating at ±65504) as its 16 bits."""
    u = np.float32(s).view(np.uint32)
    sign = (u & _SIGN) >> np.uint32(16)
    size = np.uint32(u & np.uint32(0x7FFFFFFF)).view(np.float32)
    if size >= _HALF_MAX:
        return np.uint32(sign | np.uint32(0x7BFF))
    if size < _FLOOR:
        steps = (size * _HALF_TINY + _MAGIC) - _MAGIC
        return np.uint32(sign | np.uint32(steps))
    v = np.float32(size).view(np.uint32)
    v = np.uint32(v + np.uint32(0xFFF) + ((v >> np.uint32(13)) & np.uint32(1)))
    return np.uint32(sign | ((v >> np.uint32(13)) - np.uint32(112 << 10)))


@njit(**_JIT)
def _from_half(h):
    """The value of the finite fp16 with bits h, as float32."""
    size = np.uint32((h & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * _HALF_WIDEN
    return -size if (h & np.uint32(0x8000)) != 0 else size


@njit(**_JIT)
def _round_scale(s, native):
    """Put s on the format's grid. Returns the scale, whether it was raised to the floor, whether it is too large."""
    if native == NATIVE_Q4_0:
        d = _from_half(_half_bits(s))
        return d, d == _ZERO and s != _ZERO, abs(s) >= np.float32(65520.0)
    p = _to_bf16(s)
    if p < _FLOOR:
        return _FLOOR, True, False
    if p > _CEILING:
        return _CEILING, False, True
    return p, False, False


@njit(**_JIT)
def _weigh(w, importance, objective, u):
    """Fill u [K] with the weight of each element's squared error under the objective."""
    spread = _ZERO
    if objective == SPREAD:
        total = 0.0
        for j in range(w.size):
            total += np.float64(w[j]) * np.float64(w[j])
        spread = np.float32(total / w.size)
    given = importance.size > 0
    for j in range(w.size):
        g = importance[j] if given else _ONE
        if objective == SQUARE:
            g = g * (w[j] * w[j])
        elif objective == SPREAD:
            g = g * np.sqrt(spread + w[j] * w[j])
        elif objective == MAGNITUDE:
            g = g * abs(w[j])
        u[j] = g


@njit(**_JIT)
def _candidate_sums(w, u, a, b, lo, hi, lanes, total):
    """For 16 scales s (lanes[48:64], inverses in lanes[32:48]): total[0:16] += Σu·w·q, total[16:32] += Σu·q²."""
    for c in range(2 * LANES):
        lanes[c] = _ZERO
    for j in range(a, b):
        x = w[j]
        g = u[j]
        y = x * g
        for c in range(LANES):
            q = x * lanes[2 * LANES + c]
            q = q if q > lo else lo
            q = q if q < hi else hi
            q = (q + _MAGIC) - _MAGIC
            lanes[c] += y * q
            lanes[LANES + c] += g * q * q
    for c in range(2 * LANES):
        total[c] += np.float64(lanes[c])


@njit(**_JIT)
def _search(w, u, a, b, start, plain, factors, lo, hi, native, lanes, total):
    """The scale of w[a:b] with the least predicted Σu(w − s·q)², and whether its gain over `plain` is beyond doubt.

    Fifteen scales start·factor and `plain` itself each give codes q; with those the best scale is Σuwq/Σuq², which
    explains s(2Σuwq − s·Σuq²) of the energy once s is rounded to the grid (llama.cpp's make_qx_quants uses the same
    two sums; squared error as the objective: Nagel et al., arXiv:2106.08295, eq. 5).
    """
    for c in range(LANES - 1):
        lanes[3 * LANES + c] = start * factors[c]
    lanes[4 * LANES - 1] = plain
    for c in range(LANES):
        lanes[2 * LANES + c] = _ONE / lanes[3 * LANES + c]
    for c in range(2 * LANES):
        total[c] = 0.0
    for block in range(a, b, BLOCK):
        _candidate_sums(w, u, block, min(block + BLOCK, b), lo, hi, lanes, total)
    for c in range(LANES):
        s = np.float32(total[c] / total[LANES + c])
        lanes[c] = s if native == NATIVE_Q4_0 else _to_bf16(s)
    for c in range(LANES):
        s = np.float64(lanes[c])
        total[2 * LANES + c] = s * (2.0 * total[c] - s * total[LANES + c])
    s = np.float64(plain)
    before = s * (2.0 * total[LANES - 1] - s * total[2 * LANES - 1])
    best, explained = plain, before
    for c in range(LANES):
        if total[2 * LANES + c] > explained:
            best, explained = lanes[c], total[2 * LANES + c]
    return best, explained - before > _KEEP_GAIN * explained


@njit(**_JIT)
def _encode(w, a, b, scale, lo, hi, codes):
    """codes[a:b] = clip(round_half_even(w/scale), lo, hi)."""
    for j in range(a, b):
        q = w[j] / scale
        q = q if q > lo else lo
        q = q if q < hi else hi
        codes[j] = np.int8((q + _MAGIC) - _MAGIC)


@njit(**_JIT)
def _loss(w, u, a, b, scale, codes):
    """Σu(w − scale·code)² over a:b in float64."""
    total = 0.0
    for j in range(a, b):
        e = np.float64(w[j]) - np.float64(scale) * np.float64(codes[j])
        total += np.float64(u[j]) * (e * e)
    return total


@njit(**_JIT)
def _energy(w, a, b, scale, codes, acc):
    """Add Σw² to acc[0:16] and Σ(w − scale·code)² to acc[16:32], element j in lane (j − a) mod 16; products exact."""
    whole = a + (b - a) // LANES * LANES
    s = np.float64(scale)
    for j in range(a, whole, LANES):
        for c in range(LANES):
            x = np.float64(w[j + c])
            e = x - s * np.float64(codes[j + c])
            acc[c] += x * x
            acc[LANES + c] += e * e
    for j in range(whole, b):
        x = np.float64(w[j])
        e = x - s * np.float64(codes[j])
        acc[j - whole] += x * x
        acc[LANES + j - whole] += e * e


@njit(**_JIT)
def _pack_row(codes, bits, out):
    """Element j's low `bits` bits go to bits j·bits… of the row's little-endian stream; the last byte is padded by 0."""
    k = codes.size
    if bits == 8:
        for j in range(k):
            out[j] = np.uint8(codes[j])
        return
    if bits == 4:
        for i in range(k // 2):
            out[i] = (np.uint8(codes[2 * i]) & np.uint8(15)) | (np.uint8(codes[2 * i + 1]) << np.uint8(4))
        if k % 2:
            out[k // 2] = np.uint8(codes[k - 1]) & np.uint8(15)
        return
    mask = np.uint32((1 << bits) - 1)
    per = 8  # eight codes fill exactly `bits` bytes
    for g in range((k + per - 1) // per):
        stream = np.uint32(0)
        for j in range(min(per, k - g * per)):
            stream |= (np.uint32(codes[g * per + j]) & mask) << np.uint32(j * bits)
        for byte in range(min(bits, out.size - g * bits)):
            out[g * bits + byte] = np.uint8((stream >> np.uint32(8 * byte)) & np.uint32(255))


@njit(**_JIT)
def _q4_0_row(codes, scales, out):
    """llama.cpp's block_q4_0: fp16 d, then byte j = (q[j] + 8) | (q[j + 16] + 8) << 4."""
    for g in range(scales.size):
        h = _half_bits(scales[g])
        o = g * Q4_0_BYTES
        out[o] = np.uint8(h & np.uint32(255))
        out[o + 1] = np.uint8(h >> np.uint32(8))
        for j in range(16):
            low = np.uint8(codes[g * Q4_0_BLOCK + j]) + np.uint8(8)
            high = np.uint8(codes[g * Q4_0_BLOCK + 16 + j]) + np.uint8(8)
            out[o + 2 + j] = (low & np.uint8(15)) | (high << np.uint8(4))


@njit(**_JIT)
def _start(bits, a, b, lo, hi, slack, native):
    """The unrounded scale at which no weight of a:b is clipped by more than `slack` of a step."""
    up = _as_float(_largest(bits, a, b, np.uint32(0)))
    down = _as_float(_largest(bits, a, b, _SIGN))
    if native == NATIVE_Q4_0 and up > down:  # the side that reaches further gets the extra code, −8
        return -max(up / (slack - lo), down / (hi + slack))
    return max(up / (hi + slack), down / (slack - lo))


@njit(**_JIT)
def _choose(w, u, a, b, start, plain, factors, lo, hi, native, lanes, total, codes):
    """Search the scale and code w[a:b] with it; never a larger error than `plain` gives. Returns the scale."""
    best, sure = _search(w, u, a, b, start, plain, factors, lo, hi, native, lanes, total)
    rounded, floored, over = _round_scale(best, native)
    if rounded == plain or rounded == _ZERO or over:
        _encode(w, a, b, plain, lo, hi, codes)
        return plain
    if sure and not floored:
        _encode(w, a, b, rounded, lo, hi, codes)
        return rounded
    _encode(w, a, b, plain, lo, hi, codes)
    before = _loss(w, u, a, b, plain, codes)
    _encode(w, a, b, rounded, lo, hi, codes)
    if _loss(w, u, a, b, rounded, codes) < before:
        return rounded
    _encode(w, a, b, plain, lo, hi, codes)
    return plain


def _array(dtype, ndim, readonly=False):
    return types.Array(dtype, ndim, "C", readonly=readonly)


_ROWS = (_array(types.uint16, 2, True), _array(types.uint32, 2, True), types.int64)


@njit(
    types.void(
        *_ROWS, types.int64, types.int64, types.int64, types.float32, types.float32, types.float32, types.int64,
        _array(types.float32, 1, True), types.int64, _array(types.float32, 1, True), types.int64,
        _array(types.float32, 2), _array(types.uint8, 2), _array(types.float64, 2), _array(types.int64, 1),
    ),
    **_JIT,
)  # fmt: skip
def fold_rows(
    halves, words, kind, columns, group, mode, lo, hi, slack, native,
    factors, objective, importance, stored_bits, scales, packed, energy, counts,
):  # fmt: skip
    """Code every row; see `kernels.fold`. counts += (non-finite weights, floored scales, scales too large)."""
    bits = np.empty(columns, np.uint32)
    w = bits.view(np.float32)
    codes = np.empty(columns, np.int8)
    u = np.ones(columns, np.float32)
    lanes = np.ones(4 * LANES, np.float32)
    total = np.zeros(3 * LANES, np.float64)
    acc = np.empty(2 * LANES, np.float64)
    weighted = mode == SEARCH and (objective != MSE or importance.size > 0)
    for r in range(scales.shape[0]):
        _widen(halves, words, kind, r, bits, w)
        if weighted:
            _weigh(w, importance, objective, u)
        for c in range(2 * LANES):
            acc[c] = 0.0
        for g in range(scales.shape[1]):
            a = g * group
            b = a + group
            start = _start(bits, a, b, lo, hi, slack, native)
            if not abs(start) < np.inf:
                counts[0] += _count_nonfinite(bits, a, b)
            plain, floored, over = _round_scale(start, native)
            if mode == GIVEN:
                plain, floored, over = scales[r, g], False, False
            counts[2] += over
            if start == _ZERO or plain == _ZERO or not abs(start) < np.inf:
                for j in range(a, b):
                    codes[j] = 0
                counts[1] += floored and start != _ZERO
            elif mode == SEARCH and not floored and not over:
                plain = _choose(w, u, a, b, start, plain, factors, lo, hi, native, lanes, total, codes)
            else:
                counts[1] += floored
                _encode(w, a, b, plain, lo, hi, codes)
            scales[r, g] = plain
            _energy(w, a, b, plain, codes, acc)
        for half in range(2):
            sum_ = 0.0
            for c in range(LANES):
                sum_ += acc[half * LANES + c]
            energy[r, half] = sum_
        if native == NATIVE_Q4_0:
            _q4_0_row(codes, scales[r], packed[r])
        else:
            _pack_row(codes, stored_bits, packed[r])


@njit(types.void(*_ROWS, types.int64, _array(types.float64, 2)), **_JIT)
def measure_rows(halves, words, kind, columns, out):
    """out[r] = (largest w, largest −w, both at least 0; Σ|w| in 16 lanes; count of non-finite weights)."""
    bits = np.empty(columns, np.uint32)
    w = bits.view(np.float32)
    acc = np.empty(LANES, np.float64)
    whole = columns // LANES * LANES
    for r in range(out.shape[0]):
        _widen(halves, words, kind, r, bits, w)
        up = _largest(bits, 0, columns, np.uint32(0))
        down = _largest(bits, 0, columns, _SIGN)
        out[r, 0] = _as_float(up)
        out[r, 1] = _as_float(down)
        out[r, 3] = _count_nonfinite(bits, 0, columns) if max(up, down) >= _INFINITY else 0
        for c in range(LANES):
            acc[c] = 0.0
        for j in range(0, whole, LANES):
            for c in range(LANES):
                acc[c] += np.float64(abs(w[j + c]))
        for j in range(whole, columns):
            acc[j - whole] += np.float64(abs(w[j]))
        sum_ = 0.0
        for c in range(LANES):
            sum_ += acc[c]
        out[r, 2] = sum_


@njit(
    types.void(
        *_ROWS, types.int64, _array(types.float32, 1, True), types.float32, types.float32, types.int64,
        _array(types.float32, 1, True), _array(types.float64, 2),
    ),
    **_JIT,
)  # fmt: skip
def explain_rows(halves, words, kind, columns, candidates, lo, hi, objective, importance, out):
    """out[r] = (Σu·w·q for each of 16 candidate scales, then Σu·q²): what a per-tensor search adds up over rows."""
    bits = np.empty(columns, np.uint32)
    w = bits.view(np.float32)
    u = np.ones(columns, np.float32)
    lanes = np.ones(4 * LANES, np.float32)
    for c in range(LANES):
        lanes[3 * LANES + c] = candidates[c]
        lanes[2 * LANES + c] = _ONE / candidates[c]
    for r in range(out.shape[0]):
        _widen(halves, words, kind, r, bits, w)
        _weigh(w, importance, objective, u)
        out[r] = 0.0
        for block in range(0, columns, BLOCK):
            _candidate_sums(w, u, block, min(block + BLOCK, columns), lo, hi, lanes, out[r])
