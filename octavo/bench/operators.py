"""Time per operator, from the runtime's own profiler where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from octavo.bench.fresh import Arrays, open_asked
from octavo.workers.local import Worker

RUNS = 20


def measure_operators(
    opener: str,
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    threads: int | None = None,
    runs: int = RUNS,
    timeout: float | None = 600.0,
) -> dict[str, Any] | None:
    """{"runs", "total_ms", "operators": [{op, kind, unit, ms, share}, …]}, the dearest first; None where the session
    has no profiler. Raises what the opener and the profiler raise, WorkerDied, WorkerTimeout."""
    params = {"opener": opener, "path": str(path), "threads": threads, "runs": runs}
    with Worker(threads=threads) as worker:
        found = worker.call("octavo.bench.operators:profile", params, inputs, timeout=timeout).result["operators"]
    if found is None:
        return None
    return {"runs": runs, "total_ms": sum(item["ms"] for item in found), "operators": found}


def profile(params: dict[str, Any], arrays: Arrays, emit: Callable[[Any], None]) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `measure_operators`."""
    session = open_asked(params)
    try:
        if not hasattr(session, "profile"):
            return {"operators": None}, {}
        return {"operators": [asdict(item) for item in session.profile(arrays, None, params["runs"])]}, {}
    finally:
        session.close()
