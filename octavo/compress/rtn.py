"""Round to nearest, streamed: row blocks go from the source's file to the store, and peak memory is a few blocks.

The scale of a group is absmax, or the outcome of a search that minimises the squared error (see kernels.py).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.compress import kernels
from octavo.compress.assign import Assignment
from octavo.core.grid import SCALE_CEILING
from octavo.core.model import TensorRecord
from octavo.core.safetensors import widen
from octavo.core.scheme import SCHEMES, Scheme
from octavo.core.source import Source
from octavo.core.store import FLOAT_DTYPE, StoreWriter
from octavo.core.tensor import FloatDigest, TensorDigest
from octavo.errors import BadInput, Refused

BLOCK_ELEMENTS = 1 << 21  # weights per row block: 4 MiB of bf16, 8 MiB of fp32
AHEAD = 2  # blocks in flight per thread
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Block:
    """One row block after folding: rows [start, start + n) of tensor `index`."""

    index: int
    start: int
    values: NDArray[Any]  # packed codes, or float rows as they are stored
    scale: NDArray[np.float32] | None
    signal: float
    error: float
    floored: int


class _Tally:
    """What is known of a tensor once all its blocks have passed: digest, SQNR, clamped scales."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.signal = self.error = 0.0
        self.floored = 0
        grid = SCHEMES.get(assignment.scheme)
        self.digest: TensorDigest | FloatDigest = FloatDigest(assignment.shape)
        if grid is not None and grid.range is not None:
            self.digest = TensorDigest(assignment.shape, grid.block(assignment.shape), grid.range)

    def add(self, block: Block, first: bool, per_tensor: bool) -> None:
        self.signal += block.signal
        self.error += block.error
        self.floored = max(self.floored, block.floored) if per_tensor else self.floored + block.floored
        if isinstance(self.digest, FloatDigest):
            self.digest.update(_as_float32(block.values, self.assignment.scheme))
            return
        self.digest.codes(block.values)
        if block.scale is not None and (first or not per_tensor):
            self.digest.scales(block.scale)

    def record(self) -> TensorRecord:
        a = self.assignment
        sqnr = None
        if a.scheme != a.dtype and self.error > 0:
            sqnr = round(10 * float(np.log10(self.signal / self.error)), 4) if self.signal > 0 else None
        return TensorRecord(a.name, a.shape, a.role, a.scheme, self.digest.hexdigest(), sqnr)


def fold(
    source: Source,
    tensors: tuple[Assignment, ...],
    writer: StoreWriter,
    *,
    search: bool = True,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[list[TensorRecord], list[dict[str, Any]]]:
    """Fold every tensor into `writer`. Returns the records, and notes on scales that were clamped at the floor.

    Raises BadInput for NaN or infinite weights, Refused for scales or values too large for the format; each names
    the tensor.
    """
    threads = threads or os.cpu_count() or 1
    total = sum(prod(a.shape) for a in tensors)
    tallies = [_Tally(a) for a in tensors]
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for block in _in_order(pool, _jobs(source, tensors, search), AHEAD * threads):
            assignment = tensors[block.index]
            per_tensor = _per_tensor(assignment)
            tallies[block.index].add(block, block.start == 0, per_tensor)
            _write(writer, assignment, block, per_tensor)
            done += prod(block.values.shape[:1]) * prod(assignment.shape[1:])
            progress("fold", done, total)
    notes = [{"tensor": t.assignment.name, "scales_raised_to_floor": t.floored} for t in tallies if t.floored]
    return [tally.record() for tally in tallies], notes


def _jobs(source: Source, tensors: tuple[Assignment, ...], search: bool) -> Iterator[Callable[[], Block]]:
    """One job per row block, in order; a per-tensor scale is found in a pass of its own first."""
    for index, a in enumerate(tensors):
        grid = SCHEMES.get(a.scheme)
        given: float | None = None
        if grid is not None and grid.granularity == "tensor":
            given = _tensor_scale(source, a, grid, search)
        for start, stop in _spans(a):
            yield partial(_fold_block, source, index, a, start, stop, search, given)


def _fold_block(
    source: Source, index: int, a: Assignment, start: int, stop: int, search: bool, given: float | None
) -> Block:
    raw = source.rows(a.name, start, stop)
    grid = SCHEMES.get(a.scheme)
    if grid is None or grid.is_float:
        values, signal, error = _to_float(source, a, raw)
        return Block(index, start, values, None, signal, error, 0)
    matrix = raw.reshape(raw.shape[0], -1)
    folded = kernels.fold(matrix, a.dtype, grid, search=search, scale=given)
    if folded.nonfinite:
        raise _nonfinite(a, _count_nonfinite(source, a))
    if folded.too_large:
        raise Refused(
            f"{a.name} {list(a.shape)}: {folded.too_large} scales in rows {start} to {stop - 1} exceed what "
            f"{a.scheme} can hold exactly.",
            "Keep this tensor in float, or scale the weights down.",
        )
    scale = folded.scale.reshape(_scale_shape(a, grid, raw.shape[0]))
    return Block(index, start, folded.packed, scale, folded.signal, folded.error, folded.floored)


def _to_float(source: Source, a: Assignment, raw: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """Rows in the assigned float type, with signal and error energy. Raises for non-finite or too large values."""
    values = widen(raw, FLOAT_DTYPE[a.dtype])
    if not np.isfinite(values).all():
        raise _nonfinite(a, _count_nonfinite(source, a))
    if a.scheme == a.dtype:
        return raw, 0.0, 0.0
    if a.scheme == "fp32":
        return values, 0.0, 0.0
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    over = int(np.isinf(half).sum())
    if over:
        raise Refused(
            f"{a.name} {list(a.shape)}: {over} values exceed 65504, the largest of fp16.",
            "Use fp32 or an integer scheme for this model.",
        )
    error = values.astype(np.float64) - half.astype(np.float64)
    return half, float(np.square(values, dtype=np.float64).sum()), float(np.square(error).sum())


def _tensor_scale(source: Source, a: Assignment, grid: Scheme, search: bool) -> float:
    """The one scale of a per-tensor scheme, over all rows. Raises Refused, naming the tensor, when it is too large."""
    blocks = lambda: (_matrix(source, a, start, stop) for start, stop in _spans(a))  # noqa: E731
    try:
        return kernels.tensor_scale(blocks, a.dtype, grid, search=search)
    except Refused as refusal:
        raise Refused(
            f"{a.name} {list(a.shape)}: its scale exceeds {SCALE_CEILING:g}, the largest that "
            f"{a.scheme} can hold exactly.",
            "Keep this tensor in float, or scale the weights down.",
        ) from refusal


def _matrix(source: Source, a: Assignment, start: int, stop: int) -> NDArray[Any]:
    raw = source.rows(a.name, start, stop)
    return raw.reshape(raw.shape[0], -1)


def _spans(a: Assignment) -> Iterator[tuple[int, int]]:
    rows = a.shape[0] if a.shape else 1
    step = max(1, BLOCK_ELEMENTS // max(1, prod(a.shape[1:])))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], Block]], ahead: int) -> Iterator[Block]:
    """Run jobs in the pool, at most `ahead` of them unfinished, and yield their results in order."""
    waiting: deque[Future[Block]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _write(writer: StoreWriter, a: Assignment, block: Block, per_tensor: bool) -> None:
    if block.scale is None:
        writer.floats(a.name, block.start, block.values)
        return
    writer.codes(a.name, block.start, block.values)
    if not per_tensor:
        writer.scales(a.name, block.start, block.scale)
    elif block.start == 0:
        writer.scales(a.name, 0, block.scale)


def _per_tensor(a: Assignment) -> bool:
    grid = SCHEMES.get(a.scheme)
    return grid is not None and grid.granularity == "tensor"


def _scale_shape(a: Assignment, grid: Scheme, rows: int) -> tuple[int, ...]:
    """Shape of the scales of `rows` rows of the tensor (one scale for a per-tensor scheme, whatever the rows)."""
    shape = (rows, *a.shape[1:])
    return tuple(s // b for s, b in zip(shape, grid.block(shape), strict=True))


def _as_float32(values: NDArray[Any], scheme: str) -> NDArray[np.float32]:
    return widen(values, FLOAT_DTYPE[scheme])


def _count_nonfinite(source: Source, a: Assignment) -> int:
    blocks = (widen(source.rows(a.name, start, stop), FLOAT_DTYPE[a.dtype]) for start, stop in _spans(a))
    return sum(int(block.size - np.isfinite(block).sum()) for block in blocks)


def _nonfinite(a: Assignment, count: int) -> BadInput:
    return BadInput(
        f"{a.name} {list(a.shape)}: {count} of {prod(a.shape)} weights are NaN or infinite.",
        "Such a model cannot be folded; train it again or repair the checkpoint.",
    )
