"""How well a median of consecutive timings is known: ranks of the order statistics, widened by what calls share.

Neighbouring calls share a clock frequency, a cache and a neighbour on the machine, so that a thousand of them say less
than a thousand. The 95 % interval of a median lies between two ranks of the sorted sample (David & Nagaraja, Order
Statistics, 2003, §7.1); how far apart they stand comes from BLOCKS runs of consecutive calls: the count of calls below
the median varies from block to block, by more than chance where calls hang together (batch means: Schmeiser 1982).
No timing is dropped, and nothing is assumed of their distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, sqrt

import numpy as np
from numpy.typing import NDArray

BLOCKS = 20
LEAST = 2 * BLOCKS  # with fewer there is no telling whether neighbours hang together: the extremes are the interval
STUDENT = 2.093  # the 97.5 % point of Student's t with BLOCKS − 1 degrees of freedom


def median_interval(seconds: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the 95 % interval of the median of timings in the order in which they were taken.

    Raises ValueError for none.
    """
    times = np.asarray(seconds, np.float64)
    ordered = np.sort(times)
    n = len(ordered)
    if n < LEAST:
        return float(ordered[0]), float(ordered[-1])
    reach = STUDENT * sqrt(n * spread(times)) / 2
    low = max(0, floor((n - 1) / 2 - reach))
    high = min(n - 1, ceil((n - 1) / 2 + reach))
    return float(ordered[low]), float(ordered[high])


def spread(times: NDArray[np.float64]) -> float:
    """How many times more the count below the median varies between blocks than chance makes it, at least 1.

    times [n], n ≥ LEAST. Ties with the median count half.
    """
    middle = float(np.median(times))
    below = (times < middle) + 0.5 * (times == middle)
    used = below[len(below) % BLOCKS :].reshape(BLOCKS, -1)
    by_chance: float = 0.25 / used.shape[1]
    varies: float = np.var(used.mean(1), ddof=1).item()
    return max(1.0, varies / by_chance)
