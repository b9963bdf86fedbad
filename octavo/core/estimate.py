"""An estimate and its confidence interval: means and ratios of clustered samples, proportions, paired differences.

Positions of one text are not independent, so every interval here is taken over *clusters* (documents, windows, images);
where each sample is its own cluster the formulae reduce to the textbook ones. An interval that the data cannot give
(one cluster only) is None, never invented.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import cos, inf, isfinite, log, log10, nan, pi, sin, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """`value` with the interval [low, high] at `confidence`, from `n` samples in `clusters` clusters."""

    value: float
    low: float | None
    high: float | None
    n: int
    confidence: float = 0.95
    clusters: int | None = None

    @property
    def margin(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def interval(self) -> list[float | None]:
        """[low, high] for JSON; None where unknown or infinite."""
        return [finite(self.low), finite(self.high)]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; an infinite or undefined value is null."""
        clusters = {} if self.clusters is None else {"clusters": self.clusters}
        low, high = self.interval
        return {
            "value": finite(self.value), "low": low, "high": high, "n": self.n, "confidence": self.confidence,
        } | clusters  # fmt: skip


def finite(value: float | None) -> float | None:
    """The number, or None when JSON has no form for it."""
    return value if value is not None and isfinite(value) else None


class Ratio:
    """Σ totals / Σ sizes, fed cluster by cluster: a mean where the size is a count of samples, bits per byte, ….

    Interval: linearised ratio estimator over K clusters, Var(R) = K/(K−1) · Σ (t_k − R·s_k)² / (Σ s_k)², with Student's
    t on K−1 degrees of freedom (Cochran, Sampling Techniques, 3rd ed. 1977, eq. 6.13, infinite population).
    """

    def __init__(self) -> None:
        self._totals: dict[Hashable, float] = {}
        self._sizes: dict[Hashable, float] = {}
        self.n = 0

    def add(self, cluster: Hashable, total: float, size: float = 1.0, n: int | None = None) -> None:
        """Add a partial sum to a cluster; `n` samples stand behind it (default: `size` of them)."""
        self._totals[cluster] = self._totals.get(cluster, 0.0) + float(total)
        self._sizes[cluster] = self._sizes.get(cluster, 0.0) + float(size)
        self.n += int(size) if n is None else n

    @property
    def clusters(self) -> int:
        return len(self._totals)

    @property
    def value(self) -> float:
        totals, sizes = self._arrays()
        return float(totals.sum() / sizes.sum()) if sizes.sum() else nan

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The ratio and its interval (None with fewer than two clusters)."""
        value, error = self.value, self.standard_error()
        if error is None or not isfinite(value):
            return Estimate(value, None, None, self.n, confidence, self.clusters)
        margin = student_t(0.5 + confidence / 2, self.clusters - 1) * error
        return Estimate(value, value - margin, value + margin, self.n, confidence, self.clusters)

    def standard_error(self) -> float | None:
        totals, sizes = self._arrays()
        count, whole = len(totals), sizes.sum()
        if count < 2 or not whole:
            return None
        residuals = totals - totals.sum() / whole * sizes
        return float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / whole)

    def decibels(self, confidence: float = 0.95) -> Estimate:
        """10·log10 of the ratio; delta method on its logarithm: Var(ln R) = K/(K−1) · Σ (t_k/Σt − s_k/Σs)²."""
        totals, sizes = self._arrays()
        top, bottom, count = float(totals.sum()), float(sizes.sum()), len(totals)
        if not (top > 0 and bottom > 0 and isfinite(top) and isfinite(bottom)):
            value = inf if bottom == 0 and isfinite(top) else -inf if top == 0 and isfinite(bottom) else nan
            return Estimate(value, None, None, self.n, confidence, count)
        value = 10 * log10(top / bottom)
        if count < 2:
            return Estimate(value, None, None, self.n, confidence, count)
        variance = count / (count - 1) * float(((totals / top - sizes / bottom) ** 2).sum())
        margin = 10 / log(10) * student_t(0.5 + confidence / 2, count - 1) * sqrt(variance)
        return Estimate(value, value - margin, value + margin, self.n, confidence, count)

    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(list(self._totals.values()), np.float64), np.array(list(self._sizes.values()), np.float64)


class Proportion(Ratio):
    """A share of samples. Wilson's interval at the *effective* sample size p(1−p)/Var(p), never above n.

    Effective size: Korn & Graubard, Survey Methodology 24 (1998) 193–201. All alike (p is 0 or 1): n itself, for then
    the correlation inside clusters cannot be seen.
    """

    def estimate(self, confidence: float = 0.95) -> Estimate:
        value, error = self.value, self.standard_error()
        if error is None or not isfinite(value):
            return Estimate(value, None, None, self.n, confidence, self.clusters)
        spread = value * (1 - value)
        effective = min(float(self.n), spread / error**2) if error > 0 and spread > 0 else float(self.n)
        quantile = student_t(0.5 + confidence / 2, self.clusters - 1)
        low, high = _wilson(value, effective, quantile)
        return Estimate(value, low, high, self.n, confidence, self.clusters)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A proportion of independent samples with the score interval (Wilson, JASA 22 (1927) 209–212)."""
    if n < 1:
        return Estimate(nan, None, None, 0, confidence)
    low, high = _wilson(successes / n, n, NormalDist().inv_cdf(0.5 + confidence / 2))
    return Estimate(successes / n, low, high, n, confidence)


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def paired_difference(only_first: int, only_second: int, n: int, confidence: float = 0.95) -> Estimate:
    """First proportion minus second on the same `n` samples, `only_first` of which only the first got right.

    Interval: half an observation added to each of the four cells, then the paired (McNemar) standard error
    (Agresti & Min, Statistics in Medicine 24 (2005) 729–740, "Wald+2"): it keeps its coverage at few disagreements,
    where the plain paired interval shrinks to a point.
    """
    if n < 1:
        return Estimate(nan, None, None, 0, confidence)
    value, total = (only_first - only_second) / n, n + 2
    centre = (only_first - only_second) / total
    variance = (only_first + only_second + 1 - (only_first - only_second) ** 2 / total) / total**2
    margin = NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt(variance)
    low, high = max(-1.0, min(value, centre - margin)), min(1.0, max(value, centre + margin))
    return Estimate(value, low, high, n, confidence)


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t for 0.5 ≤ probability < 1 and a whole number of degrees of freedom ≥ 1.

    Above 60: the expansion in 1/ν about the normal quantile (Abramowitz & Stegun 26.7.5, error below 1e-8 there for
    probabilities to 0.999); else bisection of the exact finite series for the distribution (26.7.3 and 26.7.4).
    """
    if freedom < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"no t quantile for probability {probability} and {freedom} degrees of freedom")
    z = NormalDist().inv_cdf(probability)
    if freedom > 60:
        g1 = (z**3 + z) / 4
        g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
        return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4
    low, high = 0.0, pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if _between(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return sqrt(freedom) * sin(low) / cos(low)


def _between(theta: float, freedom: int) -> float:
    """P(|T| < √ν·tan θ): the finite series of Abramowitz & Stegun 26.7.3 (odd ν) and 26.7.4 (even ν)."""
    c, s, odd = cos(theta), sin(theta), freedom % 2
    term, series = (c, c) if odd else (1.0, 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= c * c * (k - 1) / k
        series += term
    if odd:
        return 2 / pi * (theta + (s * series if freedom > 1 else 0.0))
    return s * series
