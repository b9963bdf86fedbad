"""Predicted against measured on this machine: peak memory, decode tokens/s, network latency.

    python -m benchmarks.planner_host [--shared DIR] [--model DIR …] [--threads N] [--json FILE]

Models × schemes × runtimes that are installed: each is folded, exported and run in a fresh process, and planned from
its config alone against the profile `host`. Run `octavo devices probe` first: without it no speed is known here, and
only memory is compared. Aims: peak memory within 10 %, speeds within 25 % in the median.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SCHEMES = ("fp32", "fp16", "w8", "w4g32")
RUNTIMES = {"llamacpp": (".gguf", "xllamacpp"), "onnxruntime": (".onnx", "onnxruntime")}
MODELS = ("stories3M/hf", "octavo-tiny-8m")  # under data/lm; more with --model
PROMPT, DECODED, CONTEXT = 64, 32, 256
OPENER = "octavo.runtimes.base:open_artifact"
AIMS = {"memory": 0.10, "tokens_per_second": 0.25, "latency_ms": 0.25}


def languages(models: list[Path], threads: int | None) -> Iterator[dict[str, Any]]:
    """One row per model, scheme and runtime."""
    import octavo
    from octavo.bench.fresh import measure_fresh
    from octavo.errors import Refused

    ids = np.arange(PROMPT, dtype=np.int64)[None] % 100
    for model in models:
        for scheme in SCHEMES:
            with tempfile.TemporaryDirectory() as home:
                folded = Path(home) / "folded"
                octavo.compress(model, scheme=scheme, out=folded, scale="absmax", threads=threads)
                for runtime, (suffix, package) in RUNTIMES.items():
                    if find_spec(package) is None:
                        continue
                    path = Path(home) / f"m{suffix}"
                    try:
                        octavo.export(folded, runtime=runtime, out=path)
                    except Refused as refusal:
                        print(f"{model.name} {scheme} {runtime}: {refusal}")
                        continue
                    found = measure_fresh(OPENER, path, {"ids": ids}, threads=threads, repeat=3, decode=DECODED)
                    rate = found.tokens_per_second
                    yield {
                        "model": model.parent.name if model.name == "hf" else model.name,
                        "scheme": scheme,
                        "runtime": runtime,
                        "memory": {"measured": found.peak_memory_bytes},
                        "tokens_per_second": {"measured": rate.decode if rate else None},
                    } | {"source": str(model)}


def predicted(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what the plan said, out of the source alone."""
    import octavo

    # Octavo opens a GGUF at the length it was trained for (4,096 at most), its cache in f32; ONNX grows as it goes.
    at = {"context": PROMPT + DECODED, "prompt": PROMPT} if row["runtime"] == "onnxruntime" else {"kv": "f32"}
    plan = octavo.plan(
        row["source"], device="host", scheme=row["scheme"], runtime=row["runtime"], unit="cpu", slice="1TB", **at
    )
    (candidate,) = plan.candidates
    memory, rate = candidate["memory"], candidate["tokens_per_second"]
    row["memory"] |= {"predicted": memory["total"], "low": memory["low"], "high": memory["high"]}
    row["tokens_per_second"] |= {"predicted": rate["value"], "low": rate["low"], "high": rate["high"]}
    return row


def error(cell: dict[str, Any]) -> float | None:
    """Relative, signed; None where one of the two is not known."""
    if not cell.get("measured") or cell.get("predicted") is None:
        return None
    return float(cell["predicted"] / cell["measured"] - 1)


def overall(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and largest absolute error of each kind, and whether the aim was met."""
    found: dict[str, Any] = {}
    for kind, aim in AIMS.items():
        errors = [abs(e) for row in rows if kind in row and (e := error(row[kind])) is not None]
        if errors:
            found[kind] = {"median_error": median(errors), "worst": max(errors), "n": len(errors),
                           "aim": aim, "met": median(errors) <= aim}  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("OCTAVO_SHARED", "../shared")))
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    models = [options.shared / "data/lm" / name for name in MODELS] + options.model
    rows = []
    for row in languages([model for model in models if model.is_dir()], options.threads):
        rows.append(predicted(row))
        for kind in ("memory", "tokens_per_second"):
            cell, off = row[kind], error(row[kind])
            measured, said = cell["measured"], cell.get("predicted")
            shown = "unknown" if off is None else f"{said:,.0f}, {off:+.1%}"
            print(f"{row['model']:16s} {row['scheme']:6s} {row['runtime']:12s} {kind:18s} {measured:,.0f}: {shown}")
    record = {"overall": overall(rows), "groups": rows}
    for kind, cell in record["overall"].items():
        met = "met" if cell["met"] else "not met"
        print(f"{kind}: median {cell['median_error']:.1%}, worst {cell['worst']:.1%}, n {cell['n']}; "
              f"aim {cell['aim']:.0%} {met}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
