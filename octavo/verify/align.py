"""Which value of an artifact is which value of the program: by name, else by what its numbers look like, and order.

A value's look is its quantiles, which no order of axes changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

QUANTILES = np.linspace(0, 1, 33)
SAMPLED = 1 << 16  # values that a look is taken from
NAMED, ASTRAY = 0.5, 0.3  # what an equal name adds to the likeness; what being at the other end takes away
LEAST = 0.7  # likeness of a pair without a name in common


class Named(Protocol):
    """A value with a name."""

    @property
    def name(self) -> str: ...
    @property
    def array(self) -> NDArray[Any]: ...


def align(
    reference: Sequence[Named], artifact: Sequence[Named], findable: frozenset[str] = frozenset()
) -> dict[str, int]:
    """{name in the reference: index in `artifact`}; what has no counterpart is left out, and none is used twice.

    `findable`: names that may be found under another name; where none are given, all.
    """
    looks = [_look(item.array) for item in reference], [_look(item.array) for item in artifact]
    scored = []
    for i, right in enumerate(reference):
        for j, found in enumerate(artifact):
            if right.array.size != found.array.size:
                continue
            named = right.name == found.name
            like = _likeness(looks[0][i], looks[1][j])
            apart = abs(i / max(len(reference), 1) - j / max(len(artifact), 1))
            if named or (like >= LEAST and (not findable or right.name in findable)):
                scored.append((like + NAMED * named - ASTRAY * apart, i, j))
    taken: dict[str, int] = {}
    used: set[int] = set()
    for _, i, j in sorted(scored, key=lambda item: (-item[0], item[1], item[2])):
        if reference[i].name not in taken and j not in used:
            taken[reference[i].name] = j
            used.add(j)
    return taken


def _look(values: NDArray[Any]) -> NDArray[np.float64]:
    flat = np.ravel(values)
    if flat.size > SAMPLED:
        flat = np.sort(flat)[np.linspace(0, flat.size - 1, SAMPLED).astype(np.int64)]
    flat = np.nan_to_num(np.asarray(flat, np.float64), posinf=0, neginf=0)
    return np.quantile(flat, QUANTILES) if flat.size else np.zeros(QUANTILES.size)


def _likeness(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """1 for equal looks, 0 for opposite ones."""
    length = float(np.linalg.norm(a) + np.linalg.norm(b))
    return 1.0 if length == 0 else 1 - float(np.linalg.norm(a - b)) / length
