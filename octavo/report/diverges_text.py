"""Where an artifact diverges from the float graph: the operator, why, what to change, and the worst operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

SHOWN = 8


def diverges_text(found: Mapping[str, Any]) -> list[RenderableType]:
    """`diverges` of a VerifyRecord."""
    kind = f" ({found['kind']})" if found.get("kind") else ""
    lines: list[RenderableType] = [
        Text(f"diverges first at {found['operator']}{kind}: {found['reason']}", style="red"),
        Text(f"to do: {found['suggestion']}"),
    ]
    rows = found["operators"]
    worst = sorted(range(len(rows)), key=lambda place: _order(rows[place]))[:SHOWN]
    chosen = {found["operator"], *(rows[place]["name"] for place in worst)}
    table = Table("operator", "", "weight", "SQNR dB", "simulated", "its inputs", box=None, pad_edge=False)
    for row in rows:
        if row["name"] in chosen:
            style = "red" if row["name"] == found["operator"] else ""
            table.add_row(
                row["name"], row["operator"], row["layer"], _decibels(row["sqnr_db"], row["identical"]),
                _decibels(row["simulated_db"]), _decibels(row["before_db"]), style=style,
            )  # fmt: skip
    lines.append(table)
    hidden = len(rows) - table.row_count
    if hidden > 0:
        lines.append(Text(f"… and {hidden} better ones (--json lists all)", style="dim"))
    return lines


def _order(row: Mapping[str, Any]) -> float:
    """Worst first; an SQNR without a number is either perfect or that of NaN."""
    if row["sqnr_db"] is None:
        return float("inf") if row["identical"] else float("-inf")
    return float(row["sqnr_db"])


def _decibels(value: float | None, identical: bool = False) -> str:
    return "identical" if identical else "–" if value is None else f"{value:.1f}"
