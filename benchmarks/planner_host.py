"""Predicted against measured on this machine: peak memory, decode rate, latency of networks.

    python -m benchmarks.planner_host [--models A,B] [--schemes w8,w4g32] [--runtimes llamacpp,onnxruntime]
                                      [--profile host.toml] [--rounds N] [--threads N] [--quick] [--json [FILE]]

Models: directories of language models, .onnx networks, `synthetic:NAME` (random weights, written here; SYNTHETIC has
the names), `network:NAME` (BLOCKS has them) and `keyboard` (examples/keyboard, untrained). A plan is made first,
against a profile that `octavo devices probe` measures beforehand with the same number of threads; only then is anything
folded, exported and run. Every measurement is of a fresh process; rounds go through all cells in turn, and the median
counts. Peak memory is the largest resident set above the interpreter's own; the context that is planned is the one that
is filled: PROMPT + DECODE positions.

What ONNX Runtime's loading leaves (plan/memory.py) and how fast it reads exports (runtimes/onnx/tiny.py) was found on
random Llamas of 25, 45, 50 and 105 million weights; none of them is reported on here. The profile is measured with
networks and decoders of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Report = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
SHARED = Path(os.environ.get("OCTAVO_SHARED", ROOT.parent / "shared")) / "data"
OPENER = "octavo.runtimes.base:open_artifact"
PROMPT, DECODE = 96, 32
LIMITS = {"memory": 0.10, "decode": 0.25, "latency": 0.25}
UNITS = {"memory": "MB", "decode": "tokens/s", "latency": "ms"}
SYNTHETIC = {"60M": (768, 2048, 6, 32000), "110M": (768, 2048, 12, 32000), "0.5B": (1536, 4096, 18, 32000)}
LANGUAGE = ("lm/stories260K/hf", "lm/stories3M/hf", "lm/octavo-tiny-8m")
NETWORKS = ("vision/squeezenet1.1", "network:mobile", "network:residual", "keyboard")
BLOCKS = {  # made of the same blocks as the networks that the probe times, put together as published ones are
    "mobile": (160, (("conv", 32, 3, 2), ("depthwise", 64, 3, 1), ("depthwise", 128, 3, 2), ("depthwise", 128, 3, 1),
                     ("depthwise", 256, 3, 2), ("depthwise", 256, 3, 1), ("depthwise", 512, 3, 2),
                     *(("depthwise", 512, 3, 1),) * 5, ("depthwise", 1024, 3, 2), ("pool", 0, 5, 5),
                     ("dense", 1000, 0, 0))),
    "residual": (128, (("conv", 32, 3, 2), ("pool", 0, 2, 2), *(("residual", 32, 3, 1),) * 2, ("conv", 64, 3, 2),
                       *(("residual", 64, 3, 1),) * 2, ("conv", 128, 3, 2), *(("residual", 128, 3, 1),) * 2,
                       ("pool", 0, 8, 8), ("dense", 100, 0, 0))),
}  # fmt: skip
QUICK = ("lm/stories260K/hf", "lm/octavo-tiny-8m")
KV = {"llamacpp": "f16", "onnxruntime": None}  # as the runtimes have it by default


@dataclass
class Cell:
    """One model in one scheme on one runtime: what was predicted [low, value, high], and what rounds measured."""

    model: str
    scheme: str
    runtime: str
    artifact: Path
    inputs: dict[str, Any]
    language: bool
    predicted: dict[str, tuple[float, float, float]]
    measured: dict[str, list[float]] = field(default_factory=dict)
    reason: str = ""

    def groups(self) -> Iterator[Report]:
        for what, (low, value, high) in self.predicted.items():
            found = self.measured.get(what)
            if not found:
                continue
            middle = median(found)
            yield {
                "model": self.model, "scheme": self.scheme, "runtime": self.runtime, "what": what, "unit": UNITS[what],
                "predicted": value, "low": low, "high": high, "measured": middle, "least": min(found),
                "most": max(found), "n": len(found), "error": abs(value / middle - 1), "ratio": value / middle,
                "within_interval": low <= middle <= high,
            }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    args = _arguments(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="planner-host-", dir=args.work) as folder:
        profile = _profile(args, Path(folder))
        cells, left_out = _cells(args, Path(folder), profile)
        for number in range(args.rounds):
            _say(f"round {number + 1} of {args.rounds}, {len(cells)} cells")
            for cell in cells:
                _measure(cell, args.threads)
    report = _report(cells, left_out, args, time.perf_counter() - start)
    text = json.dumps(report, indent=1)
    if args.json == "-":
        print(text)
    else:
        _table(report)
        if args.json:
            Path(args.json).write_text(text + "\n", "utf-8")
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for, with what --quick changes filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", help="comma-separated; default: all that is listed in this file")
    parser.add_argument("--schemes", default="w8,w4g32,q4_0")
    parser.add_argument("--runtimes", default="llamacpp,onnxruntime")
    parser.add_argument("--profile", help="a profile that was measured before, instead of a new one")
    parser.add_argument("--rounds", type=int, help="fresh processes per cell (default 5, with --quick 2)")
    parser.add_argument("--threads", type=int, default=1, help="of every runtime and of the probe (default 1)")
    parser.add_argument("--quick", action="store_true", help="the small language models, two rounds")
    parser.add_argument("--work", help="directory for the files that are made (default: the system's temporary one)")
    parser.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    args = parser.parse_args(arguments)
    if args.rounds is None:
        args.rounds = 2 if args.quick else 5
    if args.models is None:
        full = (*LANGUAGE, "synthetic:60M", "synthetic:110M", *NETWORKS)
        args.models = ",".join(QUICK if args.quick else full)
    if args.quick and args.schemes == "w8,w4g32,q4_0":
        args.schemes = "w8,w4g32"
    return args


def _profile(args: argparse.Namespace, folder: Path) -> Any:
    from octavo.api.devices import devices_probe
    from octavo.plan import profiles

    if args.profile:
        return profiles.load(args.profile)
    _say(f"octavo devices probe, {args.threads} threads")
    path = folder / "host.toml"
    devices_probe(path, threads=args.threads)
    return profiles.load(path)


def _cells(args: argparse.Namespace, folder: Path, profile: Any) -> tuple[list[Cell], list[Report]]:
    """Plan, then fold and export; what a runtime or the data refuses is listed with its reason."""
    from octavo.errors import OctavoError

    cells: list[Cell] = []
    left_out: list[Report] = []
    for name in args.models.split(","):
        _say(f"preparing {name}")
        network = name == "keyboard" or name.startswith("network:") or _onnx(name)
        make = _network if network else _language
        try:
            cells += make(name, args, folder, profile, left_out)
        except OctavoError as error:
            left_out.append({"model": name, "reason": str(error)})
    return cells, left_out


def _language(name: str, args: argparse.Namespace, folder: Path, profile: Any, left_out: list[Report]) -> list[Cell]:
    import octavo
    from octavo.errors import OctavoError

    source, cells = _source(name, folder), []
    ids = (np.arange(PROMPT, dtype=np.int64) % 100)[None]
    for scheme in args.schemes.split(","):
        folded = folder / f"{len(list(folder.iterdir()))}.octavo"
        for runtime in args.runtimes.split(","):
            artifact = folder / f"{name.replace('/', '_').replace(':', '_')}-{scheme}.{_suffix(runtime)}"
            if scheme == "q4_0" and runtime != "llamacpp":
                continue  # the same grid and kernel as w4g32
            try:
                options = {"scheme": scheme, "runtime": runtime, "context": PROMPT + DECODE, "prompt": PROMPT}
                planned = octavo.plan(str(source), device=profile, kv=KV[runtime], **options)
                if not folded.exists():
                    octavo.compress(str(source), scheme=scheme, out=folded)
                octavo.export(folded, runtime=runtime, out=artifact)
            except OctavoError as error:
                left_out.append({"model": name, "scheme": scheme, "runtime": runtime, "reason": str(error)})
                continue
            cells.append(Cell(name, scheme, runtime, artifact, {"ids": ids}, True, _predicted(planned)))
    return cells


def _network(name: str, args: argparse.Namespace, folder: Path, profile: Any, left_out: list[Report]) -> list[Cell]:
    import octavo

    if "onnxruntime" not in args.runtimes.split(","):
        left_out.append({"model": name, "reason": "networks run on onnxruntime only"})
        return []
    path = _keyboard(folder) if name == "keyboard" else _built(name, folder) or _onnx(name)
    assert path is not None
    planned = octavo.plan(str(path), device=profile, scheme="fp32", runtime="onnxruntime")
    return [Cell(name, "fp32", "onnxruntime", path, _inputs(path), False, _predicted(planned))]


def _built(name: str, folder: Path) -> Path | None:
    """A network of BLOCKS, by `network:NAME`."""
    from octavo.errors import BadInput
    from octavo.runtimes.onnx.tiny import write_network

    kind, _, which = name.partition(":")
    if kind != "network":
        return None
    if which not in BLOCKS:
        raise BadInput(f"No network '{which}'.", f"There are {', '.join(BLOCKS)}.")
    path = folder / f"{which}.onnx"
    write_network(path, *BLOCKS[which])
    return path


def _keyboard(folder: Path) -> Path:
    """examples/keyboard's network, untrained, exported by Octavo in fp32."""
    import torch

    import octavo

    sys.path.insert(0, str(ROOT / "examples"))
    from keyboard.model import create

    torch.manual_seed(0)
    (model, example), path = create(), folder / "keyboard.onnx"
    octavo.compress(model, scheme="fp32", out=folder / "keyboard.octavo", example_inputs=example)
    octavo.export(folder / "keyboard.octavo", runtime="onnxruntime", out=path)
    return path


def _predicted(planned: Any) -> dict[str, tuple[float, float, float]]:
    candidate = planned.to_dict()["candidates"][0]
    memory = candidate["memory"]
    found: dict[str, tuple[float, float, float]] = {
        "memory": (memory["low"] / 1e6, memory["total"] / 1e6, memory["high"] / 1e6)
    }
    for what, key in {"decode": "tokens_per_second", "latency": "latency_ms"}.items():
        figure = candidate.get(key)
        if figure and figure["value"] is not None:
            found[what] = (figure["low"], figure["value"], figure["high"])
    return found


def _measure(cell: Cell, threads: int) -> None:
    """One fresh process: opened, run, its peak read."""
    from octavo.bench.fresh import measure_fresh
    from octavo.errors import OctavoError

    options: Report = {"repeat": 30}
    if cell.language:
        options = {"repeat": 1, "decode": DECODE, "context": PROMPT + DECODE, "kv": KV[cell.runtime]}
    try:
        found = measure_fresh(OPENER, cell.artifact, cell.inputs, threads=threads, **options)
    except OctavoError as error:
        cell.reason = str(error)
        return
    cell.measured.setdefault("memory", []).append(found.peak_memory_bytes / 1e6)
    if found.tokens_per_second is not None:
        cell.measured.setdefault("decode", []).append(1e3 / found.tokens_per_second.per_token_ms.p50)
    else:
        cell.measured.setdefault("latency", []).append(found.latency_ms.p50)


def _source(name: str, folder: Path) -> Path:
    from octavo.errors import BadInput

    kind, _, size = name.partition(":")
    if kind == "synthetic":
        from _checkpoint import Shape, write

        if size not in SYNTHETIC:
            raise BadInput(f"No synthetic model '{size}'.", f"There are {', '.join(SYNTHETIC)}.")
        path = folder / f"synthetic-{size}"
        write(path, Shape(*SYNTHETIC[size]))
        return path
    for path in (Path(name), SHARED / name):
        if path.exists():
            return path
    raise BadInput(f"{name}: no such model here or in {SHARED}.", "Set OCTAVO_SHARED, or give --models.")


def _onnx(name: str) -> Path | None:
    """The .onnx that `name` is, or the one in the directory that it is."""
    for path in (Path(name), SHARED / name):
        if path.suffix == ".onnx" and path.is_file():
            return path
        if path.is_dir() and (found := sorted(path.glob("*.onnx"))):
            return found[0]
    return None


def _suffix(runtime: str) -> str:
    return {"llamacpp": "gguf", "onnxruntime": "onnx"}[runtime]


def _inputs(path: Path) -> dict[str, Any]:
    """Random images, or ids, for a network's inputs."""
    from octavo.runtimes.base import open_artifact

    rng = np.random.default_rng(0)
    session: Any = open_artifact(path)
    try:
        shapes = {
            name: ([n if isinstance(n, int) else 1 for n in s], kind) for name, (s, kind) in session.inputs.items()
        }
    finally:
        session.close()
    return {
        name: rng.integers(0, 100, shape) if "int" in kind else rng.standard_normal(shape, np.float32)
        for name, (shape, kind) in shapes.items()
    }


def _report(cells: list[Cell], left_out: list[Report], args: argparse.Namespace, seconds: float) -> Report:
    groups = [group for cell in cells for group in cell.groups()]
    left_out += [
        {"model": c.model, "scheme": c.scheme, "runtime": c.runtime, "reason": c.reason} for c in cells if c.reason
    ]
    overall: Report = {}
    for what, limit in LIMITS.items():
        errors = [group["error"] for group in groups if group["what"] == what]
        overall |= {f"{what}_median_error": median(errors) if errors else None, f"{what}_limit": limit}
        overall |= {f"{what}_worst_error": max(errors, default=None), f"{what}_n": len(errors)}
    inside = [group["within_interval"] for group in groups]
    overall |= {"within_interval": sum(inside) / max(len(inside), 1), "threads": args.threads, "rounds": args.rounds}
    return {"overall": overall | {"seconds": seconds}, "groups": groups, "left_out": left_out}


def _table(report: Report) -> None:
    print(f"{'model':24} {'scheme':7} {'runtime':12} {'':8} {'predicted':>28} {'measured':>20} {'error':>7}")
    for group in report["groups"]:
        predicted = f"{group['predicted']:.4g} [{group['low']:.4g}, {group['high']:.4g}]"
        measured = f"{group['measured']:.4g} {group['unit']}"
        named = f"{group['model']:24} {group['scheme']:7} {group['runtime']:12} {group['what']:8}"
        print(f"{named} {predicted:>28} {measured:>20} {group['ratio'] - 1:>+7.0%}")
    for item in report["left_out"]:
        print(f"left out: {item}")
    overall = report["overall"]
    for what, limit in LIMITS.items():
        if overall[f"{what}_median_error"] is not None:
            print(f"{what:8} median error {overall[f'{what}_median_error']:.1%} (worst "
                  f"{overall[f'{what}_worst_error']:.0%}) of {overall[f'{what}_n']}; aim {limit:.0%}")  # fmt: skip
    print(f"{overall['within_interval']:.0%} within the interval; {overall['rounds']} rounds, {overall['threads']} "
          f"threads, {overall['seconds']:.0f} s")  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
