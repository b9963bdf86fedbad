"""Sizes as people type them."""

from __future__ import annotations

import re

from octavo.errors import BadInput

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(value: int | str | None) -> int | None:
    """`2GB` (10⁹), `1.5GiB` (2³⁰), `500MB` or a number of bytes. Raises BadInput."""
    if value is None or isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", value.lower())
    if not match or match[2] not in UNITS:
        raise BadInput(f"'{value}' is no size.", "Write it like 2GB, 1.5GiB or 500MB.")
    return int(float(match[1]) * UNITS[match[2]])
