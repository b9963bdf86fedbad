"""Measurements in a CSV, as rows to fit: latency by model, device, runtime and precision, and the models' features.

ROWS.csv    model, device, runtime, precision, latency_ms, and unit where it is known; other columns are not read
FACTS.csv   model, and the TERMS of plan/features.py (as benchmarks/architectures.csv has them); or, coarser, gmacs,
            params_m and macts_m (as published tables of image models have them)
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from octavo.errors import BadInput, nearest
from octavo.plan.features import TERMS, Features
from octavo.plan.fitting import Row

NEEDED = ("model", "device", "runtime", "precision", "latency_ms")
COARSE = {"gmacs": "dense_gmacs", "params_m": "mparameters", "macts_m": "conv_melements"}


def read_rows(path: Path, features: Mapping[str, Features]) -> tuple[list[Row], list[str]]:
    """(the rows that can be fitted, what is wrong with each of the others: file, line, reason).

    Raises BadInput: no such file, a column that is missing from the header, or no row left.
    """
    rows, holes = [], []
    for line, raw in _lines(path, NEEDED):
        try:
            rows.append(_row(raw, features))
        except ValueError as error:
            holes.append(f"{path.name}:{line}: {error}")
    if not rows:
        raise BadInput(f"{path}: none of {len(holes)} rows can be fitted.", holes[0] if holes else "It is empty.")
    return rows, holes


def read_features(path: Path) -> dict[str, Features]:
    """Features by model. Raises BadInput: no such file, or neither kind of columns; a hole in a row, with its line."""
    found: dict[str, Features] = {}
    for line, raw in _lines(path, ("model",)):
        names = {name: name for name in TERMS} if "dense_gmacs" in raw else COARSE
        if missing := [key for key in names if key not in raw and key != "inference"]:
            raise BadInput(f"{path}: no column {', '.join(missing)}.", f"Write model, {', '.join(COARSE)}.")
        values = {name: _number(raw[key]) for key, name in names.items() if key in raw}
        if holes := [key for key, name in names.items() if key in raw and values[name] is None]:
            raise BadInput(f"{path}:{line}: {raw['model']} has no {', '.join(holes)}.", "Write numbers, 0 or more.")
        found[raw["model"]] = {"inference": 1.0} | {name: value for name, value in values.items() if value is not None}
    return found


def _lines(path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file.", "Give a CSV file.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or ()
        if missing := [key for key in needed if key not in header]:
            raise BadInput(f"{path}: no column {', '.join(missing)}.", nearest(missing[0], header or needed))
        return [(reader.line_num, {key: (value or "").strip() for key, value in raw.items() if key}) for raw in reader]


def _row(raw: Mapping[str, str], features: Mapping[str, Features]) -> Row:
    if missing := [key for key in NEEDED if not raw[key]]:
        raise ValueError(f"no {', '.join(missing)}")
    latency = _number(raw["latency_ms"])
    if not latency:
        raise ValueError(f"latency_ms is {raw['latency_ms']}")
    if raw["model"] not in features:
        raise ValueError(f"no facts of {raw['model']}. {nearest(raw['model'], features)}")
    unit = raw.get("unit", "").lower()
    return Row(
        raw["model"], raw["device"], raw["runtime"], raw["precision"], latency, features[raw["model"]], unit=unit
    )


def _number(text: str) -> float | None:
    """A finite number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None
