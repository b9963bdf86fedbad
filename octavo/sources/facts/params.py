"""A bare parameter count: `7B`."""

from __future__ import annotations

import re
from fractions import Fraction

from octavo.core.facts import ModelFacts
from octavo.errors import BadInput

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMBT]?)", re.IGNORECASE | re.ASCII)


def bare_size(text: str) -> ModelFacts:
    """`7B` is 7,000,000,000 parameters, `1.5B` 1,500,000,000; K, M, B, T. Raises BadInput for anything else, for zero,
    and for a count that is not whole."""
    found = SIZE.fullmatch(text.strip())
    count = Fraction(found[1]) * SUFFIXES[found[2].upper()] if found else Fraction(0)
    if count <= 0 or count.denominator != 1:
        raise BadInput(f"--params '{text}': not a count of parameters.", "Write it like 7B, 1.5B, 350M or 1235814400.")
    return ModelFacts(
        name=f"{text.strip()} parameters",
        kind="size",
        parameters=int(count),
        active_parameters=int(count),
        missing=("Only the parameter count is known: no operators, no KV cache, no activations.",),
        origin="a bare parameter count",
    )
