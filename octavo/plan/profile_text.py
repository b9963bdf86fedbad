"""The TOML text of a profile, and of a file of coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from octavo.core.quantity import Quantity
from octavo.plan import quantities
from octavo.plan.device import Coefficients, Device
from octavo.plan.profile_document import BY_RUNTIME, OPTIONAL, QUANTITIES, UNIT_TABLES, by_runtime, coefficients_of


def document_of(device: Device) -> str:
    """The TOML text of a Device, complete in itself: nothing is left to the shared tables."""
    texts = {key: getattr(device, key) for key in ("name", "title", "year", "kind", "soc", "aliases")}
    texts |= {key: value for key in ("cliff", "process", "memory", "notes") if (value := getattr(device, key))}
    lines = [f"{key} = {quantities.literal(value)}" for key, value in texts.items()]
    lines += ["", *(f"{key} = {quantities.write(getattr(device, key))}" for key in (*QUANTITIES, *OPTIONAL))]
    for unit in device.units:
        lines += ["", f"[units.{unit.kind}]", f"name = {quantities.literal(unit.name)}"]
        lines += [f"types = {quantities.literal(unit.types)}"]
        lines += [f"runtimes = {_inline(unit.runtimes)}"]
        for key in UNIT_TABLES:
            lines += _table(f"units.{unit.kind}.{key}", getattr(unit, key))
    for key in BY_RUNTIME:
        lines += _table(key, getattr(device, key))
    return "\n".join(lines) + "\n" + "".join(_coefficient_text(one) for one in device.coefficients)


def fitted_document(device: str, coefficients: Sequence[Coefficients], head: str = "") -> str:
    """The TOML text of a file of coefficients."""
    text = f"# Fitted to measurements; write it again rather than edit it.\ndevice = {quantities.literal(device)}\n"
    return text + (f"\n{head.strip()}\n" if head else "") + "".join(_coefficient_text(one) for one in coefficients)


def _table(name: str, cells: Mapping[str, Quantity]) -> list[str]:
    return (
        ["", f"[{name}]", *(f"{_key(key)} = {quantities.write(cell)}" for key, cell in cells.items())] if cells else []
    )


def _coefficient_text(one: Coefficients) -> str:
    lines = ["", "[[coefficients]]"]
    for field in fields(one):
        value = getattr(one, field.name)
        lines.append(f"{field.name} = {_inline(value) if isinstance(value, dict) else quantities.literal(value)}")
    return "\n".join(lines) + "\n"


def _inline(cells: Mapping[str, Any]) -> str:
    return f"{{ {', '.join(f'{_key(key)} = {quantities.literal(value)}' for key, value in cells.items())} }}"


def _key(name: str) -> str:
    return name if name.replace("_", "a").replace("-", "a").isalnum() and name.isascii() else quantities.literal(name)


def kept(where: str, document: Mapping[str, Any]) -> tuple[tuple[Coefficients, ...], str]:
    """The coefficients of a file of them, and its tables by runtime as TOML. Raises BadInput naming file and key."""
    found = by_runtime(where, {}, [(where, document)])
    text = "\n".join(line for key in BY_RUNTIME for line in _table(key, found[key])).strip()
    return coefficients_of(where, document), text
