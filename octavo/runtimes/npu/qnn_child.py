"""The child's end of the Hexagon backend: Qualcomm's QNN as an execution provider of ONNX Runtime.

The provider is a plugin library that is registered when first needed. On a machine without a Hexagon the library brings
an emulation of it, which runs the very graph that the compiler made: its numbers are the NPU's, its time is not.
"""

from __future__ import annotations

import contextlib
import csv
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import BadInput, Missing, OctavoError

PROVIDER = "QNNExecutionProvider"  # a plugin bears the name it is registered under; context binaries name it
VERBOSE, SILENT = 0, 4
EMULATED = ("x86_64", "AMD64")  # processors that no Hexagon stands beside
GIVEN_UP = re.compile(
    r"Validation FAILED[^\n]*\n(?P<nodes>(?:\s*Operator type:[^\n]*\n)+)\s*REASON : (?P<reason>[^\n]*)"
)
VALIDATION = re.compile(r"failed for node `(?P<name>[^`]*)` of type `(?P<kind>[^`]*)` with error code (?P<code>\d+)")
NODE = re.compile(r"Operator type: (?P<op>\S+) Node name: (?P<name>.*?) Node index")
TAKES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int64)": np.int64}
SESSIONS: dict[int, Any] = {}


def version(params: dict[str, Any], arrays: dict[str, Any], emit: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the library: {"version", "emulated", "device"}. Raises Missing, OctavoError."""
    from importlib.metadata import version as of

    device = _devices()[0]
    return {
        "version": of("onnxruntime-qnn"), "emulated": _emulated(), "device": str(device.device.type).split(".")[-1]
    }, {}  # fmt: skip


def compile_onnx(params: dict[str, Any], arrays: dict[str, Any], emit: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compile `path`, the context binary embedded in the .onnx `context` (none is written where nothing is taken).

    Returns every node with its provider, the compiler's reasons by node name, and cycles per node of one run.
    """
    path, directory = params["path"], Path(params["directory"])
    log, profile = directory / "log.txt", directory / "profile.csv"
    entries = {
        "session.record_ep_graph_assignment_info": "1", "ep.context_enable": "1",
        "ep.context_file_path": params["context"], "ep.context_embed_mode": "1",
    }  # fmt: skip
    with _stderr_to(log):
        session = _session(path, entries, {"profiling_level": "detailed", "profiling_file_path": str(profile)}, VERBOSE)
    nodes = [
        {"op": node.op_type, "name": node.name, "npu": part.ep_name == PROVIDER}
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    if any(node["npu"] for node in nodes):
        session.run(None, _blank(session))
    del session  # which writes the profile
    return {
        "nodes": nodes, "reasons": _reasons(log.read_text("utf-8", "replace")), "cycles": _cycles(profile),
        "emulated": _emulated(),
    }, {}  # fmt: skip


def open_session(params: dict[str, Any], arrays: dict[str, Any], emit: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open `path` for `run`: {"key", "inputs": {name: [shape, type]}, "nodes", "reasons"}; `directory` takes a log."""
    log = Path(params["directory"], "log.txt")
    with _stderr_to(log):
        session = _session(params["path"], {"session.record_ep_graph_assignment_info": "1"}, {}, VERBOSE)
    key = len(SESSIONS)
    SESSIONS[key] = session
    nodes = [
        {"op": node.op_type, "name": node.name, "npu": part.ep_name == PROVIDER}
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    inputs = {item.name: [list(item.shape), item.type] for item in session.get_inputs()}
    reasons = _reasons(log.read_text("utf-8", "replace"))
    return {"key": key, "inputs": inputs, "nodes": nodes, "reasons": reasons}, {}


def run(params: dict[str, Any], arrays: dict[str, Any], emit: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """One run of an open session."""
    import onnxruntime

    session, options = SESSIONS[params["key"]], onnxruntime.RunOptions()
    options.log_severity_level = SILENT
    wanted = {item.name: TAKES.get(item.type) for item in session.get_inputs()}
    feeds = {name: np.asarray(value, wanted.get(name)) for name, value in arrays.items()}
    try:
        values = session.run(None, feeds, options)
    except Exception as error:  # pybind raises a dozen classes without a common base
        raise OctavoError(f"QNN failed: {error}") from error
    return {}, dict(zip([item.name for item in session.get_outputs()], values, strict=True))


def _session(path: str, entries: dict[str, str], provider: dict[str, str], severity: int) -> Any:
    import onnxruntime
    import onnxruntime_qnn

    devices = _devices()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = severity
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices(
        devices[:1],
        # The NPU also takes what turns floats into codes at the graph's ends: asked for, it is asked for everything.
        {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"} | provider,
    )
    try:
        return onnxruntime.InferenceSession(path, options)
    except Exception as error:
        words = str(error)
        if "1002" in words or "inalize" in words:
            raise OctavoError(
                f"{path}: QNN's compiler gave up at graph finalisation ({words}).",
                "Try another scheme, or keep the layers that it cannot hold in float.",
            ) from error
        raise BadInput(f"{path}: ONNX Runtime cannot load it with QNN ({words}).") from error


def _devices() -> list[Any]:
    try:
        import onnxruntime
        import onnxruntime_qnn
    except ImportError as error:
        raise Missing(f"The Hexagon backend needs {error.name}.", "pip install 'octavo[qnn]'") from error
    if not any(device.ep_name == PROVIDER for device in onnxruntime.get_ep_devices()):
        try:
            onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
        except Exception as error:
            raise OctavoError(
                f"Qualcomm's library cannot be loaded ({error}).", "pip install --force-reinstall onnxruntime-qnn"
            ) from error
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    if not found:
        raise Missing("QNN finds no device here that it could run on or emulate.", "Run it on a Snapdragon.")
    return sorted(found, key=lambda device: "NPU" not in str(device.device.type))


def _emulated() -> bool:
    return platform.machine() in EMULATED


def _blank(session: Any) -> dict[str, Any]:
    """Zeros for every input: what a profile of a graph without data-dependent work needs."""
    return {
        item.name: np.zeros([n if isinstance(n, int) else 1 for n in item.shape], TAKES.get(item.type, np.float32))
        for item in session.get_inputs()
    }


def _reasons(log: str) -> dict[str, str]:
    """{node name: why QNN does not take it}."""
    invalid = {
        match["name"]: f"QNN's validation of its {match['kind']} fails (error {match['code']})"
        for match in VALIDATION.finditer(log)
    }
    found: dict[str, str] = {}
    for match in GIVEN_UP.finditer(log):
        names = [node["name"] for node in NODE.finditer(match["nodes"])]
        why = next((invalid[name] for name in names if name in invalid), match["reason"].strip())
        found |= dict.fromkeys(names, why)
    return found


def _cycles(profile: Path) -> dict[str, int]:
    """{the compiler's name of an operator: cycles of one run}, "" the whole."""
    found: dict[str, int] = {}
    if not profile.is_file():
        return found
    with open(profile, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            name = (row.get("Event Identifier") or "").strip()
            if row.get("Unit of Measurement") == "CYCLES" and row["Message"] == "NODE":
                found[name.removesuffix(" (cycles)").rpartition(":")[0] or name] = int(row["Time"])
            elif row.get("Unit of Measurement") == "CYCLES" and name.startswith("Accelerator (execute)"):
                found[""] = int(row["Time"])
    return found


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """ONNX Runtime's log goes where the process's errors go: catch it there."""
    sys.stderr.flush()
    kept = os.dup(2), os.dup(1)
    with open(path, "wb") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            sys.stderr.flush()
            for descriptor, old in zip((2, 1), kept, strict=True):
                os.dup2(old, descriptor)
                os.close(old)
