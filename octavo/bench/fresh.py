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
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.bench.timing import Latency, Throughput, time_language, time_session
from octavo.errors import BadInput
from octavo.workers.local import Worker

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Fresh:
    """What a fresh process measured.

    `peak_rss_bytes`: the largest resident set, of the process and of those it started, summed over `processes`.
    `baseline_bytes`: the interpreter, numpy and Octavo before the runtime was imported, times `processes`; the
    difference, `peak_memory_bytes`, is what runtime, model and work took. Mapped pages of the file count once touched.
    """

    load_ms: float
    latency_ms: Latency
    tokens_per_second: Throughput | None
    peak_rss_bytes: int
    baseline_bytes: int
    processes: int
    threads: int | None

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
    timeout: float | None = 600.0,
) -> Fresh:
    """Open `path` in a new process and time it. `decode` > 0: `inputs["ids"]` is a prompt, time prefill and decode too.

    `context`, `kv`: positions and type of the KV cache, handed to the opener where given.

    For a language model `latency_ms` is the time per decoded token. Raises what the opener raises, WorkerDied,
    WorkerTimeout.
    """
    params = {"opener": opener, "path": str(path), "threads": threads}
    params |= {"repeat": repeat, "warmup": warmup, "decode": decode, "context": context, "kv": kv}
    with Worker(threads=threads) as worker:
        reply = worker.call("octavo.bench.fresh:measure", params, inputs, timeout=timeout)
    result = reply.result
    throughput = None
    if result["throughput"] is not None:
        fields = dict(result["throughput"])
        fields["per_token_ms"] = Latency(**fields["per_token_ms"])
        fields |= {key: tuple(fields[key]) for key in ("prefill_range", "decode_range")}
        throughput = Throughput(**fields)
    return Fresh(
        load_ms=result["load_ms"],
        latency_ms=Latency(**result["latency"]),
        tokens_per_second=throughput,
        peak_rss_bytes=reply.peak_rss_bytes + sum(result["children_rss_bytes"]),
        baseline_bytes=result["baseline_bytes"] * (1 + len(result["children_rss_bytes"])),
        processes=1 + len(result["children_rss_bytes"]),
        threads=threads,
    )


def measure(
    params: dict[str, Any], arrays: Arrays, emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `measure_fresh`. The baseline is read before the opener's module is imported."""
    baseline = peak_rss("self")
    start = time.perf_counter()
    asked = {key: params[key] for key in ("context", "kv") if params[key] is not None}
    session = open_with(params["opener"], Path(params["path"]), params["threads"], **asked)
    load_ms = (time.perf_counter() - start) * 1e3
    emit({"loaded_ms": load_ms})
    try:
        if params["decode"]:
            clock = (lambda: float(session.seconds)) if hasattr(session, "seconds") else None
            ids = np.asarray(arrays["ids"], np.int64)
            step = getattr(session, "step_last", session.step)  # as text is generated, where a session can
            rate = time_language(step, ids, params["decode"], params["repeat"], clock=clock)
            latency, throughput = rate.per_token_ms, rate.as_dict()
        else:
            latency = time_session(lambda: session.step(arrays, None), params["repeat"], params["warmup"])
            throughput = None
        children = descendants_peak()
    finally:
        session.close()
    result = {"load_ms": load_ms, "latency": latency.as_dict(), "throughput": throughput}
    result |= {"baseline_bytes": baseline, "children_rss_bytes": children}
    return result, {}


def open_with(opener: str, path: Path, threads: int | None, **asked: Any) -> Any:
    """A session, by the import path of what opens it. Raises BadInput, and what the opener raises."""
    module, _, name = opener.partition(":")
    function = getattr(import_module(module), name, None)
    if not callable(function):
        raise BadInput(f"opener {opener!r} names no function.")
    return function(path, threads=threads, **asked)


def descendants_peak() -> list[int]:
    """Largest resident set, in bytes, of each process that this one started and that is still there."""
    return [size for pid in _descendants() if (size := peak_rss(str(pid)))]


def _descendants() -> list[int]:
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
