"""Writes octavo/devices/fitted/*.toml: coefficients of networks and of language models, from data/phones.

python -m benchmarks.planner_phones --write octavo/devices/fitted --date 2026-11-22
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks._phones import read
from octavo.plan import profiles
from octavo.plan.fitting import fit_measurements

SOURCE = "octavo.plan.fitting on qualcomm/ai-hub-models @ b61a009028de, perf.yaml"


def write(train: Path, out: Path, date: str, extra: float) -> None:
    """Fit all rows and write a file for every device that has a profile; the others are named."""
    from benchmarks._phones_llm import fragments

    measured = read(train, extra=extra)
    rows = [replace(row, device=profiles.canonical(row.device) or row.device) for row in measured.rows]
    found = fit_measurements(rows, source=SOURCE, date=date)
    heads = fragments(train, date)
    for device in sorted({*found, *heads}):
        if device not in profiles.names():
            print(f"{device}: has no profile, {len(found[device])} fits not written")
            continue
        path = out / f"{device}.toml"
        coefficients = found.get(device, ())
        profiles.write_fitted(device, coefficients, path, head=heads.get(device, ""), force=True)
        print(f"{path}: {len(coefficients)} fits, {path.stat().st_size} bytes")
