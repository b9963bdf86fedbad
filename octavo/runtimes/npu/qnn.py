"""Qualcomm's Hexagon, as an execution provider of ONNX Runtime: a quantised .onnx in, its context binary out.

The provider (`onnxruntime-qnn`) is an optional extra under Qualcomm's own licence and never bundled. It runs in a
worker: its compiler can fail at finalisation or take the process with it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.placement import OWN_REPORT, Placement
from octavo.core.units import HEXAGON
from octavo.errors import BadInput, Missing, OctavoError, WorkerDied, WorkerTimeout
from octavo.runtimes.base import Arrays
from octavo.runtimes.npu.report import NpuReport
from octavo.workers.local import Worker

TIME_LIMIT = 900.0  # seconds
INSTALL = "pip install 'octavo[qnn]' (Qualcomm's own licence)"
EMULATION = "Run by the x86-64 emulation in Qualcomm's library: placement and numbers are the NPU's, times are not."
NO_REASON = "QNN does not take it (it gives no reason)"


def compile_onnx(path: Path, context: Path, *, timeout: float = TIME_LIMIT) -> NpuReport:
    """Compile `path` for Hexagon and write the context binary, embedded in an .onnx, to `context` (not written where
    the NPU takes nothing). Raises Missing without onnxruntime-qnn, OctavoError when its compiler gives up or dies."""
    from importlib.metadata import version

    with tempfile.TemporaryDirectory(prefix="octavo-qnn-") as directory, _worker() as worker:
        made = Path(directory, "context.onnx")  # the compiler refuses to replace a file
        params = {"path": str(path.resolve()), "context": str(made), "directory": directory}
        told = _call(worker, "compile_onnx", params, timeout, path)
        if made.is_file():
            shutil.copyfile(made, context)
    placement = _placement(told["nodes"], told["reasons"])
    cycles = told["cycles"]
    compiler = f"onnxruntime-qnn {version('onnxruntime-qnn')}"
    operators = tuple({"op": name, "unit": "npu", "cycles": count} for name, count in cycles.items() if name)
    clock = "this CPU's counter in the emulation, not a Hexagon's" if told["emulated"] else "the NPU's counter"
    return NpuReport(
        target=HEXAGON,
        compiler=compiler,
        setting={"emulated": told["emulated"], "cycles_of": clock},
        placement=placement,
        operators=operators,
        counts=dict(Counter(item.unit for item in placement)),
        cycles=None if told["emulated"] else cycles.get(""),
        latency_ms=None,
        memory={},
        traffic={},
        macs=None,
        notes=(EMULATION,) if told["emulated"] else (),
    )


def check() -> dict[str, Any]:
    """{"version", "emulated", "device"}, after the library has been loaded in a worker. Raises Missing, OctavoError."""
    with _worker() as worker:
        return _call(worker, "version", {}, 120.0, None)


class QnnSession:
    """An .onnx file on the NPU (or its emulation), in a process of its own. State is not carried: `step` is one run."""

    def __init__(self, path: Path) -> None:
        self._worker = _worker()
        self.manifest = None
        try:
            with tempfile.TemporaryDirectory(prefix="octavo-qnn-") as directory:
                params = {"path": str(path.resolve()), "directory": directory}
                told = _call(self._worker, "open_session", params, TIME_LIMIT, path)
        except BaseException:
            self._worker.close()
            raise
        self._key, self._placement = told["key"], _placement(told["nodes"], told["reasons"])
        self._inputs = {name: (tuple(shape), kind) for name, (shape, kind) in told["inputs"].items()}

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        """What `step` takes: {name: (shape, type)}."""
        return dict(self._inputs)

    def step(self, inputs: Arrays, state: Any = None) -> tuple[Arrays, Any]:
        """Run once. Raises BadInput for inputs of other names or shapes, OctavoError when the run fails."""
        if inputs.keys() != self._inputs.keys():
            raise BadInput(f"Inputs {sorted(inputs)} given; the model takes {sorted(self._inputs)}.")
        for name, (shape, kind) in self._inputs.items():
            given = np.shape(inputs[name])
            if len(given) != len(shape) or any(
                isinstance(n, int) and n != m for n, m in zip(shape, given, strict=True)
            ):
                raise BadInput(f"Input {name} is {list(given)}; the model takes {list(shape)} {kind}.")
        reply = self._worker.call(
            "octavo.runtimes.npu.qnn_child:run", {"key": self._key}, inputs, timeout=TIME_LIMIT
        )  # fmt: skip
        return reply.arrays, None

    def placement(self) -> list[Placement]:
        """Which unit runs each node, as ONNX Runtime says, and QNN's reasons where it is not the NPU."""
        return list(self._placement)

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def _placement(nodes: list[dict[str, Any]], reasons: dict[str, str]) -> tuple[Placement, ...]:
    found = []
    for node in nodes:
        reason = "" if node["npu"] else reasons.get(node["name"], NO_REASON)
        shown = f"{node['name']} ({node['op']})" if node["name"] else str(node["op"])
        found.append(Placement(shown, "npu" if node["npu"] else "cpu", reason, source=OWN_REPORT))
    return tuple(found)


def _worker() -> Worker:
    from importlib.util import find_spec

    if find_spec("onnxruntime_qnn") is None:
        raise Missing("Hexagon needs Qualcomm's provider for ONNX Runtime (onnxruntime-qnn).", INSTALL)
    return Worker()


def _call(worker: Worker, function: str, params: dict[str, Any], timeout: float, path: Path | None) -> dict[str, Any]:
    what = f" with {path}" if path else ""
    try:
        return worker.call(f"octavo.runtimes.npu.qnn_child:{function}", params, timeout=timeout).result
    except WorkerDied as error:
        raise OctavoError(f"Qualcomm's compiler died{what}: {error.message}", "Try another scheme.") from error
    except WorkerTimeout as error:
        raise OctavoError(f"Qualcomm's compiler took longer than {timeout:g} s{what} and was stopped.") from error
