"""How one operator's output in an artifact compares with the original's: layout-aware, and what explains a difference.

Of a layout that the format is known for (LiteRT's channels last) nothing is said; any other order of axes that alone
explains a difference is a transposed layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.metrics import sqnr_db

Floats = NDArray[Any]
LAYOUTS: dict[str, tuple[tuple[int, ...], ...]] = {"nchw": (), "nhwc": ((0, 2, 3, 1), (0, 2, 1), (0, 2, 3, 4, 1))}
EXPLAINS = 10.0  # dB that an explanation must gain
CLIPPED = 0.6  # share of the noise's energy that lies where the artifact is at its range's end


@dataclass(frozen=True)
class Likeness:
    """SQNR in dB of the artifact's value to the original's, the value in the original's order of axes, and the order
    of axes that alone explains the difference (nothing where none does)."""

    sqnr_db: float
    aligned: Floats
    transposed: tuple[int, ...] = ()


def compare(reference: Floats, artifact: Floats, layouts: Sequence[str], bound: float, base: Floats | None) -> Likeness:
    """Compare under the layouts that the format may use; where none reaches `bound`, under every order of axes.

    `base`: the same values before they were flattened, where the order of axes can still be seen.
    Raises ValueError for arrays of different sizes.
    """
    if reference.size != artifact.size:
        raise ValueError(f"{reference.shape} and {artifact.shape} are no orders of the same values")
    best = Likeness(-inf, artifact.reshape(reference.shape))
    for axes in _allowed(reference, artifact, layouts):
        turned = _undo(artifact, reference.shape, axes)
        found = _sqnr(reference, turned)
        if found > best.sqnr_db:
            best = Likeness(found, turned)
    if best.sqnr_db >= bound:
        return best
    for axes in _others(reference if base is None else base):
        turned = _undo(artifact, (reference if base is None else base).shape, axes)
        found = _sqnr(reference if base is None else base, turned)
        if found >= max(bound, best.sqnr_db + EXPLAINS):
            return Likeness(best.sqnr_db, best.aligned, axes)
    return best


def explain(reference: Floats, artifact: Floats) -> str:
    """What turns the original's value into the artifact's, both in one order of axes: a shift, a factor, a factor per
    channel, a range that cuts it off; nothing where none of these explains it."""
    r, a = np.asarray(reference, np.float64), np.asarray(artifact, np.float64)
    if not np.isfinite(a).all():
        return f"{int((~np.isfinite(a)).sum())} of its values are NaN or infinite"
    if not a.any() and r.any():
        return "all of its values are zero"
    plain = _sqnr(r, a)
    if plain == inf:
        return ""
    if (share := _cut_off(r, a)) is not None:
        return f"its range cuts the values off: {share:.1%} of them lie outside [{a.min():.4g}, {a.max():.4g}]"
    shift = float((a - r).mean())
    if _sqnr(r, a - shift) >= plain + EXPLAINS:
        return f"shifted by {shift:.4g} throughout, as by a wrong zero point or bias"
    factor = float((r * a).sum() / max((a * a).sum(), 1e-300))
    if _sqnr(r, a * factor) >= max(plain + EXPLAINS, EXPLAINS):
        return f"{_times(factor)} too large throughout, as by a wrong scale"
    if r.ndim >= 2 and r.shape[1] > 1 and r.size > 4 * r.shape[1]:
        axes = tuple(axis for axis in range(r.ndim) if axis != 1)
        factors = (r * a).sum(axes, keepdims=True) / np.maximum((a * a).sum(axes, keepdims=True), 1e-300)
        if _sqnr(r, a * factors) >= max(plain + EXPLAINS, EXPLAINS):
            return "each channel is too large by a factor of its own, as by wrong or absent scales of the weight"
    return ""


def axes_word(axes: Sequence[int]) -> str:
    """An order of axes in words, where it has a name."""
    names: dict[tuple[int, ...], str] = {
        (0, 2, 3, 1): "channels last (NHWC) where channels first are meant",
        (0, 3, 1, 2): "channels first (NCHW) where channels last are meant",
        (0, 1, 3, 2): "height and width swapped",
    }
    return names.get(tuple(axes), f"axes in the order {', '.join(map(str, axes))}")


def _allowed(reference: Floats, artifact: Floats, layouts: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Orders of axes whose shape the artifact's value has; as it lies where no shape fits."""
    plain = tuple(range(reference.ndim))
    orders = [plain, *(axes for word in layouts for axes in LAYOUTS[word] if len(axes) == reference.ndim)]
    shape = _squeezed(artifact.shape)
    fitting = [axes for axes in orders if _squeezed([reference.shape[axis] for axis in axes]) == shape]
    yield from fitting or [plain]


def _others(reference: Floats) -> Iterator[tuple[int, ...]]:
    """Every order of more than one axis longer than one, each arrangement of values once."""
    if not 2 <= reference.ndim <= 5:
        return
    likely = ((0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2))
    seen = {tuple(range(reference.ndim))}
    for axes in (*likely, *permutations(range(reference.ndim))):
        if len(axes) == reference.ndim and axes not in seen:
            seen.add(axes)
            long = [axis for axis in axes if reference.shape[axis] > 1]
            if long != sorted(long):
                yield axes


def _undo(artifact: Floats, shape: Sequence[int], axes: tuple[int, ...]) -> Floats:
    """The artifact's value, which lies in the order `axes` of `shape`, in the order of `shape`."""
    return artifact.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))


def _sqnr(reference: Floats, artifact: Floats) -> float:
    """SQNR in dB; NaN and infinite values are worse than any noise."""
    return sqnr_db(reference, artifact) if np.isfinite(artifact).all() else -inf


def _cut_off(r: NDArray[np.float64], a: NDArray[np.float64]) -> float | None:
    """The share of values beyond the artifact's range, where that is most of the noise."""
    noise = (a - r) ** 2
    outside = ((a == a.max()) & (r > a)) | ((a == a.min()) & (r < a))
    total = noise.sum()
    if not total or a.max() == a.min() or noise[outside].sum() < CLIPPED * total:
        return None
    return float(outside.mean())


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _times(factor: float) -> str:
    """How many times too large, of the factor that would mend it."""
    return f"{1 / factor:.3g} times" if factor else "infinitely"
