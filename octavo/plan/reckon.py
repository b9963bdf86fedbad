"""Sums and products of quantities: intervals carried along, the least certain kind kept.

Everything here is non-negative and grows with each of its parts, so that ends combine with ends.
"""

from __future__ import annotations

from decimal import Decimal

from octavo.core.quantity import Kind, Quantity

CERTAINTY = (Kind.EXACT, Kind.DATASHEET, Kind.MEASURED, Kind.ESTIMATED, Kind.UNKNOWN)
GIVEN = "given"


def given(value: float | Decimal, unit: str) -> Quantity:
    """A figure that the user stated: what follows from it is arithmetic."""
    return Quantity(float(value), unit, Kind.EXACT, source=GIVEN)


def unknown(unit: str, source: str = "") -> Quantity:
    return Quantity(None, unit, Kind.UNKNOWN, source=source)


def ends(quantity: Quantity) -> tuple[float, float, float]:
    """(low, value, high) of a known quantity; a missing end is the value. Raises ValueError for an unknown one."""
    if quantity.value is None:
        raise ValueError(f"an unknown quantity in {quantity.unit} has no ends")
    low = quantity.value if quantity.low is None else quantity.low
    return low, quantity.value, quantity.value if quantity.high is None else quantity.high


def scaled(quantity: Quantity, factor: float, unit: str | None = None) -> Quantity:
    """`factor` ≥ 0 times the quantity, in another unit if one is named."""
    unit = quantity.unit if unit is None else unit
    value, low, high = (None if end is None else end * factor for end in (quantity.value, quantity.low, quantity.high))
    return Quantity(value, unit, quantity.kind, low, high, quantity.n, quantity.source, quantity.date)


def total(unit: str, parts: list[Quantity], source: str = "") -> Quantity:
    """The sum; unknown as soon as one part is. Raises ValueError when a part counts something else than `unit`."""
    for part in parts:
        if part.unit != unit:
            raise ValueError(f"{part.value} {part.unit} added to a sum in {unit}")
    kind = max((part.kind for part in parts), key=CERTAINTY.index, default=Kind.EXACT)
    if kind is Kind.UNKNOWN:
        return unknown(unit, source)
    columns = list(zip(*(ends(part) for part in parts), strict=True)) or [(0.0,)] * 3
    low, value, high = (sum(column) for column in columns)
    spread = low != high
    return Quantity(value, unit, kind, low if spread else None, high if spread else None, source=source)
