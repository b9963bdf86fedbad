"""Run without a pause for minutes, and report what each window of time was like.

Windows arrive as they end, so that an interrupted run keeps what it has measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.bench.fresh import Arrays, clock_of, open_asked
from octavo.bench.machine import Moment, look, others
from octavo.bench.timing import one_run
from octavo.errors import BadInput
from octavo.workers.local import Worker

WINDOWS = 60
LEAST_WINDOW = 0.1  # seconds
SLACK = 600.0  # beyond the time asked for: opening, and a last call that is slow


def measure_sustained(
    opener: str,
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    seconds: float,
    *,
    threads: int | None = None,
    decode: int = 0,
    context: int | None = None,
    kv: str | None = None,
    on_window: Callable[[dict[str, Any]], None] = lambda window: None,
) -> list[dict[str, Any]]:
    """Run for `seconds` in a new process; `on_window` gets each of some WINDOWS windows when it is over.

    A window: start_s and end_s since the first call, n calls (of a language model: decoded tokens; prompts between them
    take time and are not counted), p10, p50, p90 and max in ms, and celsius, megahertz and others (the share of the
    machine that others took), None where unseen. Raises BadInput, what the opener raises, WorkerDied, WorkerTimeout.
    """
    if not seconds > 0:
        raise BadInput(f"{seconds:g} seconds of sustained work.", "Give some, such as 5m.")
    params = {"opener": opener, "path": str(path), "threads": threads, "seconds": seconds}
    params |= {"decode": decode, "context": context, "kv": kv}
    with Worker(threads=threads) as worker:
        reply = worker.call(
            "octavo.bench.sustained:run", params, inputs, timeout=seconds + SLACK, on_event=on_window
        )  # fmt: skip
    return list(reply.result["windows"])


def run(
    params: dict[str, Any], arrays: Arrays, emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `measure_sustained`."""
    session = open_asked(params)
    windows: list[dict[str, Any]] = []
    try:
        calls = _tokens(session, arrays, params["decode"]) if params["decode"] else _calls(session, arrays)
        next(calls)  # the first one warms up
        length = max(params["seconds"] / WINDOWS, LEAST_WINDOW)
        start = time.monotonic()
        while (began := time.monotonic() - start) < params["seconds"]:
            before = look()
            times: list[float] = []
            while time.monotonic() - start < min(began + length, params["seconds"]) or not times:
                times += next(calls)
            windows.append(window(times, start, before, look()))
            emit(windows[-1])
    finally:
        session.close()
    return {"windows": windows}, {}


def window(times: list[float], start: float, before: Moment, after: Moment) -> dict[str, Any]:
    """What is kept of one window; `times` in seconds, `start` of the whole run."""
    p10, p50, p90 = np.percentile(np.array(times) * 1e3, [10, 50, 90])
    return {
        "start_s": before.wall - start, "end_s": after.wall - start, "n": len(times), "p10": float(p10),
        "p50": float(p50), "p90": float(p90), "max": max(times) * 1e3, "celsius": after.celsius,
        "megahertz": after.megahertz, "others": others(before, after),
    }  # fmt: skip


def _calls(session: Any, arrays: Arrays) -> Iterator[list[float]]:
    clock = clock_of(session)
    while True:
        start = time.perf_counter()
        session.step(arrays, None)
        yield [clock() if clock else time.perf_counter() - start]


def _tokens(session: Any, arrays: Arrays, decode: int) -> Iterator[list[float]]:
    """The times of the tokens decoded after the prompt, again and again."""
    clock, step = clock_of(session), getattr(session, "step_last", session.step)
    while True:
        yield one_run(step, np.asarray(arrays["ids"], np.int64), decode, clock)[1]
