"""Every runtime and unit: works here, or why not and what to do. What can be tried is tried; the rest is a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from octavo.errors import OctavoError

ON_DEVICE = "Export here, run it on the device."
ABSENT: dict[tuple[str, str], tuple[str, str]] = {  # (runtime, unit): why not, and what to do
    ("onnxruntime", "gpu"): (
        "this package of ONNX Runtime has no GPU provider that Octavo uses",
        "Run the .onnx with the device's own build.",
    ),
    ("onnxruntime", "npu"): (
        "an NPU is compiled for by name: hexagon; NNAPI and Core ML exist in ONNX Runtime's mobile builds alone",
        "--unit hexagon, or run the .onnx on the phone.",
    ),
    ("litert", "gpu"): ("LiteRT's GPU delegate is not in the Python package", ON_DEVICE),
    ("litert", "npu"): ("an NPU is compiled for by name: ethos-u55-128, …", "--unit ethos-u55-128."),
    ("executorch", "gpu"): ("the Python package has no Vulkan or Metal backend that runs", ON_DEVICE),
    ("executorch", "npu"): (
        "its QNN and OpenVINO backends are stubs that need their vendors' libraries",
        "Install Qualcomm's AI Engine Direct SDK (or OpenVINO), and build ExecuTorch with it.",
    ),
    ("llamacpp", "gpu"): ("xllamacpp's package computes on the CPU", "Run the .gguf with a llama.cpp built for it."),
    ("llamacpp", "npu"): ("llama.cpp has no NPU backend in this package", "Ask for cpu."),
}
MACOS = ("Core ML computes on macOS and iOS alone", "Run the .mlpackage on a Mac or an iPhone.")


def unit_rows(found: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """{"runtime", "unit", "works", "reason", "remedy"} for every runtime of `found` ({name: Availability}) and unit."""
    rows: list[dict[str, Any]] = []
    for name, item in found.items():
        for unit in ("cpu", "gpu", "npu"):
            rows.append(_row(name, unit, *_state(name, unit, item)))
        for target, check in TARGET_CHECKS.get(name, {}).items():
            rows.append(_row(name, target, *check()))
    return tuple(rows)


def _state(name: str, unit: str, item: Any) -> tuple[bool, str, str]:
    if not item.works:
        return False, item.reason, item.remedy
    if unit in item.units:
        return True, item.reason if unit == "cpu" else "", item.remedy if unit == "cpu" else ""
    if name == "coreml" and sys.platform != "darwin":
        return False, *MACOS
    return False, *ABSENT.get((name, unit), (f"{name} has no {unit} here", "Ask for cpu."))


def _ethos() -> tuple[bool, str, str]:
    """Load Vela, native part included."""
    from octavo.runtimes.npu.ethos_u import compiler_version

    try:
        return True, f"compiles with {compiler_version()}; the program runs on the device", ""
    except OctavoError as error:
        return False, error.message, error.remedy


def _hexagon() -> tuple[bool, str, str]:
    """Load Qualcomm's provider in a worker."""
    from octavo.runtimes.npu.qnn import check

    try:
        told = check()
    except OctavoError as error:
        return False, error.message, error.remedy
    how = "compiles and runs by emulation (numbers, not times)" if told["emulated"] else "compiles and runs"
    return True, f"{how}: onnxruntime-qnn {told['version']}, under Qualcomm's licence", ""


def _executorch_ethos() -> tuple[bool, str, str]:
    lacking = [name for name in ("executorch", "ethosu", "tosa") if find_spec(name) is None]
    if lacking:
        return False, f"{' and '.join(lacking)} not installed", "pip install 'octavo[executorch,ethos]'"
    return False, "Octavo compiles for Ethos-U from LiteRT's file", "--runtime litert."


TARGET_CHECKS: dict[str, dict[str, Callable[[], tuple[bool, str, str]]]] = {
    "litert": {"ethos-u": _ethos},
    "onnxruntime": {"hexagon": _hexagon},
    "executorch": {"ethos-u": _executorch_ethos},
}


def _row(runtime: str, unit: str, works: bool, reason: str, remedy: str) -> dict[str, Any]:
    return {"runtime": runtime, "unit": unit, "works": works, "reason": reason, "remedy": remedy}
