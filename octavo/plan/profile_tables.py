"""What many profiles share, out of `octavo/devices/tables`: builds, platforms, energies by process node."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput, nearest


@cache
def table(name: str) -> dict[str, Any]:
    """One of the shared tables: `bodies`, `platforms`, `energy`."""
    return tomllib.loads(resources.files("octavo").joinpath("devices", "tables", f"{name}.toml").read_text("utf-8"))


def entry(where: str, name: str, key: str) -> dict[str, Any]:
    """Row `key` of a shared table. Raises BadInput with the nearest."""
    rows = table(name)
    if key not in rows:
        raise BadInput(f"{where}: unknown '{key}'.", nearest(key, rows))
    found: dict[str, Any] = rows[key]
    return found


def operation_energy(where: str, process: str, kind: str, number: str) -> Quantity:
    """J per operation of type `number` on a unit of `kind` made in `process`: a product of estimates, and so one."""
    energy = table("energy")
    if process not in energy["process"]:
        raise BadInput(f"{where}: unknown process '{process}'.", nearest(process, energy["process"]))
    if kind not in energy["unit"] or number not in energy["arithmetic"]:
        return Quantity(None, "J/op", Kind.UNKNOWN, source=f"no published energy of {number} on a {kind}")
    factors = (energy["arithmetic"][number], energy["process"][process], energy["unit"][kind][number])
    value, low, high = _product(factors, 1e-12)
    source = f"{energy['arithmetic']['source']}; × {factors[1]['value']} for {process}; × {factors[2]['value']}: "
    return Quantity(
        value, "J/op", Kind.ESTIMATED, low, high, source=source + energy["unit"][kind]["source"], date=energy["date"]
    )


def dram_energy(where: str, memory: str) -> Quantity:
    """J per byte read from or written to DRAM of this type."""
    energy = table("energy")
    types = {key: cell for key, cell in energy["memory"].items() if key != "source"}
    if memory not in types:
        raise BadInput(f"{where}: unknown memory '{memory}'.", nearest(memory, types))
    value, low, high = _product((types[memory],), 8e-12)
    source = f"{memory}: {energy['memory']['source']}"
    return Quantity(value, "J/B", Kind.ESTIMATED, low, high, source=source, date=energy["date"])


def share_of(ram: Quantity, share: Quantity) -> Quantity:
    """The memory slice [B]: a share of RAM, rounded to whole bytes; unknown when either is."""
    if ram.value is None or share.value is None:
        return Quantity(None, "B", Kind.UNKNOWN)
    low, high = (share.value if bound is None else bound for bound in (share.low, share.high))
    value, low, high = (float(round(ram.value * part)) for part in (share.value, low, high))
    source = f"{share.value:.0%} of RAM: {share.source}"
    return Quantity(value, "B", Kind.ESTIMATED, low, high, source=source, date=share.date)


def _product(factors: tuple[Mapping[str, float], ...], scale: float) -> tuple[float, float, float]:
    value = low = high = scale
    for factor in factors:
        value, low, high = value * factor["value"], low * factor["low"], high * factor["high"]
    return value, low, high
