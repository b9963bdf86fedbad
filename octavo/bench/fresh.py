"""Load time, latency and peak memory of an artifact in a process that has done nothing else.

The worker's own end (`measure`) and the caller's (`measure_fresh`) share this file. How an artifact is opened comes as
an import path, `pkg.module:function`, called as `function(Path, threads=…)` and returning a Session.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.bench.timing import (
    Floats,
    Latency,
    Report,
    Throughput,
    Until,
    latency,
    throughput,
    timed_calls,
    timed_language,
)
from octavo.errors import BadInput, Missing
from octavo.workers.local import Worker

Arrays = dict[str, NDArray[Any]]
PRECISION, LIMIT = 0.02, 5.0  # of a measurement that nobody asked to be better or shorter


@dataclass(frozen=True)
class Fresh:
    """What a fresh process measured.

    `load_ms`: importing the runtime and opening the file; `first_ms`: the first run (of a language model, the first
    prompt), which warms up what the others find warm.
    `peak_rss_bytes`: the largest resident set, of the process and of those it started, summed over `processes`.
    `baseline_bytes`: the interpreter, numpy and Octavo before the runtime was imported, times `processes`; the
    difference, `peak_memory_bytes`, is what runtime, model and work took. Mapped pages of the file count once touched.
    `prefills` [n] and `calls` (float64 seconds, in order): what the figures are made of.
    """

    load_ms: float
    first_ms: float
    latency_ms: Latency
    tokens_per_second: Throughput | None
    peak_rss_bytes: int
    baseline_bytes: int
    processes: int
    threads: int | None
    calls: Floats = field(repr=False, compare=False)
    prefills: Floats = field(repr=False, compare=False)

    @property
    def peak_memory_bytes(self) -> int:
        return max(0, self.peak_rss_bytes - self.baseline_bytes)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of `bench`."""
        rate = self.tokens_per_second
        return {
            "latency_ms": self.latency_ms.as_dict(),
            "tokens_per_second": None if rate is None else {"prefill": rate.prefill, "decode": rate.decode},
            "language": None if rate is None else rate.as_dict(),
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "baseline_bytes": self.baseline_bytes,
            "processes": self.processes,
            "threads": self.threads,
        }


def measure_fresh(
    opener: str,
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    threads: int | None = None,
    repeat: int = 50,
    warmup: int = 5,
    decode: int = 0,
    context: int | None = None,
    kv: str | None = None,
    until: Until | None = None,
    timeout: float | None = 600.0,
    report: Report | None = None,
) -> Fresh:
    """Open `path` in a new process and time it. `decode` > 0: `inputs["ids"]` is a prompt, time prefill and decode too.

    `until`: when enough has been timed (default: `repeat` calls, and then until the median is known within PRECISION
    or LIMIT seconds are over); `context`, `kv`: positions and type of the KV cache, handed to the opener where given;
    `report`: told the share that is done.

    For a language model `latency_ms` is the time per decoded token. Raises what the opener raises, WorkerDied,
    WorkerTimeout.
    """
    until = until or Until(repeat, precision=PRECISION, limit=LIMIT, **({"min_seconds": 0.0} if decode else {}))
    params = {"opener": opener, "path": str(path), "threads": threads, "until": asdict(until)}
    params |= {"warmup": warmup, "decode": decode, "context": context, "kv": kv}

    def on_event(event: dict[str, Any]) -> None:
        if report is not None and "share" in event:
            report(event["share"])

    with Worker(threads=threads) as worker:
        reply = worker.call("octavo.bench.fresh:measure", params, inputs, timeout=timeout, on_event=on_event)
    result, calls, prefills = reply.result, reply.arrays["calls"], reply.arrays["prefills"]
    rate = throughput(np.size(inputs["ids"]), prefills, calls.reshape(-1, decode)) if decode else None
    return Fresh(
        load_ms=result["load_ms"],
        first_ms=result["first_ms"],
        latency_ms=latency(calls),
        tokens_per_second=rate,
        peak_rss_bytes=reply.peak_rss_bytes + sum(result["children_rss_bytes"]),
        baseline_bytes=result["baseline_bytes"] * (1 + len(result["children_rss_bytes"])),
        processes=1 + len(result["children_rss_bytes"]),
        threads=threads,
        calls=calls,
        prefills=prefills,
    )


def measure(
    params: dict[str, Any], arrays: Arrays, emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `measure_fresh`. The baseline is read before the opener's module is imported."""
    baseline = peak_rss("self")
    start = time.perf_counter()
    session = open_asked(params)
    load_ms = (time.perf_counter() - start) * 1e3
    until = Until(**params["until"])

    def report(share: float) -> None:
        emit({"share": share})

    try:
        clock = clock_of(session)
        start = time.perf_counter()
        if params["decode"]:
            ids = np.asarray(arrays["ids"], np.int64)
            step = getattr(session, "step_last", session.step)  # as text is generated, where a session can
            step({"ids": ids}, None)
        else:
            session.step(arrays, None)
        first_ms = (clock() if clock else time.perf_counter() - start) * 1e3
        if params["decode"]:
            prefills, calls = timed_language(step, ids, params["decode"], until, clock=clock, report=report)
        else:
            calls = timed_calls(lambda: session.step(arrays, None), until, params["warmup"], report, clock)
            prefills = np.zeros(0)
        children = descendants_peak()
    finally:
        session.close()
    result = {"load_ms": load_ms, "first_ms": first_ms, "baseline_bytes": baseline, "children_rss_bytes": children}
    return result, {"calls": calls.ravel(), "prefills": prefills}


def open_asked(params: Mapping[str, Any]) -> Any:
    """A session as the parameters of a worker's target ask for it."""
    asked = {key: params[key] for key in ("context", "kv") if params.get(key) is not None}
    session = open_with(params["opener"], Path(params["path"]), params["threads"], **asked)
    if not getattr(session, "timing_is_native", True):
        raise Missing(
            f"{Path(params['path']).name}: not measured: Octavo's own arithmetic runs it here, and its time says "
            "nothing of the runtime's.",
            "Measure it where its runtime is: `octavo doctor` says which works here.",
        )
    return session


def clock_of(session: Any) -> Callable[[], float] | None:
    """What gives the runtime's own seconds of the last step, for a session that lives in another process."""
    return (lambda: float(session.seconds)) if hasattr(session, "seconds") else None


def open_with(opener: str, path: Path, threads: int | None, **asked: Any) -> Any:
    """A session, by the import path of what opens it. Raises BadInput, and what the opener raises."""
    module, _, name = opener.partition(":")
    function = getattr(import_module(module), name, None)
    if not callable(function):
        raise BadInput(f"opener {opener!r} names no function.")
    return function(path, threads=threads, **asked)


def descendants_peak() -> list[int]:
    """Largest resident set, in bytes, of each process that this one started and that is still there."""
    return [size for pid in descendants() if (size := peak_rss(str(pid)))]


def descendants() -> list[int]:
    """Processes that this one started and theirs (a runtime that lives in a worker of its own). Linux only; elsewhere
    none are seen."""
    parents: dict[int, int] = {}
    if sys.platform == "linux":
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    # the command may hold spaces and brackets: fields are counted from its last bracket
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family and pid not in family}:
        family |= more
    return sorted(family - {os.getpid()})


def peak_rss(pid: str) -> int:
    """Largest resident set of a process in bytes; 0 when it is gone. This process's own is known everywhere."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if pid != "self":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
