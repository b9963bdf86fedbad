"""Histograms against numpy's own counting; each observer against trying every grid on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.compress.observers import (
    OBSERVERS,
    SMALLEST,
    Grid,
    Histogram,
    divergence,
    entropy,
    grid,
    minmax,
    mse,
    observer,
    percentile,
    round_up,
)
from octavo.core.grid import to_bfloat16
from octavo.errors import BadInput

KINDS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "relu": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
    "tails": lambda rng, n: rng.standard_t(3, n),
    "shifted": lambda rng, n: rng.standard_normal(n) + 3,
    "negative": lambda rng, n: -np.abs(rng.standard_normal(n)),
}


def values(kind: str, count: int = 20_000, seed: int = 0) -> np.ndarray:
    return KINDS[kind](np.random.default_rng(seed), count).astype(np.float32)


def seen(array: np.ndarray, parts: int = 7) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(array, parts):
        histogram.add(part)
    return histogram


def squared_error(array: np.ndarray, tried: Grid) -> float:
    return float(((array - tried(array.astype(np.float64))) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_histogram_counts_what_numpy_counts_however_the_values_come(kind: str) -> None:
    array = np.sort(values(kind))  # sorted: each part reaches further than all before, so that bins merge
    histogram = seen(array, 11)
    used = np.nonzero(histogram.counts)[0]
    index, counts = np.unique(np.floor(array[array != 0].astype(np.float64) / histogram.width), return_counts=True)
    assert (used + histogram.first).tolist() == index.astype(int).tolist()
    assert histogram.counts[used].tolist() == counts.tolist()
    assert histogram.zeros == int((array == 0).sum())
    assert histogram.total == array.size
    assert (histogram.seen_low, histogram.seen_high) == (array.min(), array.max())


@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_value_is_lost_whatever_the_range(items: list[float]) -> None:
    histogram = Histogram(64)
    for item in items:
        histogram.add(np.array([item], np.float32))
    assert int(histogram.counts.sum()) + histogram.zeros == len(items)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
def test_quantiles_are_numpys_to_within_a_bin(kind: str, share: float) -> None:
    array = values(kind)
    histogram = seen(array)
    low, high = (np.quantile(array, min(max(share + by, 0), 1)) for by in (-2 / array.size, 2 / array.size))
    assert low - histogram.width <= histogram.quantile(share) <= high + histogram.width


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("kind", KINDS)
def test_min_max_clips_nothing_and_holds_zero(kind: str, dtype: str) -> None:
    array = values(kind)
    made = minmax(seen(array), dtype)
    assert np.abs(made(array.astype(np.float64)) - array).max() <= made.scale * 0.5001 + made.scale * (dtype == "int8")
    assert made(np.zeros(1))[0] == 0
    assert dtype == "int8" or made.zero_point == 0


@pytest.mark.parametrize("kind", KINDS)
def test_mse_finds_the_least_error_of_all_ranges(kind: str) -> None:
    array = values(kind)
    found = squared_error(array, mse(seen(array), "int8", 2.0))
    ends = np.linspace(0.03, 1.0, 60)
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    every = {grid(low * a, high * b, "int8") for a in (ends if low else [1.0]) for b in (ends if high else [1.0])}
    best = min(squared_error(array, tried) for tried in every)
    assert found <= 1.02 * best


@pytest.mark.parametrize("kind", ["normal", "relu", "tails"])
def test_entropy_finds_the_least_divergence_of_all_ranges(kind: str) -> None:
    histogram = seen(values(kind))
    middles, counts = histogram.parts()
    ends = np.linspace(0.04, 1.0, 40)
    lows = ends if histogram.low < 0 else [1.0]
    every = [grid(histogram.low * a, histogram.high * b, "int8") for a in lows for b in ends]
    best = min(divergence(middles, counts, tried) for tried in every)
    assert divergence(middles, counts, entropy(histogram, "int8")) <= best * 1.05 + 1e-9


def test_divergence_is_the_textbooks() -> None:
    middles, counts = np.array([0.5, 1.5, 2.5, 3.5]), np.array([4.0, 2.0, 1.0, 1.0])
    tried = Grid(2.0, 0, 0, 1)  # codes 0, 1 (0.5 → 0; 1.5, 2.5 → 1; 3.5 is clipped onto 2.5)
    p = np.array([4, 2, 2]) / 8
    q = np.array([4, 1.5, 1.5]) / 7
    assert divergence(middles, counts, tried) == pytest.approx(float((p * np.log(p / q)).sum()))


def test_percentile_drops_the_outliers_that_min_max_keeps() -> None:
    array = np.append(values("normal", 100_000), np.float32(500))
    assert minmax(seen(array), "int8").scale > 1.9
    assert percentile(seen(array), "int8").scale < 0.04


def test_scales_are_bfloat16_and_never_below_what_was_asked() -> None:
    for scale in np.geomspace(1e-5, 1e3, 400):
        made = round_up(float(scale))
        assert made >= scale
        assert made <= scale * (1 + 2**-7)
        assert float(to_bfloat16(np.array([made], np.float32))[0]) == made


def test_a_value_that_was_always_zero_gets_the_smallest_scale() -> None:
    histogram = seen(np.zeros(100, np.float32))
    for choose in OBSERVERS.values():
        assert choose(histogram, "int8").scale == SMALLEST


def test_an_unknown_observer_is_named_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="minmax"):
        observer("minmx")
