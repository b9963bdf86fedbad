"""Where the converter put each weight: found by content, since it names and turns them as it likes.

A weight lies in the file with its axes permuted (OIHW → OHWI) and perhaps axes of one added; its bytes are the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.runtimes.tflite.graph import Graph

# By rank, likely ones first: convolutions OIHW → OHWI, depthwise C1HW → 1HWC, the same with one and three lengths.
LIKELY: dict[int, tuple[tuple[int, ...], ...]] = {
    4: ((0, 2, 3, 1), (1, 2, 3, 0)), 3: ((0, 2, 1), (1, 2, 0)), 2: ((1, 0),), 5: ((0, 2, 3, 4, 1), (2, 3, 4, 1, 0)),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A tensor of the file, and how its axes were permuted from ours."""

    index: int
    axes: tuple[int, ...]

    @property
    def moves(self) -> tuple[str, ...]:
        return () if self.axes == tuple(range(len(self.axes))) else (f"permuted {','.join(map(str, self.axes))}",)


def find(graph: Graph, wanted: Mapping[str, NDArray[Any]], free: set[int] | None = None) -> dict[str, list[Place]]:
    """{name: every place whose content is that array's}; a name whose content is nowhere has none.

    Arrays of equal content share their places out, each at least one. `free`: the constants to look at.
    """
    held: dict[str, list[int]] = defaultdict(list)
    for index in graph.constants() if free is None else sorted(free):
        data = graph.data(index)
        if data is not None:
            held[_key(graph.type(index), data)].append(index)
    found = {name: _places(array, held) for name, array in wanted.items()}
    return _shared_out(found)


def axes_of(moves: tuple[str, ...], rank: int) -> tuple[int, ...]:
    """The permutation that `Place.moves` recorded. Raises ValueError for one that is none."""
    for move in moves:
        if move.startswith("permuted "):
            axes = tuple(int(axis) for axis in move.removeprefix("permuted ").split(","))
            if sorted(axes) != list(range(rank)):
                raise ValueError(f"'{move}' is no permutation of {rank} axes")
            return axes
    return tuple(range(rank))


def _key(kind: str, data: NDArray[np.uint8]) -> str:
    if kind == "FLOAT32":  # −0 and 0 are one value, and the converter need not keep them apart
        data = (data.view(np.float32) + np.float32(0)).view(np.uint8)
    return f"{kind} {data.size} {hashlib.sha256(data.data).hexdigest()}"


def _places(array: NDArray[Any], held: Mapping[str, list[int]]) -> list[Place]:
    kind = {"f4": "FLOAT32", "i1": "INT8", "i2": "INT16", "i4": "INT32"}[array.dtype.str[1:]]
    seen: dict[int, Place] = {}
    for axes in _orders(array.ndim):
        turned = np.ascontiguousarray(array.transpose(axes))
        for index in held.get(_key(kind, turned.reshape(-1).view(np.uint8)), ()):
            seen.setdefault(index, Place(index, axes))
    return [seen[index] for index in sorted(seen)]


def _orders(rank: int) -> Iterator[tuple[int, ...]]:
    yield tuple(range(rank))
    likely = LIKELY.get(rank, ())
    yield from likely
    if rank <= 4:
        yield from (axes for axes in permutations(range(rank)) if axes not in likely and axes != tuple(range(rank)))


def _shared_out(found: dict[str, list[Place]]) -> dict[str, list[Place]]:
    """Where several names have the same places, each gets its own as far as there are enough; the last all the rest."""
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, places in found.items():
        groups[tuple(place.index for place in places)].append(name)
    given: dict[str, list[Place]] = {}
    for indices, names in groups.items():
        for turn, name in enumerate(names):
            places = found[name]
            if len(names) == 1 or len(indices) < len(names):
                given[name] = places
            else:
                given[name] = places[turn:] if name == names[-1] else places[turn : turn + 1]
    return {name: given[name] for name in found}
