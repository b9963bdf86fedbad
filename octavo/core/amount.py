"""Amounts as people type them: `100M`, `2kB`, `10Mbit`, `$0.0002`, `40ms`. Exact: a Decimal comes out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from octavo.errors import BadInput

_PREFIX = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_LARGEST = Decimal(10) ** 24
_NUMBER = re.compile(r"(?P<sign>-?)\$?(?P<number>(\d[\d_,]*\.?\d*|\.\d+)([eE][-+]?\d+)?)\s*(?P<unit>[^\d\s].*)?$")


@dataclass(frozen=True)
class Measure:
    """What an amount is counted in: `unit` is what comes out, `factors` what each suffix stands for ("" is a bare
    number; left out where a bare number says nothing), `example` how to write it."""

    unit: str
    factors: Mapping[str, Decimal]
    example: str


def _scaled(suffixes: Mapping[str, int | float | str]) -> dict[str, Decimal]:
    return {suffix: Decimal(str(factor)) for suffix, factor in suffixes.items()}


COUNT = Measure("", _scaled({**_PREFIX, "m": 10**6, "B": 10**9, "b": 10**9}), "100M, 20k or a plain number")
MILLISECONDS = Measure("ms", _scaled({"": 1, "ms": 1, "s": 1000, "us": "0.001", "µs": "0.001"}), "40, 40ms or 0.04s")
SECONDS = Measure("s", _scaled({"": 1, "ms": "0.001", "s": 1, "m": 60, "min": 60, "h": 3600}), "90, 90s, 5m or 1h")
JOULES = Measure("J", _scaled({"": 1, "J": 1, "mJ": "0.001", "kJ": 1000, "uJ": "1e-6", "µJ": "1e-6"}), "0.5 or 500mJ")
WATT_HOURS = Measure("Wh", _scaled({"": 1, "Wh": 1, "mWh": "0.001", "kWh": 1000}), "15 or 15Wh")
DOLLARS = Measure("USD", _scaled({**_PREFIX, "m": 10**6, "B": 10**9, "USD": 1}), "0.0002, $0.0002 or 2M")
BYTES = Measure(
    "B",
    _scaled(
        {"": 1}
        | {f"{prefix}B": factor for prefix, factor in (_PREFIX | _BINARY).items()}
        | {prefix: factor for prefix, factor in _PREFIX.items() if prefix}
    ),
    "2kB, 1.5MB or a number of bytes",
)
_BITS = {f"{prefix}{word}": factor for word in ("bit", "bps", "bit/s", "b/s") for prefix, factor in _PREFIX.items()}
BITS_PER_SECOND = Measure(
    "bit/s", _scaled(_BITS | {f"{prefix}B/s": 8 * factor for prefix, factor in _PREFIX.items()}), "10Mbit or 1.25MB/s"
)
SHARE = Measure("", _scaled({"": 1, "%": "0.01"}), "5% or 0.05")


def amount(value: object, measure: Measure, what: str, *, positive: bool = False) -> Decimal:
    """Read `value` (a number or a string) as `measure`. `what`: the option, for the message.

    Raises BadInput for what is no number, an unknown unit, a negative or absurd amount, or zero where `positive`.
    """
    text = str(value).strip()
    found = _NUMBER.match(text)
    if found is None or isinstance(value, bool):
        raise BadInput(f"{what}: '{text}' is no amount.", f"Write it like {measure.example}.")
    unit = (found["unit"] or "").strip()
    if unit not in measure.factors:
        known = f"Known: {', '.join(name for name in measure.factors if name)}; for example {measure.example}."
        raise BadInput(f"{what}: '{text}' has " + (f"the unknown unit '{unit}'." if unit else "no unit."), known)
    number = Decimal(found["number"].replace("_", "").replace(",", "")) * measure.factors[unit]
    if number > _LARGEST or (found["sign"] and number) or (positive and not number):
        fault = "is negative" if found["sign"] and number else "is beyond reason" if number else "must be above zero"
        raise BadInput(f"{what}: {text} {fault}.", f"Write it like {measure.example}.")
    return number
