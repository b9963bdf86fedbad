"""Did it slow down? The last quarter of a sustained run against the first, and what may have caused it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.05  # a change of less is not worth a word
LEAST = 16  # windows: with fewer than four in a quarter there is nothing to compare
RESAMPLES = 2000
CLOCK_FELL = 0.95  # of what it was in the first quarter
TROUBLED = 0.10  # of the machine, that others took more than in the first quarter
RULE = (
    "the median of the last quarter's windows over the first quarter's, with the 95 % interval of a moving-block "
    f"bootstrap over windows; slower when the whole interval is above {1 + THRESHOLD:g}, steady when it is below "
    f"{1 + THRESHOLD:g}, else undecided"
)


@dataclass(frozen=True)
class Verdict:
    """`word`: steady | throttled (slower, and the clock fell) | disturbed (slower, and others took more of the machine)
    | slower (no cause seen) | undecided | too short. `ratio`, `low`, `high`: last quarter over first; None when too
    short. `cause`: what was seen, or could not be."""

    word: str
    ratio: float | None
    low: float | None
    high: float | None
    cause: str
    rule: str = RULE

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict(windows: Sequence[dict[str, Any]], seed: int = 0) -> Verdict:
    """The verdict over windows in order: each with p50, and celsius, megahertz and others where they were seen."""
    if len(windows) < LEAST:
        return Verdict("too short", None, None, None, f"{len(windows)} windows of time; {LEAST} are needed")
    quarter = len(windows) // 4
    first, last = windows[:quarter], windows[-quarter:]
    ratio, low, high = ratio_interval(_column(first, "p50"), _column(last, "p50"), seed)
    if low > 1 + THRESHOLD:
        return Verdict(*_slower(first, last, ratio, low, high))
    if high <= 1 + THRESHOLD:
        return Verdict("steady", ratio, low, high, _unseen(windows))
    return Verdict("undecided", ratio, low, high, "the interval has both: run longer, or on a quieter machine")


def ratio_interval(first: NDArray[np.float64], last: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Median of `last` over median of `first`, and the ends of its 95 % interval (percentile bootstrap).

    Whole runs of √n neighbouring windows are drawn, since neighbours are alike (Künsch 1989).
    """
    rng = np.random.default_rng(seed)
    drawn = [np.median(_resampled(side, rng), axis=1) for side in (last, first)]
    low, high = np.percentile(drawn[0] / drawn[1], [2.5, 97.5])
    ratio = float(np.median(last) / np.median(first))
    return ratio, float(min(low, ratio)), float(max(high, ratio))


def _resampled(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """[RESAMPLES, n] drawn in runs of neighbours."""
    n = len(values)
    length = max(1, round(n**0.5))
    starts = rng.integers(0, n - length + 1, (RESAMPLES, ceil(n / length), 1))
    index = (starts + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]
    drawn: NDArray[np.float64] = values[index]
    return drawn


def _slower(
    first: Sequence[dict[str, Any]], last: Sequence[dict[str, Any]], ratio: float, low: float, high: float
) -> tuple[str, float, float, float, str]:
    clock, heat, others = (_change(first, last, key) for key in ("megahertz", "celsius", "others"))
    warmer = f", the hottest zone went from {heat[0]:.0f} to {heat[1]:.0f} °C" if heat else ""
    if clock and clock[1] < CLOCK_FELL * clock[0]:
        return "throttled", ratio, low, high, f"the clock went from {clock[0]:.0f} to {clock[1]:.0f} MHz{warmer}"
    if others and others[1] > others[0] + TROUBLED:
        said = f"others took {others[1]:.0%} of the machine, {others[0]:.0%} at first: measure again when it is quiet"
        return "disturbed", ratio, low, high, said
    return "slower", ratio, low, high, f"{_unseen([*first, *last]) or 'the clock did not fall'}{warmer}"


def _change(first: Sequence[dict[str, Any]], last: Sequence[dict[str, Any]], key: str) -> tuple[float, float] | None:
    """Medians of what was seen in both quarters."""
    sides = [[window[key] for window in side if window.get(key) is not None] for side in (first, last)]
    return (float(np.median(sides[0])), float(np.median(sides[1]))) if all(sides) else None


def _unseen(windows: Sequence[dict[str, Any]]) -> str:
    names = {"celsius": "temperature", "megahertz": "clock"}
    lacking = [name for key, name in names.items() if all(window.get(key) is None for window in windows)]
    return f"this machine shows no {' and no '.join(lacking)}" if lacking else ""


def _column(windows: Sequence[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([window[key] for window in windows], np.float64)
