"""Non-negative least squares, and its robust form on logarithms: what the latency fit is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LOWEST = 1e-9  # ms: predictions below are nobody's


def nnls(gram: Array, target: Array, start: Array | None = None) -> Array:
    """x ≥ 0 that minimises xᵀ·gram·x − 2·targetᵀ·x; gram [K, K] positive semidefinite, target [K] → x [K].

    Active sets after Bro & De Jong (J. Chemometrics 11, 1997); `start`: a guess, whose positive entries begin active.
    """
    size = len(target)
    scale = 1 / np.sqrt(np.maximum(np.diag(gram), 1e-300))  # columns of length 1: none is too small to matter
    ridge = gram * scale[:, None] * scale + np.eye(size) * 1e-12
    wanted = target * scale
    active = np.zeros(size, bool) if start is None else start > 0
    active &= np.diag(gram) > 0
    x = np.zeros(size)
    if active.any():
        active &= _solve(ridge, wanted, active) > 0
    for _ in range(10 * size):
        if active.any():
            x = _inside(ridge, wanted, active, x)
        slope = np.where(active, -np.inf, wanted - ridge @ x)
        best = int(slope.argmax())
        if slope[best] <= 1e-10 * max(float(np.abs(wanted).max(initial=0.0)), 1e-300):
            break
        active[best] = True
    solution: Array = x * scale
    return solution


def _solve(gram: Array, target: Array, active: NDArray[np.bool_]) -> Array:
    x = np.zeros(len(target))
    x[active] = np.linalg.solve(gram[np.ix_(active, active)], target[active])
    return x


def _inside(gram: Array, target: Array, active: NDArray[np.bool_], x: Array) -> Array:
    """The optimum over the active entries, those that would turn negative leaving (`active` is changed)."""
    while active.any():
        wanted = _solve(gram, target, active)
        bad = active & (wanted <= 0)
        if not bad.any():
            return wanted
        room = np.where(bad, x / np.maximum(x - wanted, 1e-300), np.inf)
        step = float(min(1.0, room.min()))
        x = np.where(active, x + step * (wanted - x), 0.0)
        active &= ~(bad & (room <= step + 1e-15))
        x[~active] = 0.0
    return np.zeros(len(target))


def robust_fit(x: Array, y: Array, prior: Array | None, pull: float, weight: Array, huber: float, rounds: int) -> Array:
    """b ≥ 0 with X·b ≈ y in ratio: x [N, K], y [N] > 0, weight [N] → b [K].

    Minimises Σ weight · ρ(log(X·b / y)) + pull · Σ (b/prior − 1)², ρ Huber's, by reweighted least squares on the
    relative error. `prior` [K] > 0 is what a term costs where the rows do not say otherwise.
    """
    scaled = x / y[:, None]
    pulls = np.zeros(x.shape[1]) if prior is None else pull / prior**2
    toward = np.zeros(x.shape[1]) if prior is None else pull / prior
    found, weights = prior, weight
    for turn in range(rounds):
        weighted = scaled * weights[:, None]
        found = nnls(weighted.T @ scaled + np.diag(pulls), weighted.sum(0) + toward, found)
        if turn + 1 < rounds:
            weights = weight * _reweighted(np.maximum(x @ found, LOWEST) / y, huber)
    assert found is not None
    return found


def _reweighted(ratio: Array, huber: float) -> Array:
    """What turns a squared relative error (ratio − 1)² into Huber's loss of log ratio."""
    error = np.abs(np.log(ratio))
    curved = np.where(error > 1e-4, (error / np.maximum(np.abs(ratio - 1), 1e-9)) ** 2, 1.0)
    weight: Array = np.clip(curved, 0.0025, 400.0) * np.minimum(1.0, huber / np.maximum(error, 1e-9))
    return weight
