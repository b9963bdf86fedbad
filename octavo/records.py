"""What the verbs return: frozen records. `--json` prints `to_json`, whose keys are a contract."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """Base of all records."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as plain types."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class TensorSummary(Record):
    name: str
    shape: tuple[int, ...]
    scheme: str
    sqnr_db: float | None


@dataclass(frozen=True)
class ModelRecord(Record):
    """`compress` and `inspect`: what a model, a compressed model or an artifact holds. Sizes in bytes."""

    path: str
    kind: str
    digest: str | None
    parameters: int
    bytes: int
    bits_per_weight: float
    tensors: tuple[TensorSummary, ...]
    skipped: tuple[dict[str, str], ...] = ()
    lineage: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportRecord(Record):
    """`export`. `weights` is what reading the file back proved.

    `unit`: what was asked for. `placement`: every operator, the unit that runs it and why; `fallback`: those that run
    elsewhere, with what to do. `npu`: the report of an NPU's compiler (cycles, memory, traffic). `files`: everything
    written, by what it is.
    """

    path: str
    runtime: str
    bytes: int
    digest: str
    weights: Any
    placement: tuple[dict[str, Any], ...]
    widened: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    run_line: str
    bits_per_weight: float | None
    unit: str = "cpu"
    fallback: tuple[dict[str, Any], ...] = ()
    npu: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)
    gates: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class RunRecord(Record):
    """`run`. Latency in ms, rates in tokens per second; measured. `timing_is_native`: whether that is the runtime's own
    latency, or of an interpreter that stands in for it (`notes` say which)."""

    outputs: dict[str, dict[str, Any]]
    text: str | None
    placement: tuple[dict[str, Any], ...]
    latency_ms: float
    tokens: int | None = None
    tokens_per_second: dict[str, float] | None = None
    ids: tuple[int, ...] | None = None
    unit: str = "cpu"
    fallback: tuple[dict[str, Any], ...] = ()
    gates: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    timing_is_native: bool = True


@dataclass(frozen=True)
class VerifyRecord(Record):
    """`verify`. `outputs` come from the runtime itself, `decoded` from the file's weights run in torch.

    `diverges`: where it was looked for, the first operator whose output diverges from the float graph: {operator, kind,
    cause, reason, sqnr_db, suggestion, operators (every one that could be compared), unmatched}.
    """

    artifact: str
    digest: str | None
    weights: Any
    outputs: dict[str, Any] | None
    decoded: dict[str, Any] | None
    accuracy: dict[str, Any] | None
    fallback: tuple[dict[str, Any], ...]
    gates: tuple[dict[str, Any], ...]
    passed: bool
    notes: tuple[str, ...] = ()
    diverges: dict[str, Any] | None = None


@dataclass(frozen=True)
class FitRecord(Record):
    """`fit`: one entry per candidate, what was chosen, and the gates that did not hold."""

    device: str
    slice_bytes: int | None
    candidates: tuple[dict[str, Any], ...]
    chosen: str | None
    rule: str
    report: str | None
    gates: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class DoctorRecord(Record):
    """`doctor`: what works here, and what to do about what does not: per runtime, per extra of the package, and per
    runtime and unit."""

    runtimes: tuple[dict[str, Any], ...]
    extras: tuple[dict[str, Any], ...] = field(default=())
    units: tuple[dict[str, Any], ...] = field(default=())


EXIT_ORDER = (1, 6, 5, 4, 3, 7)


def exit_code(gates: tuple[dict[str, Any], ...]) -> int:
    """The first of the failed gates' exit codes in the order of the contract; 0 when none failed."""
    failed = {gate["code"] for gate in gates}
    return next((code for code in EXIT_ORDER if code in failed), 0)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if type(value).__module__ == "numpy":  # a scalar; numpy itself need not be loaded to know
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class PlanRecord(Record):
    """`plan`: every candidate, best first, in bytes, ms, tokens/s and J; figures are {value, low, high, kind, source}.

    With one device `device` is its name; with several it is their names, each candidate has its own under `device`, and
    `devices` holds the plan of each. `best` names the first candidate that fits ({scheme, runtime, unit}), else None.
    `slice_bytes`: what is granted before the reserve; None where it is not known or differs between devices.
    """

    model: str
    device: str | tuple[str, ...]
    context: int | None
    slice_bytes: int | None
    candidates: tuple[dict[str, Any], ...]
    best: dict[str, str] | None
    answer: str
    rule: str
    facts: dict[str, Any]
    setting: dict[str, Any]
    curve: dict[str, Any] | None
    would_fit: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    gates: tuple[dict[str, Any], ...]
    devices: tuple[PlanRecord, ...] = ()


@dataclass(frozen=True)
class DecideRecord(Record):
    """`decide`: what each path costs, where they break even, the verdict, and what would flip it.

    `chosen` is None where no path keeps the requirements. Quantities have value, unit, kind, source, and low and high
    where there is an interval; `certain` is false where one straddles what decides (`doubts` says which).
    """

    inputs: dict[str, Any]
    paths: tuple[dict[str, Any], ...]
    chosen: str | None
    certain: bool
    doubts: tuple[str, ...]
    rule: str
    break_even: dict[str, Any]
    flip: dict[str, Any] | None
    flips: tuple[dict[str, Any], ...]
    cuts: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    gates: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class DevicesRecord(Record):
    """`devices list`: one line per profile. Bytes, bytes per second; None where nobody knows."""

    devices: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class DeviceRecord(Record):
    """`devices show` and `devices probe`: every figure of a profile under its key (`units.npu.rates.int8`), each with
    value, unit, kind, source and date, and the interval where there is one; `coefficients` as they were fitted."""

    name: str
    title: str
    year: int
    kind: str
    soc: str
    aliases: tuple[str, ...]
    path: str | None
    units: tuple[dict[str, Any], ...]
    figures: dict[str, dict[str, Any]]
    coefficients: tuple[dict[str, Any], ...]
    cliff: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DeviceFitRecord(Record):
    """`devices fit`: rows read and used, what kept the others out, and the error on models left out of the fit (as
    fractions) per device, runtime and precision."""

    rows: int
    used: int
    left_out: tuple[dict[str, Any], ...]
    groups: tuple[dict[str, Any], ...]
    overall: dict[str, Any]
    written: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchRecord(Record):
    """`bench`: what was measured here, in fresh processes. ms, bytes, tokens per second.

    `latency_ms`: {p50, p90, p99, n, max, interval, reach, settled}: `interval` is 95 % of p50, `reach` its larger side
    as a share of p50, `settled` whether that is within the precision asked for. With several threads or batches the
    figures up to `runs` are those of the first, and `configurations` has them all; `runs` has one entry per process.
    `sustained`: windows of time; `throttling`: the verdict over them; `profile`: {runs, total_ms, operators}.
    """

    artifact: str
    runtime: str
    latency_ms: dict[str, Any]
    peak_memory_bytes: int
    tokens_per_second: dict[str, float] | None
    items_per_second: float | None
    threads: int | None
    batch: int | None
    load_ms: float
    first_ms: float
    peak_rss_bytes: int
    baseline_bytes: int
    language: dict[str, Any] | None
    runs: tuple[dict[str, Any], ...]
    configurations: tuple[dict[str, Any], ...]
    inputs: dict[str, dict[str, Any]]
    units: dict[str, int]
    sustained: tuple[dict[str, Any], ...]
    throttling: dict[str, Any] | None
    profile: dict[str, Any] | None
    plot: str | None
    machine: dict[str, Any]
    rule: str
    interrupted: bool = False
    notes: tuple[str, ...] = ()
