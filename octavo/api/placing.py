"""Opening an artifact on the units asked for, and saying which unit each operator got."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.core.placement import asked_for
from octavo.core.units import ETHOS_U, HEXAGON
from octavo.errors import Missing

INEXACT = 6  # exit code


@dataclass(frozen=True)
class Opened:
    """A session, the unit asked for, and why an operator that got another one may have got it."""

    session: Any
    unit: str
    absent: str

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """Which unit runs each operator, as the runtime says."""
        placements = self.session.placement()
        if self.unit in ETHOS_U:  # why the CPU's delegate took it or not is beside the point
            placements = [replace(item, reason="") for item in placements]
        return tuple(item.row() for item in asked_for(placements, self.unit, self.absent))


def open_on(target: Any, path: Path, units: tuple[str, ...], **asked: Any) -> Opened:
    """Open `path` in its runtime. `units`: the one asked for, then those allowed beside it; there is always the CPU,
    and what it runs instead of another is a fallback with a reason. `asked`: of `Runtime.open`."""
    unit = units[0]
    absent = f"{target.name} has no {unit} here" if unit != "cpu" else ""
    if unit in ETHOS_U:
        absent = f"an {unit} is not in this machine"
    if unit == HEXAGON and target.name == "onnxruntime":
        from octavo.runtimes.npu.qnn import QnnSession

        try:
            return Opened(QnnSession(path), unit, "")
        except Missing as error:
            absent = str(error)
    return Opened(target.open(path, units=_within(target, units), **asked), unit, absent)


@dataclass(frozen=True)
class Compiled:
    """A file compiled for an NPU, as it concerns `verify`: which unit each operator got, and whether the file is what
    its int8 form compiles to."""

    unit: str
    rows: tuple[dict[str, Any], ...]
    gates: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def int8_form(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The file that can be read and run: of one compiled for an NPU its int8 form, with a note that says so."""
    from octavo.runtimes.npu.compiled import read_compiled

    compiled = read_compiled(path)
    if compiled is None:
        return path, ()
    note = (
        f"{path.name} is the program for {compiled.target}: this is of its int8 form {compiled.form.name}, on the CPU."
    )
    return compiled.form, (note,)


def check_compiled(path: Path) -> Compiled | None:
    """Compile the int8 form of a compiled file again, and compare the bytes; None for any other file."""
    from octavo.runtimes.npu.compiled import compiled_again, read_compiled

    compiled = read_compiled(path)
    if compiled is None:
        return None
    try:
        wrong, report = compiled_again(compiled)
    except Missing as error:
        rows = tuple(item.row() for item in asked_for(compiled.placement, compiled.target, ""))
        note = f"{path.name} was not compiled again to compare, and its placement is as it was recorded: {error}"
        return Compiled(compiled.target, rows, (), (note,))
    rows = tuple(item.row() for item in asked_for(report.placement, compiled.target, ""))
    gates = ({"gate": "compiled", "code": INEXACT, "reason": f"{path.name}: {wrong}"},) if wrong else ()
    notes = () if wrong else (f"{path.name} is, byte for byte, what {report.compiler} makes of the int8 form.",)
    return Compiled(compiled.target, rows, gates, notes)


def _within(target: Any, units: tuple[str, ...]) -> tuple[str, ...]:
    """Units as a runtime on this machine knows them, the CPU last."""
    named = tuple("npu" if unit in (*ETHOS_U, HEXAGON) else unit for unit in units)
    return tuple(dict.fromkeys((*named, "cpu")))
