"""The interval of a median covers the true one as often as it says, also where neighbouring calls are alike."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.bench.interval import BLOCKS, LEAST, median_interval, spread

TRIALS = 300


def alike(rng: np.random.Generator, n: int, share: float) -> NDArray[np.float64]:
    """Skewed times of median 1 whose logarithms follow a first-order autoregression."""
    noise = rng.standard_normal(n) * np.sqrt(1 - share**2)
    state, found = rng.standard_normal(), np.empty(n)
    for place in range(n):
        state = share * state + noise[place]
        found[place] = state
    return np.exp(0.3 * found)


@pytest.mark.parametrize(("share", "n"), [(0.0, 50), (0.0, 1000), (0.5, 1000), (0.9, 4000)])
def test_coverage_is_95_per_cent(share: float, n: int) -> None:
    rng = np.random.default_rng(1)
    covered = sum(low <= 1 <= high for low, high in (median_interval(alike(rng, n, share)) for _ in range(TRIALS)))
    assert 0.90 <= covered / TRIALS <= 1.0  # 0.95, and four standard errors


def test_it_is_narrower_with_more_calls_and_wider_where_calls_are_alike() -> None:
    rng = np.random.default_rng(2)

    def width(n: int, share: float) -> float:
        ends = [median_interval(alike(rng, n, share)) for _ in range(40)]
        return float(np.median([high - low for low, high in ends]))

    assert width(4000, 0.0) < 0.6 * width(1000, 0.0)
    assert width(2000, 0.9) > 2 * width(2000, 0.0)


def test_an_outlier_stays_in_the_sample_and_moves_nothing() -> None:
    times = np.random.default_rng(3).normal(1.0, 0.01, 500)
    slow = times.copy()
    slow[slow.argmax()] = 1000.0
    assert median_interval(times) == median_interval(slow)


def test_of_a_few_calls_the_extremes_are_the_interval() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([5.0]) == (5.0, 5.0)
    assert median_interval([2.0] * LEAST) == (2.0, 2.0)


def test_independent_calls_vary_by_chance_alone() -> None:
    rng = np.random.default_rng(4)
    assert np.median([spread(rng.random(50 * BLOCKS)) for _ in range(50)]) < 1.3
