"""What a session's step adds to the vendor's own call: both on the same file, in the same process, in turn.

    python -m benchmarks.session_overhead [--model FILE] [--rounds N] [--threads N] [--json FILE]

The limit is Octavo's own: 20 µs. A pair is one step and one call of the vendor, in a random order; the difference is
the median over pairs, with its 95 % interval (octavo/bench/interval.py). The vendor called twice in a pair shows what
the machine alone makes of two equal calls. With one thread the clock is the thread's own, which stands still while
other programs run. Without --model: a net of a few microseconds, where the difference shows,
and SqueezeNet 1.1 where the shared data are.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_US = 20.0
WARM_UP = 20
SECONDS = 20.0  # of one model at most
SQUEEZENET = "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx"


def vendor_call(session: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    """The vendor's own call on the session that Octavo's wraps: so both have the same options."""
    if hasattr(session, "_session"):  # ONNX Runtime
        raw = session._session
        names = [item.name for item in raw.get_outputs()]
        return lambda: raw.run(names, inputs)
    raise SystemExit(f"{type(session).__name__}: this benchmark does not know the vendor's call.")


def measure(path: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Medians in µs, and the difference within pairs."""
    from octavo.bench.inputs import drawn, sized
    from octavo.bench.interval import median_interval
    from octavo.runtimes.base import open_artifact

    session: Any = open_artifact(path, threads=threads)
    inputs = drawn(session.inputs, sized(session.inputs))
    raw = vendor_call(session, inputs)
    calls: list[Callable[[], Any]] = [lambda: session.step(inputs), raw, raw]
    for call in calls * WARM_UP:
        call()
    clock = time.thread_time if threads == 1 else time.perf_counter
    rng, rows = np.random.default_rng(0), []
    end = time.monotonic() + SECONDS
    while len(rows) < rounds and (time.monotonic() < end or len(rows) < 40):
        times = [0.0] * len(calls)
        for place in rng.permutation(len(calls)):
            start = clock()
            calls[place]()
            times[place] = (clock() - start) * 1e6
        rows.append(times)
    session.close()
    table = np.array(rows)
    pairs = {"added": table[:, 0] - table[:, 1:].mean(1), "vendor_against_itself": table[:, 2] - table[:, 1]}
    row: dict[str, Any] = {"model": path.name, "n": len(rows), "threads": threads, "clock": clock.__name__}
    row |= {"step_us": float(np.median(table[:, 0])), "vendor_us": float(np.median(table[:, 1:]))}
    for name, values in pairs.items():
        row[name] = {"value_us": float(np.median(values)), "interval_us": median_interval(values)}
    return row | {"ratio": float(np.median(table[:, 0] / table[:, 1:].mean(1)))}


def said(figure: dict[str, Any]) -> str:
    low, high = figure["interval_us"]
    return f"{figure['value_us']:.1f} µs [{low:.1f}, {high:.1f}]"


def models(given: Path | None, folder: Path) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    from octavo.runtimes.onnx.tiny import write_chain

    write_chain(folder / "tiny.onnx", 2)
    yield folder / "tiny.onnx"
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if (shared / SQUEEZENET).is_file():
        yield shared / SQUEEZENET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        groups = [measure(path, options.rounds, options.threads) for path in models(options.model, Path(directory))]
    for row in groups:
        print(
            f"{row['model']}: step {row['step_us']:.1f} µs, vendor {row['vendor_us']:.1f} µs; added "
            f"{said(row['added'])}, limit {LIMIT_US:g}; the vendor against itself "
            f"{said(row['vendor_against_itself'])}; ratio {row['ratio']:.4f}, n = {row['n']:,}, {row['clock']}"
        )
    load = os.getloadavg()[0]
    print(f"load of the machine meanwhile: {load:.1f} on {os.cpu_count()} cores")
    worst = max(row["added"]["value_us"] for row in groups)
    record = {"overall": {"added_us": worst, "limit_us": LIMIT_US, "met": worst <= LIMIT_US, "load": load}}
    if options.json:
        options.json.write_text(json.dumps(record | {"groups": groups}, indent=2))


if __name__ == "__main__":
    main()
