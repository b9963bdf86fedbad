"""Names for stored tensors. A converter that fuses layers strings all their names together: `bn/Fused…;conv/BiasAdd;…`.

Of such a name the part is taken that says what the tensor is: of the layer that most parts belong to.
"""

from __future__ import annotations

from collections import Counter

READING = ("/resource", "/ReadVariableOp")


def short_names(stored: list[tuple[str, int]]) -> list[str]:
    """One name per tensor (its name and how many axes it has), whole where the part taken would not be unique."""
    found = [_part(name, axes) for name, axes in stored]
    count = Counter(found)
    return [part if count[part] == 1 else name for part, (name, _) in zip(found, stored, strict=True)]


def _part(name: str, axes: int) -> str:
    parts = [part for part in name.split(";") if part]
    if len(parts) < 2:
        return name
    votes = Counter(_layer(part) for part in parts)
    layer = max(votes, key=lambda item: votes[item])  # the first of those with most votes
    own = [part for part in parts if _layer(part) == layer]
    fitting = [part for part in own if ("Bias" in part) == (axes == 1)]
    return min(fitting or own, key=len)


def _layer(part: str) -> str:
    for ending in READING:
        part = part.removesuffix(ending)
    return part.rpartition("/")[0]
