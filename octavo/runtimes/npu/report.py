"""What compiling for an NPU gave, the same for every compiler."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.core.placement import Placement

COLUMNS = ("op", "from", "unit", "fused", "cycles", "macs", "name")


@dataclass(frozen=True)
class NpuReport:
    """What compiling for an NPU gave.

    placement: every operator of the input file. operators: every operator of the NPU's program, as the compiler lists
    them (COLUMNS; fused: done within another). counts: operators of the program per unit, without the fused.
    cycles: of one inference. latency_ms ({"value", "kind", "source"}), memory and traffic in bytes: estimates of the
    compiler's model.
    """

    target: str
    compiler: str
    setting: dict[str, Any]
    placement: tuple[Placement, ...]
    operators: tuple[dict[str, Any], ...]
    counts: dict[str, int]
    cycles: int | None
    latency_ms: dict[str, Any] | None
    memory: dict[str, int]
    traffic: dict[str, dict[str, int]]
    macs: int | None
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; the placement stands in the record that holds this."""
        return {
            "target": self.target, "compiler": self.compiler, "setting": self.setting, "counts": self.counts,
            "cycles": self.cycles, "latency_ms": self.latency_ms, "memory": self.memory, "traffic": self.traffic,
            "macs": self.macs, "operators": list(self.operators),
        }  # fmt: skip


def write_operators(report: NpuReport, path: Path) -> None:
    """The NPU's program as CSV, one line per operator."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(report.operators)
