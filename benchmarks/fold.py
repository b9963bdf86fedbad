"""How fast Octavo folds: the kernel beside llama.cpp's, the whole command beside reading and writing its files once.

    python benchmarks/fold.py kernel  [--weights 16000000] [--threads 2] [--repeats 9] [--json]
    python benchmarks/fold.py command [--sizes 0.25B,0.5B,1B] [--scheme w4g32] [--work DIR] [--json]
    python benchmarks/fold.py startup [--gguf FILE] [--json]

Ratios above 1 mean faster than the peer in `kernel`; in `command` they are times, so lower is better.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Report = dict[str, Any]
BUFFER = 8 << 20

# A process of its own per command, so that ru_maxrss is of that command and nothing else.
WATCH = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
print(json.dumps({"seconds": time.perf_counter() - start, "status": os.waitstatus_to_exitcode(status),
                  "peak_rss_mib": usage.ru_maxrss / 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime}))
"""


def kernel(args: argparse.Namespace) -> Report:
    """bf16 rows in memory to blocks in memory, bf16 to fp32 included on every side; interleaved repeats."""
    start = time.perf_counter()
    from octavo.compress import kernels
    from octavo.core.scheme import SCHEMES

    ready = time.perf_counter() - start
    rows = _random_rows(args.weights, 2048)
    pieces = np.array_split(rows, max(args.threads * 4, rows.shape[0] // 256))

    def ours(scheme: str, search: bool, blocks: bool) -> Callable[[Any], None]:
        return lambda piece: kernels.fold(piece, "bf16", SCHEMES[scheme], search=search, blocks=blocks) and None

    contenders = {"llama.cpp Q4_0": _theirs()}
    for search in (False, True):
        mode = "search" if search else "plain"
        contenders[f"q4_0 {mode}"] = ours("q4_0", search, True)
        contenders |= {f"{s} {mode}": ours(s, search, False) for s in ("w8g32", "w4g32", "w3g32", "w2g32", "w4", "w8")}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with ThreadPoolExecutor(args.threads) as pool:
        for _ in range(args.repeats + 1):  # the first round warms up
            for name, work in contenders.items():
                begin = time.perf_counter()
                list(pool.map(work, pieces))
                seconds[name].append(time.perf_counter() - begin)
    peer = np.array(seconds["llama.cpp Q4_0"][1:])
    groups = []
    for name, spent in seconds.items():
        took = np.array(spent[1:])
        rate = rows.size / float(np.median(took)) / args.threads / 1e9
        ratio = float(np.median(peer / took))
        groups.append({"name": name, "gweights_per_second_per_thread": rate, "ratio_to_llama_cpp": ratio})
    by_name = {group["name"]: group["ratio_to_llama_cpp"] for group in groups}
    overall = {
        "plain_ratio": by_name["q4_0 plain"], "search_ratio": by_name["q4_0 search"], "threads": args.threads,
        "weights": rows.size, "repeats": args.repeats, "ready_seconds": ready,
    }  # fmt: skip
    return {"overall": overall, "groups": groups}


def _random_rows(count: int, columns: int) -> Any:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((max(1, count // columns), columns), dtype=np.float32) * np.float32(0.02)
    return (normal.view(np.uint32) >> 16).astype(np.uint16)


def _theirs() -> Callable[[Any], None]:
    from _ggml import Q4_0_BLOCK, Q4_0_BYTES, Ggml

    ggml = Ggml()

    def work(piece: Any) -> None:
        rows, columns = piece.shape
        packed = np.empty((rows, columns // Q4_0_BLOCK * Q4_0_BYTES), np.uint8)
        wide = np.empty((min(16, rows), columns), np.float32)  # a few rows at a time, so that fp32 stays in the cache
        for at in range(0, rows, len(wide)):
            part = piece[at : at + len(wide)]
            ggml.widen(part, wide[: len(part)])
            ggml.q4_0(wide[: len(part)], packed[at : at + len(part)])

    return work


def command(args: argparse.Namespace) -> Report:
    """`octavo compress` on synthetic checkpoints of growing size, beside reading and writing the same bytes once."""
    from _checkpoint import SIZES, write

    groups = []
    with tempfile.TemporaryDirectory(dir=args.work, prefix="fold-") as work:
        for size in args.sizes.split(","):
            shape = SIZES[size]
            model, out = Path(work, size), Path(work, f"{size}-folded")
            written = write(model, shape)
            os.sync()
            floor = _read_once(model)
            ran = _watch(
                _octavo(
                    "compress", str(model), "--scheme", args.scheme, "--scale", args.scale, "-o", str(out), "--quiet"
                )
            )
            produced = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            shutil.rmtree(out)
            floor += _write_once(Path(work, "bytes"), produced)
            groups.append(
                {"size": size, "parameters": shape.parameters, "input_bytes": written, "output_bytes": produced}
                | ran
                | {"read_write_seconds": floor, "ratio_to_read_write": ran["seconds"] / floor}
            )
            shutil.rmtree(model)
    overall = {
        "ratio_to_read_write": groups[-1]["ratio_to_read_write"], "scheme": args.scheme, "scale": args.scale,
        "peak_rss_mib": max(group["peak_rss_mib"] for group in groups), "cpus": os.cpu_count(),
    }  # fmt: skip
    return {"overall": overall, "groups": groups}


def startup(args: argparse.Namespace) -> Report:
    """Median wall time of `octavo --help` and of `octavo inspect` on a GGUF."""
    calls = {"octavo --help": _octavo("--help")}
    if args.gguf:
        calls["octavo inspect FILE.gguf"] = _octavo("inspect", str(args.gguf), "--json")
    groups = []
    for name, argv in calls.items():
        runs = [_watch(argv) for _ in range(7)]
        rss = max(run["peak_rss_mib"] for run in runs)
        groups.append({"name": name, "seconds": statistics.median(r["seconds"] for r in runs), "peak_rss_mib": rss})
    return {"overall": {group["name"]: group["seconds"] for group in groups}, "groups": groups}


def _octavo(*words: str) -> list[str]:
    script = Path(sys.executable).parent / "octavo"
    return [str(script), *words] if script.exists() else [sys.executable, "-m", "octavo", *words]


def _watch(argv: list[str]) -> Report:
    """Run a command to its end. Returns seconds, CPU seconds and peak resident MiB of the process alone."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", WATCH, *argv], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    seen: Report = json.loads(lines[-1]) if lines else {"status": done.returncode}
    if seen.pop("status"):
        raise SystemExit(f"{' '.join(argv)} failed:\n{done.stderr}")
    return seen


def _read_once(folder: Path) -> float:
    """Seconds to read every file of the folder from front to back, as warm or cold as the command finds them."""
    buffer = bytearray(BUFFER)
    start = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def _write_once(path: Path, count: int) -> float:
    """Seconds to write and sync `count` bytes."""
    chunk = os.urandom(BUFFER)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for left in range(count, 0, -BUFFER):
            file.write(chunk[: min(left, BUFFER)])
        os.fsync(file.fileno())
    spent = time.perf_counter() - start
    path.unlink()
    return spent


def _show(report: Report) -> None:
    for group in report["groups"]:
        cells = [f"{v:.3g}" if isinstance(v, float) else f"{v}" for v in group.values()]
        print("  ".join(f"{key} {cell}" for key, cell in zip(group, cells, strict=True)))
    print(json.dumps(report["overall"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("kernel")
    part.add_argument("--weights", type=int, default=16_000_000)
    part.add_argument("--threads", type=int, default=2)
    part.add_argument("--repeats", type=int, default=9)
    part = parts.add_parser("command")
    part.add_argument("--sizes", default="0.25B,0.5B,1B")
    part.add_argument("--scheme", default="w4g32")
    part.add_argument("--scale", default="search", choices=("search", "absmax"))
    part.add_argument("--work", type=Path, help="folder for the checkpoints (4 GB free); default: the temporary one")
    part = parts.add_parser("startup")
    part.add_argument("--gguf", type=Path)
    for part in parts.choices.values():
        part.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = {"kernel": kernel, "command": command, "startup": startup}[args.part](args)
    print(json.dumps(report, indent=1)) if args.json else _show(report)


if __name__ == "__main__":
    main()
