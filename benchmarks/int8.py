"""int8 beside fp32 in the same runtime, and Octavo's w8a8 file beside the file of the runtime's own quantiser.

    python benchmarks/int8.py [MODEL …] [--data X] [--calibration Y] [--preprocess F] [--runtime R …] [--json]

All files of a model are calibrated on the same samples and evaluated on the same others. Their own quantisers:
ONNX Runtime's quantize_static (QDQ, per channel, pre-processed model; three ways to calibrate, and int8 activations
beside the uint8 ones that its guide names for this kind of CPU), ai-edge-quantizer's static_wi8_ai8, and the PT2E
recipe of torchao's for XNNPACK. Every file of a runtime is run by the same kind of session, in turn, in one process.

Without MODEL: SqueezeNet 1.1 on its 500 images. Everything printed was measured by this run; ratios of time below 1
mean that Octavo's file is the faster one. The aims: no slower and no less accurate than the runtime's own, and
int8 twice as fast as fp32 on at least two runtimes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _int8_measure import Scores, gained, in_turn, latency, quality, ratio, scores

import octavo
from octavo.api.load import load
from octavo.api.original import Original, open_original
from octavo.api.programs import ModelPrograms
from octavo.api.run import bind_inputs
from octavo.errors import OctavoError
from octavo.runtimes.base import runtime, runtime_of
from octavo.workers.local import Worker

FLOAT, OURS = "fp32", "octavo w8a8"
FASTER = 2.0  # int8 against fp32
SECONDS = 1800  # of one quantiser
QUIET = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
STATIC = "_int8_vendors:quantize_static"
# {runtime: {its own quantiser: (target, parameters)}}; the first of each is the one that its documentation names.
VENDORS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "onnxruntime": {
        "quantize_static": (STATIC, {"method": "MinMax", "activations": "QUInt8"}),
        "quantize_static percentile": (STATIC, {"method": "Percentile", "activations": "QUInt8"}),
        "quantize_static entropy": (STATIC, {"method": "Entropy", "activations": "QUInt8"}),
        "quantize_static s8": (STATIC, {"method": "MinMax", "activations": "QInt8"}),
    },
    "litert": {"ai-edge-quantizer": ("_int8_vendors:ai_edge_quantizer", {})},
    "executorch": {"torchao XNNPACK recipe": ("_int8_vendors:xnnpack_recipe", {})},
}
SQUEEZENET = "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx"
IMAGES = "data/vision/imagenet/images_500.zip"


@dataclass
class Made:
    """The files of one model in one runtime, and why some are missing."""

    files: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def make(model: Path, original: Original, folder: Path, runtimes: list[str]) -> dict[str, Made]:
    """Every file: Octavo's fp32 and w8a8, and what each runtime's own quantiser makes of the float one."""
    calibration, made = original.calibration, {name: Made() for name in runtimes}
    for scheme, options in (("fp32", {}), ("w8a8", {"calibration": calibration, "samples": len(calibration)})):
        octavo.compress(model, scheme=scheme, out=folder / scheme, **options)  # type: ignore[arg-type]
        for name in runtimes:
            path = folder / f"{scheme}{runtime(name).suffix}"
            _told(f"{model.name}: {scheme} for {name}")
            octavo.export(folder / scheme, runtime=name, out=path)
            made[name].files[FLOAT if scheme == "fp32" else OURS] = path
    (samples,) = _whole(calibration).values()
    for name in runtimes:
        for number, (title, (target, params)) in enumerate(VENDORS[name].items()):
            path = folder / f"{name}-{number}{runtime(name).suffix}"
            given = {"model": str(_float_file(model, folder, name)), "file": str(path), **params}
            given["name"] = next(iter(_whole(calibration)))
            _told(f"{model.name}: {title}")
            try:
                with Worker(threads=1, env=QUIET) as worker:
                    worker.call(target, given, {"samples": samples}, timeout=SECONDS)
                made[name].files[title] = path
            except OctavoError as error:
                made[name].missing[title] = str(error).strip().splitlines()[0]
    return made


def _whole(data: Any) -> dict[str, Any]:
    parts = [part.inputs for part in data.batches(1)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _float_file(model: Path, folder: Path, name: str) -> Path:
    """What the runtime's quantiser starts from: the user's own .onnx, else our fp32 file, without our manifest."""
    if name == "litert":
        return folder / "fp32.tflite"  # ai-edge-quantizer wants a signature, which old files lack
    if name == "onnxruntime":
        if model.suffix == ".onnx":
            return model
        import onnx

        plain = onnx.load(str(folder / "fp32.onnx"))
        del plain.metadata_props[:]
        onnx.save(plain, str(folder / "plain.onnx"))
        return folder / "plain.onnx"
    import torch

    path = folder / "fp32.pt2"
    module, examples = ModelPrograms(load(folder / "fp32")).valued()
    with torch.no_grad():
        torch.export.save(torch.export.export(module, examples), path)
    return path


def measure(made: Made, original: Original, reference: Scores, arguments: argparse.Namespace) -> dict[str, Any]:
    """Quality and time of the files of one runtime; a file that does not run is a line with the reason."""
    data, rows, found = original.data, {}, {}
    with ExitStack() as stack:
        calls, missing = {}, dict(made.missing)
        for name, path in made.files.items():
            try:
                session: Any = runtime_of(path).open(path, threads=arguments.threads)
                stack.callback(session.close)
                one = bind_inputs(session, next(iter(data.batches(1))).inputs)
                calls[name] = lambda session=session, one=one: session.step(one)
                found[name] = scores(lambda x, session=session: session.step(bind_inputs(session, x))[0], data)
            except OctavoError as error:
                calls.pop(name, None)
                missing[name] = str(error).strip().splitlines()[0]
                continue
            rows[name] = quality(reference, found[name], data.labels) | {"bytes": path.stat().st_size}
        taken = in_turn(calls, arguments.rounds, arguments.threads)
    for name, spent in taken.items():
        rows[name]["latency_ms"] = latency(spent)
    beside = {name: _beside(name, taken, found, data.labels) for name in taken if name not in (FLOAT, OURS)}
    group: dict[str, Any] = {"files": rows, "missing": missing, "beside": beside}
    if FLOAT in taken and OURS in taken:
        group["speedup"] = ratio(taken[FLOAT], taken[OURS]).as_dict()
    return group


def _beside(name: str, taken: dict[str, Any], found: dict[str, Scores], labels: Any) -> dict[str, Any]:
    """Octavo's file against one of theirs."""
    if OURS not in taken:
        return {}
    time_ratio = ratio(taken[OURS], taken[name])
    made: dict[str, Any] = {"time": time_ratio.as_dict() | {"verdict": _verdict(time_ratio, 1.0, lower=True)}}
    if labels is not None:
        gain = gained(found[OURS], found[name], labels)
        made["accuracy"] = gain.as_dict() | {"verdict": _verdict(gain, 0.0, lower=False)}
    return made


def _verdict(estimate: Any, level: float, *, lower: bool) -> str:
    """better or worse where the interval says so; else level, which is: no difference was seen."""
    above, below = estimate.low > level, estimate.high < level
    return "better" if (below if lower else above) else "worse" if (above if lower else below) else "level"


def overall(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The aims, and whether they were met."""
    beside = [
        row | {"of": (g["model"], g["runtime"], name)} for g in groups for name, row in g["beside"].items() if row
    ]
    worse = {
        what: [" ".join(row["of"]) for row in beside if row.get(what, {}).get("verdict") == "worse"]
        for what in ("time", "accuracy")
    }
    twice: dict[str, list[str]] = {}
    for group in groups:
        if group.get("speedup", {}).get("value", 0) >= FASTER:
            twice.setdefault(group["model"], []).append(group["runtime"])
    return {
        "slower_than_the_runtimes_own": worse["time"], "less_accurate_than_the_runtimes_own": worse["accuracy"],
        "twice_as_fast_as_fp32": twice, "aims": {"slower": 0, "less_accurate": 0, "runtimes_twice_as_fast": 2},
        "load": os.getloadavg()[0], "cpus": os.cpu_count(),
    }  # fmt: skip


def one_model(model: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A group per runtime."""
    start = time.perf_counter()
    original = open_original(
        model, arguments.data, windows=1, context=2, preprocess=arguments.preprocess, divide=True,
        calibration=arguments.calibration, samples=arguments.samples, seed=arguments.seed,
    )  # fmt: skip
    if original.is_language or original.is_stream or original.batch != 1:
        raise SystemExit(f"{model}: this benchmark is for networks of one input and one output, a sample at a time.")
    groups = []
    with tempfile.TemporaryDirectory(prefix="octavo-int8-") as folder:
        made = make(model, original, Path(folder), arguments.runtime)
        _told(f"{model.name}: the float model on {len(original.data)} samples")
        reference = scores(original.run, original.data)
        for name in arguments.runtime:
            _told(f"{model.name}: measuring {name}")
            begun = os.getloadavg()[0]
            group = measure(made[name], original, reference, arguments)
            groups.append(
                {
                    "model": model.name, "runtime": name, "data": arguments.data.name,
                    "calibrate": len(original.calibration), "evaluate": len(original.data),
                    "rounds": arguments.rounds, "threads": arguments.threads,
                    "clock": "CPU time" if arguments.threads == 1 else "wall",
                    "float": quality(reference, reference, original.data.labels), "load": [begun, os.getloadavg()[0]],
                } | group
            )  # fmt: skip
    original.source.close()
    _told(f"{model.name}: {time.perf_counter() - start:.0f} s")
    return groups


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(report: dict[str, Any]) -> None:
    for group in report["groups"]:
        loads = " and ".join(f"{load:.1f}" for load in group["load"])
        right = group["float"].get("accuracy")
        print(
            f"\n{group['model']} on {group['runtime']}: {group['calibrate']} samples of {group['data']} calibrate, "
            f"{group['evaluate']} evaluate" + (f"; float in torch {right['value']:.2%}" if right else "")
            + f"\n{group['rounds']} rounds, {group['threads']} thread(s), {group['clock']}, "
            f"load {loads} on {os.cpu_count()} cores; measured"
        )  # fmt: skip
        print(f"  {'file':28} {'top-1':>7} {'drop, points':>22} {'agrees':>7} {'SQNR':>7} {'bytes':>10}  ms")
        for name, row in group["files"].items():
            print("  " + _line(name, row))
        if "speedup" in group:
            print(f"  {OURS} against {FLOAT}: {_figure(group['speedup'], '.2f')} times as fast; aim {FASTER:g}")
        for name, row in group["beside"].items():
            parts = [f"time ×{_figure(row['time'], '.3f')} {row['time']['verdict']}"] if row else []
            if "accuracy" in row:
                parts.append(f"accuracy {_figure(row['accuracy'], '+.2f', 100)} points, {row['accuracy']['verdict']}")
            print(f"  {OURS} against {name}: {'; '.join(parts)}")
        for name, why in group["missing"].items():
            print(f"  {name}: {why}")
    print("\n" + json.dumps(report["overall"]))


def _line(name: str, row: dict[str, Any]) -> str:
    top = f"{row['accuracy']['value']:.2%}" if "accuracy" in row else ""
    drop = _figure(row["drop"], ".2f", 100) if "drop" in row else ""
    sqnr = "equal" if row["sqnr_db"]["value"] is None else f"{row['sqnr_db']['value']:.2f}"
    return f"{name:28} {top:>7} {drop:>22} {row['agreement']['value']:7.2%} {sqnr:>7} {row['bytes']:10,}  " + _figure(
        row["latency_ms"], ".3f"
    )


def _figure(item: dict[str, Any], form: str, times: float = 1) -> str:
    value, low, high = (format(item[key] * times, form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="*", help=".onnx or .tflite, float; default: SqueezeNet 1.1")
    parser.add_argument("--data", type=Path, help="labelled samples; what calibrates is left out of the evaluation")
    parser.add_argument("--calibration", type=Path, help="other samples to calibrate on")
    parser.add_argument("--preprocess", type=Path, help="how images and sound become inputs")
    parser.add_argument("--runtime", action="append", choices=tuple(VENDORS), help="repeatable; default: all three")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100, help="at most this many calibrate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of what calibrates")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.runtime = arguments.runtime or list(VENDORS)
    if not arguments.model:
        shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
        arguments.model, arguments.data = [shared / SQUEEZENET], arguments.data or shared / IMAGES
    if arguments.data is None:
        parser.error("a model needs --data")
    return arguments


def main() -> None:
    arguments = parsed()
    groups = [group for model in arguments.model for group in one_model(model, arguments)]
    report = {"overall": overall(groups), "groups": groups}
    print(json.dumps(report, indent=1)) if arguments.json else show(report)


if __name__ == "__main__":
    main()
