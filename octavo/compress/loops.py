"""The compiled loops under `kernels`: widening, scale choice, coding and packing of one row at a time.

Rules that make the same input give the same bytes on every machine: no fast-math, so LLVM may neither reorder a sum
nor fuse a multiply-add; every sum has a fixed order (16 lanes over candidates or over elements); every rounding is to
nearest, ties to even. Dividing a float32 weight by a scale of at most 11 significant bits rounds to the same side of a
half as exact arithmetic does, so the codes equal those of a float64 reference.

The form of the loops is what LLVM turns into vector code: constant trip counts over tiles of 32 elements, float32
scalars, integer maxima, and offsets that are uint64 (a signed one is checked for a negative value and then gathered).
What runs once per group or oftener calls nothing that takes an array, or is called by a function that runs once per
row: numba counts references, atomically, around such calls, and that once took half of the time.
Rows are padded with zeros to whole tiles: a zero changes no maximum, no sum and no code.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

LANES = 16
TILE = 32
SPAN = 128  # elements whose float32 partial sums are folded into float64 at once
BF16, FP16, FP32 = 0, 1, 2
PLAIN, SEARCH, GIVEN = 0, 1, 2
PORTABLE, NATIVE_Q4_0 = 0, 1
MSE, SQUARE, SPREAD, MAGNITUDE = 0, 1, 2, 3
Q4_0_BYTES = 18
AS_BLOCKS = 0  # instead of a number of bits: packed as Q4_0 blocks, scales inside

_MAGIC = np.float32(12582912.0)  # 1.5·2²³: adding it leaves the nearest integer in the low mantissa bits
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_TWO = np.float32(2.0)
_SPLIT_16 = np.float32(65537.0)
_FLOOR = np.float32(2.0**-14)
_CEILING = np.float32(65280.0)
_HALF_MAX = np.float32(65504.0)
_HALF_BIAS = np.uint32(112 << 23)  # from fp16's exponent bias (15) to float32's (127)
_HALF_STEP = np.float32(2.0**-24)  # fp16's smallest
_HALF_TINY = np.float32(2.0**24)
_INFINITY = np.uint32(0x7F800000)
_SIGN = np.uint32(0x80000000)
_FLIP = np.int32(-0x80000000)
_KEEP_GAIN = np.float32(1e-6)  # a predicted gain below this share of the energy is checked by coding both

_JIT = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**_JIT)
def _as_float(u):
    return np.uint32(u).view(np.float32)


@njit(**_JIT)
def _widen(halves, words, kind, r, bits, w):
    """Write row r as float32 into the start of `bits` (uint32) and its view `w` (float32); exact for all types."""
    if kind == FP32:
        row = words[r]
        for j in range(row.size):
            bits[j] = row[j]
        return
    half = halves[r]
    if kind == BF16:
        for j in range(half.size):
            bits[j] = np.uint32(half[j]) << np.uint32(16)
        return
    for j in range(half.size):
        bits[j] = ((np.uint32(half[j]) & np.uint32(0x7FFF)) << np.uint32(13)) + _HALF_BIAS
    for j in range(half.size):  # subnormals by their integer, so that a thread set to flush denormals changes nothing
        magnitude = np.uint32(half[j]) & np.uint32(0x7FFF)
        w[j] = np.float32(np.int32(magnitude)) * _HALF_STEP if magnitude < np.uint32(0x400) else w[j]
    for j in range(half.size):
        magnitude = np.uint32(half[j]) & np.uint32(0x7FFF)
        lost = _INFINITY if magnitude >= np.uint32(0x7C00) else np.uint32(0)
        bits[j] = bits[j] | lost | ((np.uint32(half[j]) & np.uint32(0x8000)) << np.uint32(16))


@njit(**_JIT)
def _extremes(ints, a, n):
    """Largest w and largest −w of n elements from a, both at least 0; as integers, since positive floats sort alike."""
    up = np.int32(0)
    down = np.int32(0)
    for j in range(n):
        v = ints[a + np.uint64(j)]
        m = np.int32(v ^ _FLIP)
        up = v if v > up else up
        down = m if m > down else down
    return _as_float(np.uint32(up)), _as_float(np.uint32(down))


@njit(**_JIT)
def _count_nonfinite(bits, a, n):
    count = 0
    for j in range(n):
        if (bits[a + np.uint64(j)] & _INFINITY) == _INFINITY:
            count += 1
    return count


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
    magnitude = h & np.uint32(0x7FFF)
    if magnitude < np.uint32(0x400):
        size = np.float32(np.int32(magnitude)) * _HALF_STEP
    else:
        size = _as_float(np.uint32(magnitude << np.uint32(13)) + _HALF_BIAS)
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
def _weigh(w, columns, importance, objective, u):
    """Fill u[:columns] with the weight of each element's squared error under the objective."""
    spread = _ZERO
    if objective == SPREAD:
        total = 0.0
        for j in range(columns):
            total += np.float64(w[j]) * np.float64(w[j])
        spread = np.float32(total / columns)
    given = importance.size > 0
    for j in range(columns):
        g = importance[j] if given else _ONE
        if objective == SQUARE:
            g = g * (w[j] * w[j])
        elif objective == SPREAD:
            g = g * np.sqrt(spread + w[j] * w[j])
        elif objective == MAGNITUDE:
            g = g * abs(w[j])
        u[j] = g


@njit(**_JIT)
def _round_code(x, lo, hi):
    x = x if x > lo else lo
    x = x if x < hi else hi
    return (x + _MAGIC) - _MAGIC


@njit(**_JIT)
def _add_lanes(part, total):
    """Move the 32 float32 partial sums into the float64 totals."""
    for c in range(2 * LANES):
        total[c] += np.float64(part[c])
        part[c] = _ZERO


@njit(**_JIT)
def _candidate_sums(w, u, a, n, weighted, lo, hi, lanes):
    """For 16 scales (inverses in lanes[32:48]): lanes[0:16] += Σu·w·q, lanes[16:32] += Σu·q², q = the code of w."""
    for t in range(0, n, TILE):
        i = a + np.uint64(t)
        if weighted:
            for j in range(TILE):
                x = w[i + np.uint64(j)]
                g = u[i + np.uint64(j)]
                y = x * g
                for c in range(LANES):
                    q = _round_code(x * lanes[2 * LANES + c], lo, hi)
                    lanes[c] += y * q
                    lanes[LANES + c] += g * (q * q)
        else:
            for j in range(0, TILE, 2):  # two at a time: LLVM unrolls a smaller body before it can vectorise it
                x = w[i + np.uint64(j)]
                y = w[i + np.uint64(j + 1)]
                for c in range(LANES):
                    q = _round_code(x * lanes[2 * LANES + c], lo, hi)
                    r = _round_code(y * lanes[2 * LANES + c], lo, hi)
                    lanes[c] += x * q + y * r
                    lanes[LANES + c] += q * q + r * r


@njit(**_JIT)
def _long_sums(w, u, a, n, weighted, lo, hi, lanes, total):
    """`_candidate_sums` added to the float64 `total` span by span, so that a long row loses no precision."""
    for t in range(0, n, SPAN):
        _candidate_sums(w, u, a + np.uint64(t), min(SPAN, n - t), weighted, lo, hi, lanes)
        _add_lanes(lanes, total)


@njit(**_JIT)
def _propose(lanes, count, start, plain):
    """Lay out the candidates: start·factor (factors in lanes[96:112]), the last one `plain`; clear the sums."""
    for c in range(count):
        lanes[3 * LANES + c] = start * lanes[6 * LANES + c]
    lanes[4 * LANES - 1] = plain
    for c in range(count):
        lanes[2 * LANES + c] = _ONE / lanes[3 * LANES + c]
    for c in range(2 * LANES):
        lanes[c] = _ZERO


@njit(**_JIT)
def _refit(lanes, count, plain, native):
    """The best scale after the candidates' sums, and whether its gain over `plain` is beyond rounding.

    With a candidate's codes the best scale is s = Σuwq/Σuq², and explains s(2Σuwq − s·Σuq²) of the energy once s is
    rounded to the grid. `count` is 16, but not a constant: LLVM would unroll before it can vectorise.
    """
    before = plain * (_TWO * lanes[LANES - 1] - plain * lanes[2 * LANES - 1])
    split = _ZERO if native == NATIVE_Q4_0 else _SPLIT_16
    for c in range(count):
        s = lanes[c] / lanes[LANES + c]
        v = s * split  # to eight bits (Veltkamp's splitting), as the portable grid will
        s = s if native == NATIVE_Q4_0 else v - (v - s)
        explained = s * (_TWO * lanes[c] - s * lanes[LANES + c])
        lanes[3 * LANES + c] = s
        lanes[4 * LANES + c] = explained if explained > _ZERO else _ZERO  # also where no code is non-zero: 0/0
    for c in range(8):  # the maximum without branches, which random data would mispredict
        x = lanes[4 * LANES + c]
        y = lanes[4 * LANES + 8 + c]
        lanes[5 * LANES + c] = x if x > y else y
    for c in range(4):
        x = lanes[5 * LANES + c]
        y = lanes[5 * LANES + 4 + c]
        lanes[5 * LANES + c] = x if x > y else y
    x = lanes[5 * LANES] if lanes[5 * LANES] > lanes[5 * LANES + 2] else lanes[5 * LANES + 2]
    y = lanes[5 * LANES + 1] if lanes[5 * LANES + 1] > lanes[5 * LANES + 3] else lanes[5 * LANES + 3]
    most = x if x > y else y
    best = 0
    for c in range(LANES):
        best = c if lanes[4 * LANES + c] == most else best
    if most > before:
        return lanes[3 * LANES + best], most - before > _KEEP_GAIN * most
    return plain, False


@njit(**_JIT)
def _search_row(w, u, group, weighted, starts, lo, hi, native, count, lanes, total, scales):
    """Replace each group's scale by the best of 16 candidates around its start, where that lowers Σu(w − s·code)².

    llama.cpp's make_qx_quants uses the same two sums per candidate; squared error as the objective of a range: Nagel
    et al., arXiv:2106.08295, section 3.1.
    """
    for g in range(scales.size):
        start = starts[g]
        plain = scales[g]
        if start == _ZERO:
            continue
        a = np.uint64(g * group)
        _propose(lanes, count, start, plain)
        if group <= SPAN:
            _candidate_sums(w, u, a, group, weighted, lo, hi, lanes)
        else:
            for c in range(2 * LANES):
                total[c] = 0.0
            _long_sums(w, u, a, group, weighted, lo, hi, lanes, total)
            for c in range(2 * LANES):
                lanes[c] = np.float32(total[c])
        best, sure = _refit(lanes, count, plain, native)
        best, floored, over = _round_scale(best, native)
        if over or best in (plain, _ZERO):
            continue
        if (sure and not floored) or _loss(w, u, a, group, best, lo, hi) < _loss(w, u, a, group, plain, lo, hi):
            scales[g] = best


@njit(**_JIT)
def _encode_row(w, group, scales, lo, hi, codes, part, acc):
    """codes = clip(round_half_even(w/scale)), 0 where the scale is 0; adds Σw² to acc[0:16], Σ(w − scale·code)² to
    acc[16:32], through float32 sums of one span of the row at a time."""
    for g in range(scales.size):
        used = scales[g] != _ZERO
        scale = scales[g] if used else _ONE
        low = lo if used else _ZERO
        high = hi if used else _ZERO
        for t in range(g * group, (g + 1) * group, TILE):
            i = np.uint64(t)
            k = np.uint64(t + LANES)
            for c in range(LANES):
                x = w[i + np.uint64(c)]
                y = w[k + np.uint64(c)]
                p = _round_code(x / scale, low, high)
                q = _round_code(y / scale, low, high)
                codes[i + np.uint64(c)] = np.int8(p)
                codes[k + np.uint64(c)] = np.int8(q)
                d = x - scale * p
                e = y - scale * q
                part[c] += x * x + y * y
                part[LANES + c] += d * d + e * e
            if (t + TILE) % SPAN == 0:
                for c in range(2 * LANES):
                    acc[c] += np.float64(part[c])
                    part[c] = _ZERO


@njit(**_JIT)
def _loss(w, u, a, n, scale, lo, hi):
    """Σu(w − scale·code)² in float64, coded as `_encode` does."""
    total = 0.0
    for j in range(n):
        x = w[a + np.uint64(j)]
        e = np.float64(x) - np.float64(scale) * np.float64(_round_code(x / scale, lo, hi))
        total += np.float64(u[a + np.uint64(j)]) * (e * e)
    return total


@njit(**_JIT)
def _candidate_errors(w, a, n, lo, hi, lanes):
    """For 16 scales (in lanes[16:32], their inverses in lanes[32:48]): lanes[0:16] += Σ(w − scale·code)²."""
    for t in range(0, n, TILE):
        i = a + np.uint64(t)
        for j in range(0, TILE, 2):  # two at a time, as in _candidate_sums
            x = w[i + np.uint64(j)]
            y = w[i + np.uint64(j + 1)]
            for c in range(LANES):
                q = _round_code(x * lanes[2 * LANES + c], lo, hi)
                r = _round_code(y * lanes[2 * LANES + c], lo, hi)
                d = x - lanes[LANES + c] * q
                e = y - lanes[LANES + c] * r
                lanes[c] += d * d + e * e


@njit(**_JIT)
def _pack_row(codes, bits, out):
    """Element j's low `bits` bits go to bits j·bits… of the row's little-endian stream. `codes` ends in zeros."""
    if bits == 8:
        for i in range(out.size):
            out[i] = np.uint8(codes[i])
    elif bits == 4:
        for i in range(out.size):
            out[i] = (np.uint8(codes[2 * i]) & np.uint8(15)) | (np.uint8(codes[2 * i + 1]) << np.uint8(4))
    elif bits == 2:
        three = np.uint8(3)
        for i in range(out.size):
            low = (np.uint8(codes[4 * i]) & three) | ((np.uint8(codes[4 * i + 1]) & three) << np.uint8(2))
            high = (np.uint8(codes[4 * i + 2]) & three) | ((np.uint8(codes[4 * i + 3]) & three) << np.uint8(2))
            out[i] = low | (high << np.uint8(4))
    else:
        _pack_row_3(codes, out)


@njit(**_JIT)
def _pack_row_3(codes, out):
    """Eight codes fill three bytes; the last three may be cut short."""
    whole = out.size // 3
    for i in range(whole + 1):
        stream = np.uint32(0)
        for j in range(8 if i < whole or out.size % 3 else 0):
            stream |= (np.uint32(codes[np.uint64(8 * i + j)]) & np.uint32(7)) << np.uint32(3 * j)
        for byte in range(3 if i < whole else out.size % 3):
            out[np.uint64(3 * i + byte)] = np.uint8((stream >> np.uint32(8 * byte)) & np.uint32(255))


@njit(**_JIT)
def _q4_0_row(codes, scales, out):
    """llama.cpp's block_q4_0: fp16 d, then byte j = (q[j] + 8) | (q[j + 16] + 8) << 4."""
    for g in range(scales.size):
        h = _half_bits(scales[g])
        to = np.uint64(g * Q4_0_BYTES)
        out[to] = np.uint8(h & np.uint32(255))
        out[to + np.uint64(1)] = np.uint8(h >> np.uint32(8))
        to += np.uint64(2)
        at = np.uint64(g * TILE)
        for j in range(16):
            low = np.uint8(codes[at + np.uint64(j)]) & np.uint8(15)
            high = np.uint8(codes[at + np.uint64(16 + j)]) << np.uint8(4)
            out[to + np.uint64(j)] = np.uint8(low | high) ^ np.uint8(0x88)  # flipping bit 3 adds 8


@njit(**_JIT)
def _start(up, down, lo, hi, slack, native):
    """The unrounded scale at which no weight is clipped by more than `slack` of a step."""
    wide = slack - lo
    narrow = hi + slack
    x, y = up / narrow, down / wide
    if native != NATIVE_Q4_0:
        return x if x > y else y
    v, z = up / wide, down / narrow
    above = -(v if v > z else z)  # the side that reaches further gets the extra code, −8
    below = x if x > y else y
    return above if up > down else below


@njit(**_JIT)
def _plain_row(bits, ints, group, given, lo, hi, slack, native, starts, used, scales, counts):
    """Each group's plain scale (unless given), the scale to code with (0: codes 0) and the search's start (0: none)."""
    for g in range(scales.size):
        up, down = _extremes(ints, np.uint64(g * group), group)
        start = _start(up, down, lo, hi, slack, native)
        scale, floored, over = _round_scale(start, native)
        empty = start == _ZERO
        if given:
            scale, floored, over, empty = scales[g], False, False, False
        finite = max(up, down) < np.inf
        if not finite:
            counts[0] += _count_nonfinite(bits, np.uint64(g * group), group)
        counts[1] += floored and not empty
        counts[2] += over and finite
        starts[g] = start if finite and not floored and not over else _ZERO
        used[g] = scale if finite and not empty else _ZERO
        scales[g] = scale


@njit(**_JIT)
def _lane_sum(acc):
    """Σ of the 16 lanes in order; empties them."""
    total = 0.0
    for c in range(LANES):
        total += acc[c]
        acc[c] = 0.0
    return total


def _array(dtype, ndim, readonly=False):
    return types.Array(dtype, ndim, "C", readonly=readonly)


# Signatures are spelt out so that nothing is compiled later than at import, and from the cache after the first time.
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
    """Code every row: see `kernels.fold`. `group` counts columns of the padded row and is a multiple of 32.

    Fills scales float32 [R, groups] (read where mode is GIVEN), packed uint8 [R, bytes], energy float64 [R, 2] (Σw²,
    Σ(w − scale·code)²) and adds to counts (non-finite weights, scales raised to the floor, scales too large).
    """
    padded = (columns + TILE - 1) // TILE * TILE
    bits = np.zeros(padded, np.uint32)
    w = bits.view(np.float32)
    ints = bits.view(np.int32)
    codes = np.zeros(padded, np.int8)
    u = np.ones(padded, np.float32)
    starts = np.zeros(scales.shape[1], np.float32)
    used = np.zeros(scales.shape[1], np.float32)
    lanes = np.zeros(7 * LANES, np.float32)
    for c in range(LANES):  # assigning the slice would compile a shape check for two seconds
        lanes[6 * LANES + c] = factors[c]
    total = np.zeros(2 * LANES, np.float64)
    part = np.zeros(2 * LANES, np.float32)
    acc = np.zeros(2 * LANES, np.float64)
    weighted = objective != MSE or importance.size > 0
    for r in range(scales.shape[0]):
        _widen(halves, words, kind, r, bits, w)
        _plain_row(bits, ints, group, mode == GIVEN, lo, hi, slack, native, starts, used, scales[r], counts)
        if mode == SEARCH:
            if weighted:
                _weigh(w, columns, importance, objective, u)
            _search_row(w, u, group, weighted, starts, lo, hi, native, factors.size, lanes, total, scales[r])
            for g in range(used.size):
                used[g] = scales[r, g] if used[g] != _ZERO else _ZERO
        _encode_row(w, group, used, lo, hi, codes, part, acc)
        _add_lanes(part, acc)
        energy[r, 0] = _lane_sum(acc[:LANES])
        energy[r, 1] = _lane_sum(acc[LANES:])
        if stored_bits == AS_BLOCKS:
            _q4_0_row(codes, scales[r], packed[r])
        else:
            _pack_row(codes, stored_bits, packed[r])


@njit(types.void(*_ROWS, types.int64, _array(types.float64, 2)), **_JIT)
def measure_rows(halves, words, kind, columns, out):
    """out[r] = (largest w, largest −w, both at least 0; Σ|w| in 16 lanes; count of non-finite weights)."""
    padded = (columns + TILE - 1) // TILE * TILE
    bits = np.zeros(padded, np.uint32)
    w = bits.view(np.float32)
    ints = bits.view(np.int32)
    acc = np.zeros(LANES, np.float64)
    for r in range(out.shape[0]):
        _widen(halves, words, kind, r, bits, w)
        up, down = _extremes(ints, np.uint64(0), padded)
        for a in range(0, padded, TILE):
            i = np.uint64(a)
            for c in range(LANES):
                acc[c] += np.float64(abs(w[i + np.uint64(c)])) + np.float64(abs(w[i + np.uint64(LANES + c)]))
        out[r, 0] = up
        out[r, 1] = down
        out[r, 2] = _lane_sum(acc)
        out[r, 3] = 0 if max(up, down) < np.inf else _count_nonfinite(bits, np.uint64(0), padded)


@njit(
    types.void(*_ROWS, types.int64, types.float32, _array(types.int64, 1), _array(types.float64, 1)),
    **_JIT,
)  # fmt: skip
def histogram_rows(halves, words, kind, columns, per_unit, count, total):
    """Put every weight in its bin, round_down(w·per_unit) from the middle one: adds to its count and to its Σw."""
    padded = (columns + TILE - 1) // TILE * TILE
    bits = np.zeros(padded, np.uint32)
    w = bits.view(np.float32)
    middle = np.float32(count.size // 2)
    for r in range(words.shape[0] if kind == FP32 else halves.shape[0]):
        _widen(halves, words, kind, r, bits, w)
        for j in range(columns):
            b = np.uint64(np.int64(w[j] * per_unit + middle))
            count[b] += 1
            total[b] += np.float64(w[j])


@njit(
    types.void(
        *_ROWS, types.int64, _array(types.float32, 1, True), types.float32, types.float32, _array(types.float64, 2)
    ),
    **_JIT,
)  # fmt: skip
def error_rows(halves, words, kind, columns, scales, lo, hi, out):
    """out[r] = Σ(w − scale·code)² for each of 16 scales: what a per-tensor search adds up over rows."""
    padded = (columns + TILE - 1) // TILE * TILE
    bits = np.zeros(padded, np.uint32)
    w = bits.view(np.float32)
    lanes = np.zeros(3 * LANES, np.float32)
    for c in range(LANES):
        lanes[LANES + c] = scales[c]
        lanes[2 * LANES + c] = _ONE / scales[c]
    for r in range(out.shape[0]):
        _widen(halves, words, kind, r, bits, w)
        for c in range(LANES):
            out[r, c] = 0.0
        for t in range(0, padded, SPAN):
            _candidate_errors(w, np.uint64(t), min(SPAN, padded - t), lo, hi, lanes)
            for c in range(LANES):
                out[r, c] += np.float64(lanes[c])
                lanes[c] = _ZERO
