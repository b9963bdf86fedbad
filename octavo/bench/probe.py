"""What this machine can do: memory bandwidth, matrix products, and what each runtime costs before it computes anything.

Everything is measured in fresh worker processes. Runtimes come as import paths of their openers, and as files that the
caller had written for the purpose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from octavo.bench.fresh import Arrays, descendants_peak, open_with, peak_rss
from octavo.core.quantity import Kind, Quantity
from octavo.workers.local import Worker

ROOM = "octavo.bench.probe"
SAMPLE_SECONDS = 0.01  # a sample lasts at least as long, so that the clock has something to measure
TIMEOUT = 120.0
BEYOND_CACHE = 4  # the arrays of the stream are this many times the last cache
LEAST_BYTES = 256 << 20
DECODED = 64


@dataclass(frozen=True)
class Stream:
    """Bytes per second, read (dot products) and copied (a byte counts read and written), on all cores and on one."""

    read: Quantity
    copy: Quantity
    read_one: Quantity


@dataclass(frozen=True)
class Trial:
    """A file to open and run: what goes in, and how much one run is (operations, bytes of weights)."""

    name: str
    path: Path
    inputs: Arrays
    operations: float = 0.0
    nbytes: float = 0.0


@dataclass(frozen=True)
class RuntimeFigures:
    """What a runtime costs: bytes of memory with next to no model, ms per operator; and seconds of each trial."""

    memory: Quantity
    overhead_ms: Quantity
    seconds: dict[str, Quantity] = field(default_factory=dict)


def quantity(samples: Sequence[float], unit: str, source: str) -> Quantity:
    """The median of measured samples, with their extremes; one sample has no interval."""
    value = float(np.median(samples))
    low, high = (float(min(samples)), float(max(samples))) if len(samples) > 1 else (None, None)
    return Quantity(value, unit, Kind.MEASURED, low, high, len(samples), source, date.today().isoformat())


@dataclass(frozen=True)
class Effort:
    """How long to measure: at most `rounds` samples of everything, and no new round after `seconds` of one worker."""

    rounds: int
    seconds: float


FULL, QUICK = Effort(7, 8.0), Effort(3, 1.0)


def stream(threads: int, cache_bytes: int, spare_bytes: int, effort: Effort = FULL) -> Stream:
    """Measure memory bandwidth with arrays beyond the last cache (`cache_bytes`), within an eighth of `spare_bytes`."""
    beyond = cache_bytes * (BEYOND_CACHE if effort.rounds > QUICK.rounds else 1)
    size = int(min(max(LEAST_BYTES, beyond), max(LEAST_BYTES // 4, spare_bytes // 8)))
    params = {"threads": threads, "bytes": size, **asdict(effort)}
    with Worker(threads=1) as worker:  # the kernels' own threads do the sharing
        found = worker.call(f"{ROOM}:run_stream", params, timeout=TIMEOUT).result
    what = f"{size / 2**20:.0f} MiB of float32"
    return Stream(
        quantity(found["read"], "B/s", f"dot products over {what} on {threads} threads"),
        quantity(found["copy"], "B/s", f"copies within {what} on {threads} threads, read and written counted"),
        quantity(found["read_one"], "B/s", f"dot products over {what} on one thread"),
    )


def run_stream(params: dict[str, Any], arrays: Arrays, emit: Callable[[Any], None]) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `stream`."""
    threads, half = int(params["threads"]), int(params["bytes"]) // 8
    left, right = np.ones(half, np.float32), np.ones(half, np.float32)
    parts = [slice(i * half // threads, (i + 1) * half // threads) for i in range(threads)]
    found: dict[str, list[float]] = {"read": [], "copy": [], "read_one": []}
    with ThreadPoolExecutor(threads) as pool:
        kernels: dict[str, Callable[[], Any]] = {
            "read": lambda: list(pool.map(lambda part: np.dot(left[part], right[part]), parts)),
            "copy": lambda: list(pool.map(lambda part: np.copyto(left[part], right[part]), parts)),
            "read_one": lambda: np.dot(left, right),
        }
        for kernel in kernels.values():
            kernel()
        for _ in _rounds(params):
            for name, kernel in kernels.items():
                start = time.perf_counter()
                kernel()
                found[name].append(8 * half / (time.perf_counter() - start))
    return found, {}


def float_products(threads: int, effort: Effort = FULL) -> dict[str, Quantity]:
    """Operations per second of numpy's BLAS in fp32: `matrix` (GEMM) and `vector` (GEMV)."""
    with Worker(threads=threads) as worker:
        found = worker.call(f"{ROOM}:run_products", asdict(effort), timeout=TIMEOUT).result
    sizes = {"matrix": "1024 × 1024 × 1024", "vector": "8192 × 4096 × 1"}
    return {name: quantity(found[name], "op/s", f"numpy, {size}, {threads} threads") for name, size in sizes.items()}


def run_products(params: dict[str, Any], arrays: Arrays, emit: Callable[[Any], None]) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `float_products`."""
    rng = np.random.default_rng(0)
    square, tall = rng.random((1024, 1024), np.float32), rng.random((8192, 4096), np.float32)
    column = rng.random(4096, np.float32)
    found = _in_turn({"matrix": _clocked(lambda: square @ square), "vector": _clocked(lambda: tall @ column)}, params)
    operations = {"matrix": 2 * 1024**3, "vector": 2 * tall.size}
    return {name: [operations[name] / seconds for seconds in times] for name, times in found.items()}, {}


def runtime_figures(
    name: str, opener: str, short: Trial, long: Trial, operators: int, trials: Sequence[Trial] = (), *, threads: int,
    effort: Effort = FULL,
) -> RuntimeFigures:  # fmt: skip
    """Measure a runtime: memory with `short` open, per operator the difference to `long` (which has `operators` more).

    Raises what the opener raises, WorkerDied, WorkerTimeout.
    """
    every = (short, long, *trials)
    params: dict[str, Any] = {"opener": opener, "threads": threads, **asdict(effort)}
    params["trials"] = [{"name": trial.name, "path": str(trial.path)} for trial in every]
    arrays = {f"{trial.name}/{key}": value for trial in every for key, value in trial.inputs.items()}
    with Worker(threads=threads) as worker:
        found = worker.call(f"{ROOM}:run_trials", params, arrays, timeout=TIMEOUT).result
    pairs = zip(found["seconds"][short.name], found["seconds"][long.name], strict=True)
    slopes = [1e3 * (slow - fast) / operators for fast, slow in pairs]
    seconds = {
        trial.name: quantity(found["seconds"][trial.name], "s", f"{name}, {trial.name}, {threads} threads")
        for trial in trials
    }
    memory = quantity(
        [found["memory"]], "B", f"{name} with a model of a few kB, in a process of its own, beyond Python's"
    )
    source = f"{name}: time of {operators} more tiny operators, {threads} threads"
    if (middle := float(np.median(slopes))) <= 0:
        source = f"{source}: {middle * 1e3:.2g} µs each, lost in the noise of a busy machine"
        return RuntimeFigures(memory, Quantity(None, "ms", Kind.UNKNOWN, source=source), seconds)
    return RuntimeFigures(memory, quantity([max(0.0, slope) for slope in slopes], "ms", source), seconds)


def trial_seconds(
    name: str, opener: str, trials: Sequence[Trial], *, threads: int, effort: Effort = FULL
) -> dict[str, Quantity]:
    """Seconds per run of each file. Raises what the opener raises, WorkerDied, WorkerTimeout."""
    params: dict[str, Any] = {"opener": opener, "threads": threads, **asdict(effort)}
    params["trials"] = [{"name": trial.name, "path": str(trial.path)} for trial in trials]
    arrays = {f"{trial.name}/{key}": value for trial in trials for key, value in trial.inputs.items()}
    with Worker(threads=threads) as worker:
        found = worker.call(f"{ROOM}:run_trials", params, arrays, timeout=TIMEOUT).result["seconds"]
    return {trial.name: quantity(found[trial.name], "s", f"{name}, {trial.name}") for trial in trials}


def run_trials(params: dict[str, Any], arrays: Arrays, emit: Callable[[Any], None]) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `runtime_figures`. Memory is read once the first file is open and has run.

    One file is open at a time: the threads of a session that idles still spin, and would be measured with the others.
    """
    baseline = peak_rss("self")
    memory = 0
    seconds: dict[str, list[float]] = {}
    part = {**params, "seconds": params["seconds"] / len(params["trials"])}
    for trial in params["trials"]:
        inputs = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{trial['name']}/")}
        session = open_with(params["opener"], Path(trial["path"]), params["threads"])
        try:
            run = _timed(session, inputs)
            run()
            if not seconds:
                children = descendants_peak()
                memory = max(0, peak_rss("self") + sum(children) - baseline * (1 + len(children)))
            seconds |= _in_turn({trial["name"]: run}, part)
        finally:
            session.close()
    rounds = min(len(samples) for samples in seconds.values())  # a slow file may have had fewer
    return {"memory": memory, "seconds": {name: samples[:rounds] for name, samples in seconds.items()}}, {}


def _timed(session: Any, inputs: Mapping[str, Any]) -> Callable[[], float]:
    """A call that runs the session and returns seconds: its own clock's where it has one (another process).

    A single token is decoded after those before it, up to DECODED of them, since to forget them costs time too.
    """
    single = all(np.size(value) == 1 for value in inputs.values())
    state, done = None, 0

    def step() -> None:
        nonlocal state, done
        state = session.step(inputs, state if single and done % DECODED else None)[1]
        done += 1

    run = _clocked(step)
    if not hasattr(session, "seconds"):
        return run

    def run_there() -> float:
        run()
        return float(session.seconds)

    return run_there


def _clocked(call: Callable[[], object]) -> Callable[[], float]:
    """A call that returns the seconds that `call` took."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def _rounds(params: Mapping[str, Any]) -> Iterator[int]:
    """Count rounds up to `rounds`, and begin none after `seconds`; one takes place in any case."""
    end = time.monotonic() + params["seconds"]
    for index in range(params["rounds"]):
        if index and time.monotonic() > end:
            return
        yield index


def _in_turn(runs: Mapping[str, Callable[[], float]], params: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds per run: of each sample the fastest, what it takes when nothing else is in the way.

    One round goes through all of them, so that a slow second hits all.
    """
    counts = {name: _count(min(run(), run())) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in _rounds(params):
        for name, run in runs.items():
            found[name].append(min(run() for _ in range(counts[name])))
    return found


def _count(seconds: float) -> int:
    """Calls in a sample: as many as the clock needs, and a few to choose the fastest of where they are short."""
    return max(5 if seconds < 2 * SAMPLE_SECONDS else 1, round(SAMPLE_SECONDS / max(seconds, 1e-6)))
