"""How fast is an artifact on this machine, how much memory does it take, and does it stay so?"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.bench.fresh import Fresh, measure_fresh
from octavo.bench.inputs import Taken, drawn, prompt, read, sized, taken
from octavo.bench.operators import measure_operators
from octavo.bench.sustained import measure_sustained
from octavo.bench.throttling import verdict
from octavo.bench.timing import Latency, Until, latency, throughput
from octavo.core.amount import SECONDS, SHARE, amount
from octavo.core.store import new_path
from octavo.errors import BadInput
from octavo.records import BenchRecord

OPENER = "octavo.runtimes.base:open_artifact"
PROMPT_TOKENS, DECODE_TOKENS = 64, 32
LANGUAGE_RUNS = 3  # at least, each a prompt and the tokens after it
WARM_UP = 5
BUSY = 0.25  # of the cores, by the load before anything was started
PARTS = 1000  # of the progress bar
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Work:
    """What is run: `inputs` by name; of a language model a prompt, and `decode` tokens after it."""

    inputs: dict[str, Any]
    threads: int | None
    batch: int | None
    decode: int = 0
    kv: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """How the bench room's functions want it."""
        context = np.size(self.inputs["ids"]) + self.decode if self.decode else None
        return {"threads": self.threads, "decode": self.decode, "context": context, "kv": self.kv}


def bench(
    artifact: str | Path,
    *,
    input: str | Path | None = None,
    repeat: int | None = None,
    precision: float | str = "2%",
    limit: float | str = "20s",
    threads: int | Sequence[int] | None = None,
    batch: int | Sequence[int] | None = None,
    processes: int = 1,
    sustained: float | str | None = None,
    plot: str | Path | None = None,
    profile: bool = False,
    prompt_tokens: int | None = None,
    decode_tokens: int | None = None,
    kv: str | None = None,
    fix: Mapping[str, Any] | Sequence[str] | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> BenchRecord:
    """Measure any file that a runtime here opens, Octavo's or not, in fresh processes.

    Calls are timed until the 95 % interval of their median is within `precision` of it, or `limit` seconds are over;
    with `repeat`, so many calls exactly. `threads` and `batch` may be several: all pairs are measured. `processes`: so
    many fresh processes each. Inputs are drawn by `seed` unless `input` has them (.npz); `fix` settles free lengths.
    `sustained` (`5m`) runs on without a pause, judges whether it slowed down, and draws `plot` (.svg); Ctrl-C then
    keeps what was measured. Raises BadInput, WorkerDied, WorkerTimeout, and what the runtime raises.
    """
    from octavo.runtimes.base import runtime_of

    path = Path(artifact)
    runtime = runtime_of(path).name
    until = _until(repeat, precision, limit)
    duration = None if sustained is None else float(amount(sustained, SECONDS, "--sustained", positive=True))
    if processes < 1:
        raise BadInput(f"{processes} processes.", "Ask for 1 or more.")
    if plot is not None and duration is None:
        raise BadInput("--plot draws latency over time.", "Ask for --sustained 5m as well.")
    if plot is not None and Path(plot).exists() and not force:
        raise BadInput(f"{plot} exists already.", "Give --force to replace it, or another --plot.")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    takes = taken(OPENER, path)
    works = [
        _work(takes, number, size, input, prompt_tokens, decode_tokens, kv, fix, seed)
        for number in _several(threads, "--threads")
        for size in _several(batch, "--batch")
    ]
    rows, interrupted = _rows(path, works, until, processes, progress), False
    windows: list[dict[str, Any]] = []
    if duration is not None:
        interrupted = _sustain(path, works[0], duration, windows, progress)
    operators = None
    if profile and not interrupted:
        operators = measure_operators(OPENER, path, works[0].inputs, threads=works[0].threads)
    judged = verdict(windows, seed).as_dict() if duration is not None else None
    if plot is not None and windows:
        _draw(Path(plot), path.name, windows, judged, force)
    notes = _notes(rows, load, repeat, profile and not interrupted and operators is None, runtime)
    return BenchRecord(
        artifact=str(path), runtime=runtime, **rows[0], configurations=tuple(rows),
        inputs={name: {"shape": list(v.shape), "dtype": str(v.dtype)} for name, v in works[0].inputs.items()},
        units=takes.units, sustained=tuple(windows), throttling=judged, profile=operators,
        plot=str(plot) if plot is not None and windows else None, machine=_machine(load), rule=_rule(until, repeat),
        interrupted=interrupted, notes=tuple(notes),
    )  # fmt: skip


def _until(repeat: int | None, precision: float | str, limit: float | str) -> Until:
    if repeat is not None:
        return Until(repeat, min_seconds=0.0)
    share = float(amount(precision, SHARE, "--precision", positive=True))
    return Until(precision=share, limit=float(amount(limit, SECONDS, "--limit", positive=True)))


def _several(value: int | Sequence[int] | None, option: str) -> list[int | None]:
    values: list[int | None] = [value] if value is None or isinstance(value, int) else list(value)
    for number in values:
        if number is not None and number < 1:
            raise BadInput(f"{option} {number}.", "Give 1 or more.")
    return values


def _work(
    takes: Taken, threads: int | None, batch: int | None, input: str | Path | None, prompt_tokens: int | None,
    decode_tokens: int | None, kv: str | None, fix: Any, seed: int,
) -> Work:  # fmt: skip
    from octavo.sources.onnx.fix import parse_fix

    if takes.language:
        if batch is not None or input is not None:
            raise BadInput("A language model decodes one sequence.", "Leave --batch and --input out (--prompt N).")
        length, decode = _lengths(takes.context, prompt_tokens, decode_tokens)
        return Work(prompt(takes.vocabulary or 1, length, seed), threads, None, decode, kv)
    if any(given is not None for given in (prompt_tokens, decode_tokens, kv)):
        raise BadInput("--prompt, --decode and --kv are for language models; this file takes no ids with a KV cache.")
    if input is not None:
        return Work(read(Path(input), takes.inputs, batch), threads, batch)
    fixed = parse_fix(fix)
    return Work(drawn(takes.inputs, sized(takes.inputs, batch, fixed), seed, fixed), threads, batch)


def _lengths(context: int | None, prompt_tokens: int | None, decode_tokens: int | None) -> tuple[int, int]:
    """Tokens of the prompt and after it, within the context. Raises BadInput for more than that was asked for."""
    room = context or PROMPT_TOKENS + DECODE_TOKENS
    decode = decode_tokens or min(DECODE_TOKENS, max(1, room // 2))
    length = prompt_tokens or min(PROMPT_TOKENS, max(1, room - decode))
    if context is not None and length + decode > context:
        raise BadInput(
            f"{length} tokens of prompt and {decode} after it: the model's context is {context}.",
            "Ask for fewer (--prompt, --decode).",
        )
    return length, decode


def _rows(path: Path, works: Sequence[Work], until: Until, processes: int, progress: Progress) -> list[dict[str, Any]]:
    """One row per configuration. One round goes through all of them, so that a slow minute hits all."""
    found: list[list[Fresh]] = [[] for _ in works]
    total, spoken = len(works) * processes, replace(until, repeat=LANGUAGE_RUNS, min_seconds=0.0)
    for place in range(total):
        work = works[place % len(works)]

        def report(share: float, place: int = place) -> None:
            progress("bench", int(PARTS * (place + share)), PARTS * total)

        report(0.0)
        asked = spoken if work.decode and until.precision else until
        one = measure_fresh(OPENER, path, work.inputs, warmup=WARM_UP, until=asked, report=report, **work.given)
        found[place % len(works)].append(one)
    progress("bench", PARTS * total, PARTS * total)
    return [_row(work, runs, until) for work, runs in zip(works, found, strict=True)]


def _row(work: Work, found: Sequence[Fresh], until: Until) -> dict[str, Any]:
    """Calls of all processes together; the interval is the hull of the processes' own, memory the largest."""
    times = latency(np.concatenate([one.calls for one in found]))
    ends = [one.latency_ms.interval for one in found]
    times = Latency(
        times.p50,
        times.p90,
        times.p99,
        times.n,
        times.max,
        (min(low for low, _ in ends), max(high for _, high in ends)),
    )
    rate = None
    if work.decode:
        prefills = np.concatenate([one.prefills for one in found])
        calls = np.concatenate([one.calls.reshape(-1, work.decode) for one in found])
        rate = throughput(np.size(work.inputs["ids"]), prefills, calls)
    settled = None if until.precision is None else times.reach <= until.precision
    return {
        "threads": work.threads,
        "batch": work.batch,
        "latency_ms": times.as_dict() | {"reach": times.reach, "settled": settled},
        "tokens_per_second": None if rate is None else {"prefill": rate.prefill, "decode": rate.decode},
        "items_per_second": None if rate else (work.batch or 1) * 1e3 / times.p50,
        "load_ms": float(np.median([one.load_ms for one in found])),
        "first_ms": float(np.median([one.first_ms for one in found])),
        "peak_memory_bytes": max(one.peak_memory_bytes for one in found),
        "peak_rss_bytes": max(one.peak_rss_bytes for one in found),
        "baseline_bytes": max(one.baseline_bytes for one in found),
        "language": None if rate is None else rate.as_dict(),
        "runs": tuple(
            {
                "p50": one.latency_ms.p50, "interval": one.latency_ms.interval, "n": one.latency_ms.n,
                "load_ms": one.load_ms, "first_ms": one.first_ms, "peak_memory_bytes": one.peak_memory_bytes,
            }
            for one in found
        ),
    }  # fmt: skip


def _sustain(path: Path, work: Work, seconds: float, windows: list[dict[str, Any]], progress: Progress) -> bool:
    """Fill `windows` as they come; whether it was interrupted."""

    def on_window(window: dict[str, Any]) -> None:
        windows.append(window)
        progress("sustained", min(int(window["end_s"] * 10), int(seconds * 10)), int(seconds * 10))

    progress("sustained", 0, int(seconds * 10))
    try:
        measure_sustained(OPENER, path, work.inputs, seconds, on_window=on_window, **work.given)
    except KeyboardInterrupt:
        return True
    return False


def _draw(plot: Path, title: str, windows: list[dict[str, Any]], judged: dict[str, Any] | None, force: bool) -> None:
    from octavo.report.latency_plot import latency_plot

    with new_path(plot, force=force) as temporary:
        temporary.write_text(latency_plot(title, windows, judged), "utf-8")


def _notes(
    rows: Sequence[dict[str, Any]], load: float | None, repeat: int | None, unprofiled: bool, runtime: str
) -> list[str]:
    notes = []
    cores = os.cpu_count() or 1
    if load is not None and load > BUSY * cores:
        notes.append(f"The machine was busy before anything was started: a load of {load:.1f} on {cores} cores.")
    for row in rows:
        times = row["latency_ms"]
        if times["settled"] is False:
            where = "".join(f" {key} {row[key]}" for key in ("threads", "batch") if row[key] and len(rows) > 1)
            notes.append(f"Stopped at the limit{where}: the median is known within ±{times['reach']:.1%}.")
    if unprofiled:
        notes.append(f"{runtime} has no profiler that Octavo knows of: no time per operator.")
    return notes


def _machine(load: float | None) -> dict[str, Any]:
    return {"cores": os.cpu_count(), "load": load, "system": platform.system(), "machine": platform.machine()}


def _rule(until: Until, repeat: int | None) -> str:
    if repeat is not None:
        return f"{until.repeat} timed calls, as asked; no timing is left out"
    held = f"timed until the 95 % interval of the median is within ±{until.precision:.3g} of it"
    return f"{held}, or for {until.limit:g} s; no timing is left out"
