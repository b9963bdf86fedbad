"""Rows of measurements as people bring them: a CSV of latencies, and what is known of the models measured.

    model, device, runtime, precision, latency_ms      needed
    the latency model's terms (plan/features.py)       facts of the model; FACTS has other names under which they go

Facts stand in the rows themselves or in a file of their own, by `model`. What only the conversion showed (how many
layers came out, and where they ran) is no fact: nobody has it before the conversion, so it is never used.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from octavo.errors import BadInput, nearest
from octavo.plan.features import TERMS

NEEDED = ("model", "device", "runtime", "precision", "latency_ms")
OUTCOMES = ("layers", "npu_layers", "gpu_layers", "cpu_layers", "primary_unit", "peak_mem_min_mb", "peak_mem_max_mb")
# Names under which people keep the same facts, as far as a single count goes: (term, what one of it is in the term).
FACTS: dict[str, tuple[str, float]] = {
    **{name: (name, 1.0) for name in TERMS},
    "macs": ("dense_gmacs", 1e-9), "gmacs": ("dense_gmacs", 1.0), "mmacs": ("dense_gmacs", 1e-3),
    "flops": ("dense_gmacs", 0.5e-9), "gflops": ("dense_gmacs", 0.5),
    "parameters": ("mparameters", 1e-6), "params": ("mparameters", 1e-6), "params_m": ("mparameters", 1.0),
    "activations": ("conv_melements", 1e-6), "macts": ("conv_melements", 1.0), "macts_m": ("conv_melements", 1.0),
    "operators": ("hundred_operators", 1e-2),
}  # fmt: skip
LINES_NAMED = 5


@dataclass(frozen=True)
class Row:
    """One measurement [ms], of a model of which `facts` (terms of the latency model) are known. `device` is a profile's
    name; `line` counts the file's lines from 1."""

    line: int
    model: str
    device: str
    runtime: str
    precision: str
    latency_ms: float
    facts: Mapping[str, float]


@dataclass(frozen=True)
class LeftOut:
    """Rows that cannot be used: why, how many, the first of their lines, and all whom it concerns (models, devices)."""

    reason: str
    rows: int
    lines: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """What the files held: `read` rows in all, those that can be used, what kept the others out; columns that are
    outcomes of the conversion, and columns that are no term; neither was looked at."""

    read: int
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    outcomes: tuple[str, ...]
    ignored: tuple[str, ...]


def read_rows(
    path: Path, facts: Path | None = None, *, profile: Callable[[str], str | None] = lambda name: name
) -> Rows:
    """Read measurements; `profile` gives a device's profile name, None where it has none.

    A fact that other models have and this one has not is a hole too: nothing is taken for zero. Raises BadInput when a
    needed column is missing, a file is no CSV, or facts of a model contradict each other.
    """
    columns, table = _table(path, NEEDED)
    fact_columns, known = _facts(facts) if facts is not None else ([], {})
    whole = [(line, cells, _terms(cells) | known.get(cells["model"], {})) for line, cells in table]
    wanted = {name for _, _, found in whole for name in found}
    rows: list[Row] = []
    problems: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line, cells, found in whole:
        device = profile(cells["device"]) if cells["device"] else None
        lacking = sorted(wanted - set(found)) if found else ["facts"]
        if problem := _problem(cells, device, lacking):
            name = cells["device"] if device is None else cells["model"] if problem.endswith("of the model") else ""
            problems[problem].append((line, name))
            continue
        words = (cells["model"], str(device), cells["runtime"], cells["precision"])
        rows.append(Row(line, *words, float(cells["latency_ms"]), {"inference": 1.0} | found))
    left_out = tuple(_left_out(why, where) for why, where in problems.items())
    every = dict.fromkeys((*columns, *fact_columns))
    unused = [name for name in every if name not in NEEDED and name not in OUTCOMES and name not in FACTS]
    return Rows(len(table), tuple(rows), left_out, tuple(name for name in every if name in OUTCOMES), tuple(unused))


def _problem(cells: Mapping[str, str], device: str | None, lacking: Sequence[str]) -> str:
    """Why a row cannot be used; nothing when it can."""
    if empty := [name for name in NEEDED if not cells[name]]:
        return f"no {', '.join(empty)}"
    latency = _number(cells["latency_ms"])
    if latency is None:
        return "latency_ms is no number"
    if latency <= 0:
        return "latency_ms is not above zero"
    if device is None:
        return "no profile of the device"
    return f"no {', '.join(lacking)} of the model" if lacking else ""


def _left_out(reason: str, where: Sequence[tuple[int, str]]) -> LeftOut:
    lines = tuple(line for line, _ in where[:LINES_NAMED])
    return LeftOut(reason, len(where), lines, tuple(dict.fromkeys(name for _, name in where if name)))


def _table(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns, and the rows by their line. A row with too few cells has empty ones, which are holes."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file.", "Name a CSV of measurements.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: not a CSV ({error}).", "Save it as comma-separated text in UTF-8.") from None
    for name in needed:
        if name not in columns:
            close = nearest(name, columns) if columns else "It is empty."
            raise BadInput(f"{path}: no column '{name}'. {close}", f"It needs {', '.join(needed)}.")
    return columns, rows


def _terms(cells: Mapping[str, str]) -> dict[str, float]:
    """What a row says of its model, in terms. A term under its own name counts before another name of it."""
    found: dict[str, float] = {}
    for name in sorted(set(cells) & set(FACTS), key=lambda name: name in TERMS):
        if (value := _number(cells[name])) is not None and value >= 0:
            term, scale = FACTS[name]
            found[term] = value * scale
    return found


def _facts(path: Path) -> tuple[list[str], dict[str, dict[str, float]]]:
    columns, rows = _table(path, ("model",))
    found: dict[str, dict[str, float]] = {}
    for line, cells in rows:
        facts = _terms(cells)
        if found.setdefault(cells["model"], facts) != facts:
            raise BadInput(f"{path}, line {line}: other facts of '{cells['model']}' than before.", "Keep one of them.")
    return columns, found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None
