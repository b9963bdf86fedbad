"""Which operators are quantised for a target, and how their scales hang together: tables, read once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from octavo.errors import BadInput, nearest

KEYS = {"about", "extends", "types", "weighted", "free", "also_free", "shared", "joining", "fused", "fixed", "float"}


@dataclass(frozen=True)
class Rules:
    """One target. Operators by plain name: `weighted` (weight, int32 bias), `free` (own scales), `shared` (the input's
    scale), `joining` (shared, of several inputs); `fused` {activation: operators that compute it within};
    `fixed` {operator: {type: (scale, zero point) of its output}}; `floats` {operator: why it stays in float}."""

    name: str
    about: str
    types: tuple[str, ...]
    weighted: frozenset[str]
    free: frozenset[str]
    shared: frozenset[str]
    joining: frozenset[str]
    fused: Mapping[str, frozenset[str]]
    fixed: Mapping[str, Mapping[str, tuple[float, int]]]
    floats: Mapping[str, str]

    def quantised(self, operator: str) -> bool:
        """Whether the operator runs on integers."""
        return operator in self.weighted or operator in self.free or operator in self.shared or operator in self.fixed


def targets() -> list[str]:
    """The names there are tables for."""
    found = resources.files("octavo.compress").joinpath("targets").iterdir()
    return sorted(item.name.removesuffix(".toml") for item in found if item.name.endswith(".toml"))


@cache
def rules(target: str) -> Rules:
    """The table of a target. Raises BadInput for an unknown one."""
    if target not in targets():
        raise BadInput(f"Unknown target '{target}'.", nearest(target, targets()))
    table = _table(target)
    names = {key: frozenset(table[key]) for key in ("weighted", "free", "shared", "joining")}
    names["free"] |= frozenset(table.get("also_free", ()))
    names["joining"] &= names["shared"]
    return Rules(
        name=target,
        about=table["about"],
        types=tuple(table["types"]),
        fused={key: frozenset(value) for key, value in table["fused"].items()},
        fixed={
            key: {kind: (pair[0], pair[1]) for kind, pair in value.items()} for key, value in table["fixed"].items()
        },
        floats=dict(table["float"]),
        **names,
    )


def _table(target: str) -> dict[str, Any]:
    text = resources.files("octavo.compress").joinpath("targets", f"{target}.toml").read_text("utf-8")
    table = tomllib.loads(text)
    unknown = sorted(set(table) - KEYS)
    if unknown:
        raise BadInput(f"{target}.toml: unknown key '{unknown[0]}'.", nearest(unknown[0], KEYS))
    return {**(_table(table["extends"]) if "extends" in table else {}), **table}
