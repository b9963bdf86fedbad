"""Placement and the report of an NPU's compiler, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.report.size import size

SHOWN = 40
DEAREST = 8
MEMORIES = {"sram": "SRAM", "dram": "DRAM", "on_chip_flash": "on-chip flash", "off_chip_flash": "off-chip flash"}


def units_line(placement: Sequence[Mapping[str, Any]]) -> str:
    """`12 of 13 operators on npu, 1 on cpu (vendor's compiler)`."""
    if not placement:
        return "unknown"
    counts = Counter(str(row["unit"]) for row in placement)
    parts = [f"{count} of {len(placement)} operators on {unit}" for unit, count in counts.most_common()]
    return f"{', '.join(parts)} ({', '.join(sorted({str(row['source']) for row in placement if row.get('source')}))})"


def fallback_table(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """One line per operator that fell back: why, and what to do; equal ones together. Nothing where none did."""
    if not rows:
        return []
    table = Table("operator", "runs on", "asked for", "why", "what to do", box=None, pad_edge=False)
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in ("unit", "asked", "reason", "do")), []).append(str(row["op"]))
    for (unit, asked, reason, do), names in list(groups.items())[:SHOWN]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        table.add_row(names[0] + more, Text(unit, style="yellow"), asked, reason, do)
    rest = len(groups) - SHOWN
    return [Text(), table, *([Text(f"… and {rest} more (--json lists all)")] if rest > 0 else [])]


def npu_tables(report: Mapping[str, Any] | None, placement: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """What the compiler says of its program: cycles and time, the dearest operators, memory and traffic."""
    if report is None:
        return []
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row(Text("compiler", style="dim"), f"{report['compiler']} for {report['target']}")
    counts = ", ".join(f"{count} on {unit}" for unit, count in report["counts"].items())
    facts.add_row(Text("its program", style="dim"), f"{counts} (every operator of the compiled file)")
    if report["cycles"] is not None:
        facts.add_row(Text("cycles", style="dim"), f"{report['cycles']:,} per inference (estimated by the compiler)")
    latency = report["latency_ms"]
    if latency:
        facts.add_row(Text("time", style="dim"), f"{latency['value']:.3g} ms ({latency['kind']}: {latency['source']})")
    return [Text(), facts, *_dearest(placement), *_memories(report)]


def placed(record: Any) -> RenderableType:
    """What a run's record says of its units: notes, fallbacks, gates that did not hold."""
    notes = [Text(f"note: {note}", style="yellow") for note in record.notes]
    gates = [Text(f"gate failed (exit {gate['code']}): {gate['reason']}", style="red") for gate in record.gates]
    return Group(*notes, *fallback_table(record.fallback), *gates)


def _dearest(placement: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    rows = sorted((row for row in placement if row.get("share")), key=lambda row: -row["share"])
    if not rows:
        return []
    table = Table("dearest operators", "share of the unit's cycles", box=None, pad_edge=False)
    for row in rows[:DEAREST]:
        table.add_row(row["op"], f"{row['share']:.1%}")
    return [Text(), table]


def _memories(report: Mapping[str, Any]) -> list[RenderableType]:
    if not report["memory"]:
        return []
    table = Table("memory", "used", "read", "written", "traffic per inference", box=None, pad_edge=False)
    for name, title in MEMORIES.items():
        traffic = report["traffic"].get(name, {})
        if name in report["memory"] or traffic:
            table.add_row(
                title, size(report["memory"].get(name)), *(size(traffic.get(key)) for key in ("read", "write", "total"))
            )
    return [Text(), table]
