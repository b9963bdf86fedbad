"""From the values that were seen to the range that is kept: min-max, percentile, least squared error or divergence.

Values are counted in a streaming histogram of bounded memory whose bins are [k·w, (k+1)·w): zero is always a border,
and when values leave the range w doubles and neighbours merge, so that no count is ever split or guessed. Exact zeros
(what a ReLU leaves) are counted apart: every grid here holds zero exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import to_bfloat16
from octavo.errors import BadInput, nearest

BINS = 4096  # at least half of them in use: some 8 or more to a step of an unclipped int8 grid
TAIL = 1e-4  # of the values, half on each side, that "percentile" may clip
POWER = 2.5  # above 2 clips less: what is clipped errs to one side, and means over positions do not forgive it
SMALLEST = 2.0**-20  # scale of a value that was zero throughout
LEVELS = {"int8": (-128, 127), "int16": (-32768, 32767)}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """An integer grid: value = scale · (code − zero_point), codes from `low` to `high`."""

    scale: float
    zero_point: int
    low: int
    high: int

    def __call__(self, values: Floats) -> Floats:
        """The values as the grid gives them back."""
        codes = np.clip(np.rint(values / self.scale) + self.zero_point, self.low, self.high)
        seen: Floats = (codes - self.zero_point) * self.scale
        return seen


class Histogram:
    """Counts of the values seen so far; `low`, `high` are the exact extremes, `zeros` and `total` exact counts."""

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.width = 0.0
        self.first = 0
        self.counts = np.zeros(bins, np.int64)
        self.low, self.high = 0.0, 0.0
        self.seen_low, self.seen_high = math.inf, -math.inf
        self.zeros = self.total = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count float32 values of any shape. They must be finite."""
        flat = values.reshape(-1)
        low, high = float(flat.min(initial=np.inf)), float(flat.max(initial=-np.inf))
        if not flat.size:
            return
        self.total += flat.size
        self.seen_low, self.seen_high = min(self.seen_low, low), max(self.seen_high, high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if low < 0 < high or low == 0 or high == 0:
            flat = flat[flat != 0]
            self.zeros += values.size - flat.size
        if not flat.size:
            return
        self._reach(low, high)
        index = np.floor(flat * np.float64(1 / self.width)).astype(np.int64) - self.first
        self.counts += np.bincount(np.clip(index, 0, self.bins - 1), minlength=self.bins)

    def _reach(self, low: float, high: float) -> None:
        """Widen the bins, by powers of two, until they cover [low, high] and what was there before."""
        if self.width == 0.0:
            self.width = 2.0 ** math.ceil(math.log2(max(high - low, abs(high), abs(low)) / (self.bins // 2)))
            self.first = math.floor(low / self.width)
        while True:
            first = min(self.first, math.floor(low / self.width))
            last = max(self.first + int(np.nonzero(self.counts)[0].max(initial=0)), math.floor(high / self.width))
            if last - first < self.bins:
                break
            self._merge()
        if first != self.first:
            moved = np.zeros_like(self.counts)
            shift = self.first - first
            moved[shift:] = self.counts[: self.bins - shift]
            self.counts, self.first = moved, first

    def _merge(self) -> None:
        """Two neighbours become one."""
        odd = self.first % 2
        padded = np.concatenate([np.zeros(odd, np.int64), self.counts, np.zeros((self.bins + odd) % 2, np.int64)])
        pairs = padded.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(self.bins, np.int64)
        self.counts[: pairs.size] = pairs
        self.first = (self.first - odd) // 2
        self.width *= 2

    def parts(self) -> tuple[Floats, Floats]:
        """(middles, counts) of the bins that hold anything, zeros left out."""
        used = np.nonzero(self.counts)[0]
        return (used + self.first + 0.5) * self.width, self.counts[used].astype(np.float64)

    def quantile(self, share: float) -> float:
        """The value below which `share` of all values lie, to within a bin."""
        middles, counts = self.parts()
        borders = np.concatenate([middles - self.width / 2, [0.0]])
        counts = np.concatenate([counts, [float(self.zeros)]])
        widths = np.concatenate([np.full(middles.size, self.width), [0.0]])
        order = np.lexsort((widths, borders))
        cumulated = np.cumsum(counts[order])
        at = min(int(np.searchsorted(cumulated, share * self.total)), order.size - 1)
        inside = (share * self.total - (cumulated[at] - counts[order][at])) / max(counts[order][at], 1.0)
        found = borders[order][at] + inside * widths[order][at]
        return float(min(max(found, self.low), self.high))


def grid(low: float, high: float, dtype: str, *, narrow: bool = False) -> Grid:
    """The grid that covers [low, high] and zero. int8 is asymmetric; int16, and `narrow` (a weight: ±127), symmetric.

    Scales have eight mantissa bits (bf16), so that their products with weights' scales, which biases are counted in,
    are exact in float32 and every runtime divides by the same number; rounded up, so that the range is covered.
    """
    first, last = LEVELS[dtype]
    low, high = min(low, 0.0), max(high, 0.0)
    if dtype == "int16" or narrow:
        top = last
        return Grid(round_up(max(-low, high) / top), 0, -last if narrow else first, last)
    scale = round_up((high - low) / (last - first))
    zero = int(min(max(round(first - low / scale), first), last))
    return Grid(scale, zero, first, last)


def round_up(scale: float) -> float:
    """The smallest bf16 number not below `scale`; SMALLEST for nothing at all."""
    if scale < SMALLEST:
        return SMALLEST
    near = float(to_bfloat16(np.array([scale], np.float32))[0])
    if near >= scale:
        return near
    bits = np.array([near], np.float32).view(np.uint32) + np.uint32(1 << 16)
    return float(bits.view(np.float32)[0])


def minmax(seen: Histogram, dtype: str) -> Grid:
    """All that was seen, nothing clipped."""
    return grid(seen.low, seen.high, dtype)


def percentile(seen: Histogram, dtype: str, tail: float = TAIL) -> Grid:
    """The range without the outermost `tail` of the values, half of it on each side that has values."""
    return grid(seen.quantile(tail / 2), seen.quantile(1 - tail / 2), dtype)


def mse(seen: Histogram, dtype: str, power: float = POWER) -> Grid:
    """The range of the least Σ|x − seen(x)|^power: coarse over both ends, then finer around the best."""
    middles, counts = seen.parts()
    if not middles.size:
        return minmax(seen, dtype)

    def loss(tried: Grid) -> float:
        gap = np.abs(middles - tried(middles))
        raised = gap * gap * np.sqrt(gap) if power == 2.5 else gap**power  # the same, ten times as fast
        return float(counts @ raised)

    return _search(seen, dtype, loss)


def entropy(seen: Histogram, dtype: str) -> Grid:
    """The range of the least Kullback-Leibler divergence between what was seen and what the grid gives back.

    After TensorRT (Migacz 2017): values beyond the range fall to its ends, each code's share is spread evenly over the
    bins that it stands for and that hold anything.
    """
    middles, counts = seen.parts()
    if not middles.size:
        return minmax(seen, dtype)

    def loss(tried: Grid) -> float:
        return divergence(middles, counts, tried)

    return _search(seen, dtype, loss)


def divergence(middles: Floats, counts: Floats, tried: Grid) -> float:
    """KL(p ‖ q) in nats over bins: p with the clipped tails on the outermost bins inside, q as the codes tell it."""
    codes = np.rint(middles / tried.scale) + tried.zero_point
    inside = (codes >= tried.low) & (codes <= tried.high)
    if not inside.any():
        return math.inf
    p = counts[inside].copy()
    kept = counts[inside]
    held = np.clip(codes[inside], tried.low, tried.high).astype(np.int64) - tried.low
    above, below = counts[codes > tried.high].sum(), counts[codes < tried.low].sum()
    p[-1] += above
    p[0] += below
    sums = np.bincount(held, weights=kept)
    sizes = np.bincount(held)
    q = (sums / np.maximum(sizes, 1))[held]
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _search(seen: Histogram, dtype: str, loss: Callable[[Grid], float]) -> Grid:
    """The best (low, high) as shares of the extremes: 24 × 24 coarse, then twice around the best."""
    shares = np.linspace(0.04, 1.0, 25)
    best = (math.inf, 1.0, 1.0)
    step = float(shares[1] - shares[0])
    for rest in range(3):
        lows = shares if rest == 0 else _around(best[1], step)
        highs = shares if rest == 0 else _around(best[2], step)
        if dtype == "int16":
            pairs = [(s, s) for s in highs]
        else:
            pairs = [(a, b) for a in (lows if seen.low < 0 else [1.0]) for b in (highs if seen.high > 0 else [1.0])]
        tried: dict[tuple[float, int], tuple[Grid, float, float]] = {}
        for a, b in pairs:
            made = grid(seen.low * a, seen.high * b, dtype)
            tried.setdefault((made.scale, made.zero_point), (made, a, b))
        found = min((loss(made), -a, -b) for made, a, b in tried.values())
        if found[0] < best[0]:
            best = (found[0], -found[1], -found[2])
        step /= 5
    return grid(seen.low * best[1], seen.high * best[2], dtype)


def _around(share: float, step: float) -> list[float]:
    return sorted({float(min(max(share + k * step / 5, 0.01), 1.0)) for k in range(-5, 6)})


OBSERVERS: dict[str, Callable[[Histogram, str], Grid]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def observer(name: str) -> Callable[[Histogram, str], Grid]:
    """Look an observer up. Raises BadInput with the nearest names."""
    if name not in OBSERVERS:
        raise BadInput(f"Unknown observer '{name}'.", nearest(name, OBSERVERS))
    return OBSERVERS[name]
