"""What benchmarks/int8.py measures of files that stand side by side: outputs on one data set, time in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.bench.interval import median_interval
from octavo.core.estimate import Estimate, paired_difference, wilson
from octavo.core.metrics import Distance
from octavo.verify.accuracy import correct

CALLS = 4  # of one file in a round; the first finds the caches as another file left them, and is not counted
DRAWS = 2000
Scores = NDArray[np.float32]


def scores(run: Callable[[Any], Any], data: Any) -> Scores:
    """The only output of every sample, [n, classes]."""
    found = []
    for part in data.batches(1):
        (values,) = run(part.inputs).values()
        found.append(np.asarray(values, np.float32).reshape(1, -1))
    return np.concatenate(found)


def quality(reference: Scores, found: Scores, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """Top-1 accuracy, agreement with the float model's first class, SQNR; each with its 95 % interval."""
    distance = Distance("logits")
    for sample in range(len(found)):
        distance.add(reference[sample : sample + 1], found[sample : sample + 1], sample)
    far = distance.result()
    assert far.agreement is not None
    made = {"agreement": far.agreement.as_dict(), "sqnr_db": far.sqnr_db.as_dict()}
    if labels is None:
        return made
    right, before = (correct(side, labels, 1) for side in (found, reference))
    drop = _difference(before, right)
    return made | {"accuracy": wilson(int(right.sum()), len(right)).as_dict(), "drop": drop.as_dict()}


def gained(ours: Scores, theirs: Scores, labels: NDArray[np.int64]) -> Estimate:
    """Our accuracy minus theirs, paired."""
    return _difference(correct(ours, labels, 1), correct(theirs, labels, 1))


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int, threads: int) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each call, one figure per round: in every round each one's turn comes once, in a random order.

    With one thread the clock is the CPU time of this process, which stands still while other programs run."""
    clock = time.process_time if threads == 1 else time.perf_counter
    random, names = np.random.default_rng(0), list(calls)
    taken = {name: np.empty(rounds) for name in names}
    gc.collect()
    gc.disable()
    try:
        for row in range(-2, rounds):  # two rounds to warm up
            for place in random.permutation(len(names)):
                call, spent = calls[names[place]], []
                for _ in range(CALLS):
                    start = clock()
                    call()
                    spent.append(clock() - start)
                if row >= 0:
                    taken[names[place]][row] = np.median(spent[1:]) * 1e3
    finally:
        gc.enable()
    return taken


def latency(taken: NDArray[np.float64]) -> dict[str, Any]:
    """The median and its interval, in ms."""
    low, high = median_interval(taken)
    return {"value": float(np.median(taken)), "low": low, "high": high, "n": len(taken)}


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> Estimate:
    """Ratio of medians; interval by a bootstrap over rounds, in which both stood (percentiles of DRAWS resamples)."""
    n, random = len(above), np.random.default_rng(0)
    drawn = random.integers(0, n, (DRAWS, n))
    made = np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1)
    low, high = np.quantile(made, [0.025, 0.975])
    return Estimate(float(np.median(above) / np.median(below)), float(low), float(high), n)


def _difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate:
    return paired_difference(int((first & ~second).sum()), int((second & ~first).sum()), len(first))
