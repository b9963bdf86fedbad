"""Round to nearest: float rows in, packed codes and scales on the scheme's grid out, in one pass over memory.

Importing this module loads numba and, the first time on a machine, compiles `loops` (seconds; cached on disk after
that), so callers import it where they need it. All functions release the interpreter lock: split rows over threads.
Rows are independent of each other and sums over rows are exact, so any split gives the same codes and scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.compress import loops
from octavo.core.grid import SCALE_CEILING, SCALE_FLOOR, TERNARY, IntegerRange, packed_row_bytes, portable_scale
from octavo.core.scheme import Scheme
from octavo.errors import BadInput, nearest

Rows = NDArray[Any]  # [R, K]: bf16 or fp16 as uint16 bits, float16, or float32

OBJECTIVES = {"mse": loops.MSE, "square": loops.SQUARE, "spread": loops.SPREAD, "magnitude": loops.MAGNITUDE}

# Where the search looks, as multiples of the plain scale, by bits and by how many weights share a scale. The spans
# reach the best of all portable scales for 98 % of Gaussian and Student-t parts and of the real weights tried (within
# 0.1 dB in sum at 8 bits, 0.04 dB below). Eight-bit groups gain by a larger scale (more lucky fits), long rows by
# clipping their outliers.
_SHORT = {8: (0.997, 1.15), 4: (0.85, 1.25), 3: (0.7, 1.25), 2: (0.4, 1.25)}  # up to 64
_MIDDLE = {8: (0.99, 1.08), 4: (0.78, 1.07), 3: (0.5, 1.07), 2: (0.28, 1.07)}  # up to 128
_LONG = {8: (0.85, 1.03), 4: (0.18, 1.03), 3: (0.12, 1.03), 2: (0.09, 1.03)}
_BINS = 1 << 17  # of the histogram of a per-tensor search: 258 to a step of the plain 8-bit scale
_GAIN = 1e-6  # a per-tensor search must lower the error by this share: its sums are float32 within a span

_NO_HALVES = np.zeros((0, 0), np.uint16)
_NO_WORDS = np.zeros((0, 0), np.uint32)
_NO_IMPORTANCE = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Folded:
    """One block of coded rows.

    packed: uint8 [R, bytes per row]; scale: float32 [R, scales per row], or [1, 1] for a per-tensor scheme;
    signal, error: Σw² and Σ(w − scale·code)² over the block, to about 1e-7. Counts over the block: weights that are
    NaN or infinite (their group is coded as 0), scales raised to the smallest the grid holds (all-zero groups not
    counted), scales too large for it (clamped: refuse them).
    """

    packed: NDArray[np.uint8]
    scale: NDArray[np.float32]
    signal: float
    error: float
    nonfinite: int
    floored: int
    too_large: int


def fold(
    rows: Rows,
    dtype: str,
    grid: Scheme,
    *,
    search: bool = True,
    scale: float | None = None,
    objective: str = "mse",
    importance: NDArray[np.float32] | None = None,
    blocks: bool = False,
) -> Folded:
    """Code rows [R, K] of `dtype` ("bf16", "fp16", "fp32") on `grid`; a per-tensor grid needs `scale`.

    Without `search` a scale is the smallest that clips no weight by more than half a step (8-bit codes: not at all).
    On [-8, 7] that beats max|w|/7 by 0.7 dB and max|w|/7.5 by 0.45 dB on Gaussian groups of 32: the longer side may
    use the extra code, and half a step is the error that rounding costs anyway. `search` tries 16 scales with a
    least-squares refit of each, judged as rounded to the grid, and never does worse than without.
    codes = round_half_even(w / scale), clipped to the range. Native `q4_0` has an fp16 scale of either sign, so that
    -8 always serves the longer side; `blocks` packs it as llama.cpp's blocks, uint8 [R, K/32·18].

    objective: what the search minimises, Σu(w − scale·code)² with u = 1 ("mse"), w² ("square"), sqrt(mean w² + w²)
    ("spread", llama.cpp's for Q4_0 with importance) or |w| ("magnitude"), times `importance` float32 [K] if given.
    Without importance "mse" was the best of the four in KL to the float model: native q4_0 on two small Llamas had
    0.86 and 0.91 of the KL of llama.cpp's Q4_0; "spread" 0.92 and 1.00, "magnitude" 0.98 and 0.97, "square" 1.04. On
    whole texts (benchmarks/q4_0.py) "mse" has 0.86 to 0.94; its search lies 0.002 dB from the exact least error.

    Raises BadInput when the group does not divide K, and for rows of another type.
    """
    assert grid.range is not None
    halves, words, kind, count, columns = _open(rows, dtype)
    width = _group(columns, grid)
    bits = loops.AS_BLOCKS if blocks else grid.range.bits
    row_bytes = columns // loops.TILE * loops.Q4_0_BYTES if blocks else packed_row_bytes(columns, bits)
    scales = np.empty((count, max(1, -(-columns // width))), np.float32)
    mode = loops.SEARCH if search else loops.PLAIN
    if grid.granularity == "tensor":
        if scale is None:
            raise BadInput(f"{grid.name} has one scale per tensor.", "Find it with tensor_scale first.")
        mode = loops.GIVEN
        scales[:] = scale
    packed = np.empty((count, row_bytes), np.uint8)
    energy = np.empty((count, 2), np.float64)
    counts = np.zeros(3, np.int64)
    loops.fold_rows(
        halves, words, kind, columns, width, mode, grid.range.low, grid.range.high, _slack(grid.range),
        loops.NATIVE_Q4_0 if grid.native else loops.PORTABLE, factors(grid.range, width), _objective(objective),
        _importance(importance, columns), bits, scales, packed, energy, counts,
    )  # fmt: skip
    nonfinite, floored, too_large = (int(n) for n in counts)
    signal, error = math.fsum(energy[:, 0]), math.fsum(energy[:, 1])
    if mode == loops.GIVEN:
        scales = scales[:1]
        floored = int(signal > 0 and scale == SCALE_FLOOR)
    return Folded(packed, scales, signal, error, nonfinite, floored, too_large)


def tensor_scale(blocks: Callable[[], Iterable[Rows]], dtype: str, grid: Scheme, *, search: bool = True) -> float:
    """The portable scale of a whole tensor, from one pass over its row blocks (three with `search`).

    The search tries every portable scale from a sixteenth of the plain one to 1.25 of it: a histogram of the weights
    tells the squared error of each to about 1e-5, and a third pass measures the 15 best beside the plain one.
    Ternary takes BitNet b1.58's mean |w| (arXiv:2402.17764, eq. 3) whether searched or not: its models are trained
    with it. Non-finite weights make the answer meaningless; `fold` counts them.
    Raises Refused when the scale exceeds what every runtime can hold.
    """
    assert grid.range is not None
    codes = grid.range
    measured = [_measure(block, dtype) for block in blocks()]
    up, down = (max((float(m[:, i].max(initial=0.0)) for m, _ in measured), default=0.0) for i in (0, 1))
    if not max(up, down) < np.inf:
        return SCALE_FLOOR
    if codes == TERNARY:
        count = sum(m.shape[0] * k for m, k in measured)
        return _portable(math.fsum(x for m, _ in measured for x in m[:, 2]) / max(count, 1))
    slack = _slack(codes)
    plain = _portable(max(up / (codes.high + slack), down / (slack - codes.low)))
    if not search or plain == SCALE_FLOOR:
        return plain
    tried = np.full(loops.LANES, plain, np.float32)
    likely = _likely_scales(blocks(), dtype, codes, max(up, down), plain)[: loops.LANES - 1]
    tried[: likely.size] = likely
    sums = np.concatenate([_errors(block, dtype, tried, codes) for block in blocks()])
    errors = [math.fsum(column) for column in sums.T]
    best = int(np.argmin(errors))
    return float(tried[best]) if errors[best] < (1 - _GAIN) * errors[-1] else plain


def _likely_scales(
    blocks: Iterable[Rows], dtype: str, codes: IntegerRange, reach: float, plain: float
) -> NDArray[np.float32]:
    """Every portable scale around `plain` for weights in [−reach, reach], the one of the least squared error first.

    A bin that a rounding threshold cuts goes to one code as a whole: its weights lie so near the threshold that either
    code fits them alike.
    """
    per_unit = np.float32((_BINS // 2 - 1) / reach)
    count, total = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.float64)
    for block in blocks:
        halves, words, kind, _, columns = _open(block, dtype)
        loops.histogram_rows(halves, words, kind, columns, per_unit, count, total)
    below = [np.concatenate([[0], np.cumsum(column)]) for column in (count, total)]
    scales = _portable_between(plain / 16, 1.25 * plain)
    q = np.arange(codes.low, codes.high + 1)
    edges = np.rint(scales[:, None].astype(np.float64) * (q[1:] - 0.5) * float(per_unit)) + _BINS // 2
    edges = np.pad(edges.clip(0, _BINS), ((0, 0), (1, 1)), constant_values=((0, 0), (0, _BINS))).astype(np.int64)
    n, sums = (np.diff(column[edges], axis=1) for column in below)  # weights of each code, and their sum
    explained = scales * (2 * (sums @ q) - scales * (n @ (q * q)))  # Σw² − Σ(w − scale·code)²
    return scales[np.argsort(-explained, kind="stable")]


def factors(codes: IntegerRange, group: int) -> NDArray[np.float32]:
    """What the search multiplies the plain scale by where `group` weights share it: float32 [16], the last one 1."""
    if group <= 64:
        steps = np.linspace(*_SHORT[codes.bits], loops.LANES - 1)
    else:
        steps = np.geomspace(*(_MIDDLE if group <= loops.SPAN else _LONG)[codes.bits], loops.LANES - 1)
    return np.append(steps, 1.0).astype(np.float32)


def _measure(rows: Rows, dtype: str) -> tuple[NDArray[np.float64], int]:
    """Per row: largest w, largest -w, Σ|w|, count of non-finite weights, float64 [R, 4]; and the columns."""
    halves, words, kind, count, columns = _open(rows, dtype)
    out = np.empty((count, 4), np.float64)
    loops.measure_rows(halves, words, kind, columns, out)
    return out, columns


def _errors(rows: Rows, dtype: str, scales: NDArray[np.float32], codes: IntegerRange) -> NDArray[np.float64]:
    """Per row Σ(w − scale·code)² for 16 scales: float64 [R, 16]."""
    halves, words, kind, count, columns = _open(rows, dtype)
    out = np.empty((count, loops.LANES), np.float64)
    loops.error_rows(halves, words, kind, columns, scales, codes.low, codes.high, out)
    return out


def _portable_between(low: float, high: float) -> NDArray[np.float32]:
    """Every portable scale in [low, high], which are the bf16 numbers of its range."""
    first = max(np.float32(low), np.float32(SCALE_FLOOR)).view(np.uint32) + np.uint32(0xFFFF)
    last = min(np.float32(high), np.float32(SCALE_CEILING)).view(np.uint32)
    return (np.arange(first >> 16, (last >> 16) + 1, dtype=np.uint32) << np.uint32(16)).view(np.float32)


def _portable(scale: float) -> float:
    return float(portable_scale(np.array([scale], np.float32))[0])


def _slack(codes: IntegerRange) -> float:
    """How much of a step the plain scale may clip; at 8 bits half a step costs 0.35 dB instead of gaining."""
    return 0.5 if codes.bits <= 4 else 0.0


def _open(rows: Rows, dtype: str) -> tuple[NDArray[np.uint16], NDArray[np.uint32], int, int, int]:
    """The bits of rows as the loops take them: 16-bit or 32-bit words, which type they are, and the shape."""
    kinds = {
        ("bf16", "uint16"): loops.BF16,
        ("fp16", "uint16"): loops.FP16,
        ("fp16", "float16"): loops.FP16,
        ("fp32", "float32"): loops.FP32,
    }
    kind = kinds.get((dtype, rows.dtype.name))
    if kind is None or rows.ndim != 2:
        raise BadInput(
            f"rows {list(rows.shape)} of {rows.dtype} cannot be read as a matrix of {dtype}.",
            "Give bf16 or fp16 as uint16 bits, fp16 as float16, or fp32 as float32; one row per output channel.",
        )
    rows = np.require(rows, requirements=["C", "A"])
    if kind == loops.FP32:
        return _NO_HALVES, rows.view(np.uint32), kind, *rows.shape
    return rows.view(np.uint16), _NO_WORDS, kind, *rows.shape


def _group(columns: int, grid: Scheme) -> int:
    """How many columns of the zero-padded row share a scale."""
    if grid.group is None:
        return max(1, -(-columns // loops.TILE)) * loops.TILE
    if grid.group % loops.TILE or columns % grid.group:
        fits = [str(g) for g in (32, 64, 128) if columns % g == 0]
        remedy = f"Use {', '.join(fits)}." if fits else "Use one scale per channel."
        raise BadInput(f"group {grid.group} does not divide {columns} columns in multiples of {loops.TILE}.", remedy)
    return grid.group


def _objective(name: str) -> int:
    if name not in OBJECTIVES:
        raise BadInput(f"Unknown objective '{name}'.", nearest(name, OBJECTIVES))
    return OBJECTIVES[name]


def _importance(importance: NDArray[np.float32] | None, columns: int) -> NDArray[np.float32]:
    if importance is None:
        return _NO_IMPORTANCE
    if importance.shape != (columns,):
        raise BadInput(f"importance is {list(importance.shape)} where rows have {columns} columns.")
    return np.ascontiguousarray(importance, np.float32)
