"""Fit a device's coefficients to measurements, and say how far models were missed that the fit had not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any

from octavo.errors import BadInput
from octavo.plan import profiles
from octavo.plan.device import Coefficients
from octavo.plan.rows import Rows, read_rows
from octavo.records import DeviceFitRecord

SHOWN = ("runtime", "precision", "unit", "rows", "models", "median_error", "p90_error", "low", "high")


def devices_fit(
    rows_csv: str | Path,
    *,
    facts: str | Path | None = None,
    out: str | Path | None = None,
    source: str | None = None,
    force: bool = False,
) -> DeviceFitRecord:
    """Fit the latency of networks to measurements (plan/rows.py says which columns), per device, runtime and precision.

    `facts`: a CSV with the models' facts, where the rows have none. `out`: a directory that gets a file per device (in
    a profile directory's `fitted/` it counts from then on), or, for one device, a `.toml`; without it nothing is
    written. `source` names the measurements in what is written (default: the file's name).
    Raises BadInput: a missing column, no row that can be used, an `out` that exists and `force` is off.
    """
    from octavo.plan import fitting

    read = read_rows(Path(rows_csv), None if facts is None else Path(facts), profile=profiles.canonical)
    if not read.rows:
        why = "; ".join(f"{item.reason} ({item.rows})" for item in read.left_out[:3])
        raise BadInput(f"{rows_csv}: none of {read.read} rows can be fitted: {why}.", "Fill in what is missing.")
    rows = [fitting.Row(r.model, r.device, r.runtime, r.precision, r.latency_ms, r.facts) for r in read.rows]
    targets = _targets(None if out is None else Path(out), sorted({row.device for row in rows}), force)
    found = fitting.fit_measurements(rows, source=source or Path(rows_csv).name, date=date.today().isoformat())
    for device, path in targets.items():
        profiles.write_fitted(device, found[device], path, force=force)
    return DeviceFitRecord(
        rows=read.read,
        used=len(rows),
        left_out=tuple(asdict(item) for item in read.left_out),
        groups=tuple({"device": device} | _group(one) for device, every in found.items() for one in every),
        overall=_overall(found),
        written=tuple(str(path) for path in targets.values()),
        notes=_notes(read, found),
    )


def _targets(out: Path | None, devices: Sequence[str], force: bool) -> dict[str, Path]:
    """{device: file}. Whatever must not be replaced is refused before anything is fitted."""
    if out is None:
        return {}
    if out.suffix == ".toml" and len(devices) > 1:
        raise BadInput(f"{out}: rows of {len(devices)} devices, one file.", "Give a directory: one file per device.")
    targets = {name: out if out.suffix == ".toml" else out / f"{name}.toml" for name in devices}
    for path in targets.values():
        if path.exists() and not force:
            raise BadInput(f"{path} exists already.", "Choose another -o, or replace it with --force.")
    return targets


def _group(one: Coefficients) -> dict[str, Any]:
    shown = {name: getattr(one, name) for name in SHOWN}
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in shown.items()}


def _overall(found: dict[str, tuple[Coefficients, ...]]) -> dict[str, Any]:
    """Medians over the groups, each counted as often as it has rows."""
    every = [one for coefficients in found.values() for one in coefficients if isfinite(one.median_error)]
    medians = sorted(error for one in every for error in [one.median_error] * one.rows)
    return {"groups": len(every), "median_error": medians[len(medians) // 2] if medians else None}


def _notes(read: Rows, found: dict[str, tuple[Coefficients, ...]]) -> tuple[str, ...]:
    notes = []
    if read.outcomes:
        notes.append(f"Not used, as nobody has them before the conversion: {', '.join(read.outcomes)}.")
    if read.ignored:
        notes.append(f"Not used, as they are no term of the latency model: {', '.join(read.ignored)}.")
    few = sum(not isfinite(one.median_error) for coefficients in found.values() for one in coefficients)
    if few:
        notes.append(f"{few} groups have too few models to leave one out: their error is unknown.")
    return tuple(notes)
