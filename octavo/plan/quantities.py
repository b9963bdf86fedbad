"""Quantities as a profile writes them: a table of units, and what each key of a profile is measured in."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput, nearest

# unit → (what it measures, how many of the base unit). Within one row of measures only; nothing converts across.
UNITS: dict[str, tuple[str, float]] = {
    **{unit: ("bytes", factor) for unit, factor in {
        "B": 1.0, "bytes": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
        "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    }.items()},
    **{unit: ("bytes per second", factor) for unit, factor in {
        "B/s": 1.0, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12, "MiB/s": 2.0**20, "GiB/s": 2.0**30,
    }.items()},
    **{unit: ("operations per second", factor) for unit, factor in {
        "op/s": 1.0, "MOPS": 1e6, "GOPS": 1e9, "TOPS": 1e12, "MFLOPS": 1e6, "GFLOPS": 1e9, "TFLOPS": 1e12,
    }.items()},
    **{unit: ("energy per operation", factor) for unit, factor in {
        "J/op": 1.0, "nJ/op": 1e-9, "pJ/op": 1e-12, "fJ/op": 1e-15,
    }.items()},
    **{unit: ("energy per byte", factor) for unit, factor in {
        "J/B": 1.0, "nJ/B": 1e-9, "pJ/B": 1e-12, "pJ/bit": 8e-12,
    }.items()},
    **{unit: ("energy", factor) for unit, factor in {
        "J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12, "Wh": 3600.0, "mWh": 3.6,
    }.items()},
    **{unit: ("power", factor) for unit, factor in {"W": 1.0, "mW": 1e-3, "uW": 1e-6}.items()},
    **{unit: ("time", factor) for unit, factor in {
        "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0,
    }.items()},
    **{unit: ("a share", factor) for unit, factor in {"1": 1.0, "%": 1e-2}.items()},
}  # fmt: skip

KEYS = ("value", "unit", "kind", "low", "high", "n", "source", "date")


def read(where: str, raw: Any, wanted: str) -> Quantity:
    """The quantity that `raw` (a table, or the word "unknown") stands for, in the unit `wanted`.

    Raises BadInput, beginning with `where`: no table, an unknown key or kind, a unit of something else, no value, no
    source or date, a value that is not above zero, an interval that does not hold the value.
    """
    if raw == "unknown":
        return Quantity(None, wanted, Kind.UNKNOWN)
    if not isinstance(raw, Mapping):
        example = f'{{ value = 1, unit = "{wanted}", kind = "datasheet", source = "…", date = "2026-01-31" }}'
        raise BadInput(f"{where}: {raw!r} is no quantity.", f'Write {example}, or "unknown".')
    if unknown := sorted(set(raw) - set(KEYS)):
        raise BadInput(f"{where}: unknown key '{unknown[0]}'.", nearest(unknown[0], KEYS))
    kind = _kind(where, raw.get("kind"))
    factor = _factor(where, raw.get("unit"), wanted)
    if kind is Kind.UNKNOWN and "value" not in raw:
        return Quantity(None, wanted, kind, source=str(raw.get("source", "")), date=str(raw.get("date", "")))
    if "value" not in raw:
        raise BadInput(
            f"{where}: kind '{kind}' and no value.", f'Give the value, or write {where.split(": ")[-1]} = "unknown".'
        )
    if kind is Kind.UNKNOWN:
        raise BadInput(
            f"{where}: kind 'unknown' and a value of {raw['value']}.", "Say how it is known, or leave it out."
        )
    for key in ("source", "date"):
        if not raw.get(key):
            raise BadInput(
                f"{where}: {raw['value']} {raw['unit']} without a {key}.", f'Add {key} = …, or make it "unknown".'
            )
    value, low, high = (_number(where, key, raw.get(key), factor) for key in ("value", "low", "high"))
    if value is None or value <= 0:
        raise BadInput(
            f"{where}: {raw['value']} {raw['unit']} is not above zero.", 'Write "unknown" for what is not known.'
        )
    n = None if raw.get("n") is None else int(raw["n"])
    try:
        return Quantity(value, wanted, kind, low, high, n, str(raw["source"]), str(raw["date"]))
    except ValueError:
        ends = f"[{raw.get('low')}, {raw.get('high')}]"
        message = f"{where}: {raw['value']} {raw['unit']} lies outside its own interval {ends}."
        raise BadInput(message, "Order them low ≤ value ≤ high.") from None


def _kind(where: str, raw: Any) -> Kind:
    names = [str(kind) for kind in Kind]
    if raw is None:
        raise BadInput(f"{where}: no kind.", f"It is one of {', '.join(names)}.")
    if raw not in names:
        raise BadInput(f"{where}: unknown kind '{raw}'.", nearest(str(raw), names))
    return Kind(raw)


def _factor(where: str, unit: Any, wanted: str) -> float:
    """How many `wanted` make one `unit`."""
    measure, base = UNITS[wanted]
    fitting = [name for name, (other, _) in UNITS.items() if other == measure]
    if unit is None:
        raise BadInput(f"{where}: no unit.", f"It is in {', '.join(fitting)}.")
    if unit not in UNITS:
        raise BadInput(
            f"{where}: unknown unit '{unit}', {wanted} is wanted.", f"Units of {measure}: {', '.join(fitting)}."
        )
    found, factor = UNITS[unit]
    if found != measure:
        raise BadInput(
            f"{where}: unit '{unit}' is {found}, and {measure} in {wanted} is wanted.", f"Use {', '.join(fitting)}."
        )
    return factor / base


def _number(where: str, key: str, raw: Any, factor: float) -> float | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not abs(raw) < float("inf"):
        raise BadInput(f"{where}: {key} = {raw!r} is no finite number.", "Write a number.")
    if raw < 0:
        raise BadInput(f"{where}: {key} = {raw} is negative.", "Write a number above zero.")
    return float(Decimal(repr(raw)) * Decimal(repr(factor)))  # 17.1 GB/s is 17100000000, not a few bits more


def write(quantity: Quantity) -> str:
    """The TOML form of a quantity, on one line, in its own unit."""
    parts = quantity.as_dict()
    if quantity.value is None and not (quantity.source or quantity.date):
        return '"unknown"'
    return f"{{ {', '.join(f'{key} = {literal(parts[key])}' for key in KEYS if key in parts)} }}"


def literal(value: Any) -> str:
    """A TOML literal of a string, number, or list of them."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(literal(item) for item in value)}]"
