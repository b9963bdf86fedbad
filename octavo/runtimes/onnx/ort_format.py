"""ONNX Runtime Mobile's own format: an .onnx turned into an .ort, and the list of operators a reduced build needs.

The conversion is ONNX Runtime's. The format has no public reader, so weights cannot be compared code for code: both
files are run on the same inputs instead.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import BadInput, OctavoError
from octavo.workers.local import Worker

SECONDS = 600
RUNS = 4


@dataclass(frozen=True)
class OrtFile:
    """What the conversion gave. `difference`: the largest of any output's over RUNS seeded inputs, relative to that
    output's largest magnitude. `style`: of optimisation, Runtime (also left to the device: fit for NNAPI and Core ML)
    or Fixed (done now, for Arm CPUs). `operators`: {domain: operators} that a reduced build must have."""

    style: str
    difference: float
    operators: dict[str, tuple[str, ...]]


def config_of(path: Path) -> Path:
    """Where the list of required operators lies."""
    return path.with_name(f"{path.stem}.required_operators.config")


def write_ort(source: Path, ort: Path, config: Path) -> OrtFile:
    """Convert the .onnx `source` to `ort` and write `config`, in a worker; run both. Raises OctavoError."""
    with tempfile.TemporaryDirectory(prefix="octavo-ort-") as directory, Worker(threads=1) as worker:
        shutil.copyfile(source, Path(directory, "model.onnx"))
        told = worker.call("octavo.runtimes.onnx.ort_format:convert", {"directory": directory}, timeout=SECONDS).result
        shutil.copyfile(told["ort"], ort)
        listed = Path(told["config"]).read_text("utf-8").splitlines()
        lines = [
            "# Operators that a build for this model needs",
            *(line for line in listed if not line.startswith("#")),
        ]
        config.write_text("\n".join(lines).strip() + "\n", "utf-8")
    return OrtFile(told["style"], told["difference"], {key: tuple(value) for key, value in told["operators"].items()})


def convert(params: dict[str, Any], arrays: dict[str, Any], emit: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A worker's target: `directory`/model.onnx to .ort with its config, both run."""
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    home = Path(params["directory"])
    source, failed = home / "model.onnx", ""
    for style in (OptimizationStyle.Runtime, OptimizationStyle.Fixed):  # the first fails on some quantised graphs
        made = home / style.name
        made.mkdir()
        try:
            convert_onnx_models_to_ort(source, made, [style], target_platform="arm")
        except Exception as error:  # pybind raises a dozen classes without a common base
            failed = str(error)
        files, configs = sorted(made.glob("*.ort")), sorted(made.glob("*.config"))
        if files and configs:
            told = {"ort": str(files[0]), "config": str(configs[0]), "style": style.name}
            return told | {"difference": _difference(source, files[0]), "operators": _operators(configs[0])}, {}
    raise OctavoError(f"ONNX Runtime cannot convert it to .ort ({failed}).", "Keep the .onnx.")


def _difference(one: Path, other: Path) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    left, right = (
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in (one, other)
    )
    random, worst = np.random.default_rng(0), 0.0
    for _ in range(RUNS):
        inputs = {item.name: _random(item, random) for item in left.get_inputs()}
        for a, b in zip(left.run(None, inputs), right.run(None, inputs), strict=True):
            largest = float(np.abs(np.asarray(a, np.float64)).max(initial=0.0)) or 1.0
            worst = max(worst, float(np.abs(np.asarray(a, np.float64) - b).max(initial=0.0)) / largest)
    return worst


def _random(item: Any, random: np.random.Generator) -> Any:
    shape = [size if isinstance(size, int) else 1 for size in item.shape]
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
    if item.type == "tensor(float)":
        return random.standard_normal(shape).astype(np.float32)
    if item.type in types:
        return random.integers(0, 2, shape).astype(types[item.type])
    raise BadInput(f"Input {item.name} is a {item.type}: no random one is made to compare the .ort with its .onnx.")


def _operators(config: Path) -> dict[str, list[str]]:
    """`domain;opset;A,B{…},C` per line."""
    found: dict[str, list[str]] = {}
    for line in config.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            domain, _, operators = line.split(";", 2)
            found.setdefault(domain, []).extend(part for part in operators.split(",") if part)
    return found
