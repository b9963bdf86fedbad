"""A package opened to run: on macOS in Core ML itself, elsewhere in Octavo's interpreter, which says so everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import BadInput, Missing, OctavoError
from octavo.runtimes.base import Arrays, Placement
from octavo.runtimes.mlpackage.package import AGAIN
from octavo.runtimes.mlpackage.read import checked_manifest
from octavo.runtimes.mlpackage.service import Package

OURS = "Octavo's interpreter of ML programs: our semantics, not Apple's"
NOTES = (
    f"Outputs come from {OURS}.",
    "Which unit runs each operation is unknown: only Core ML says, which needs macOS. So does its latency.",
)
KINDS = {"float32": "tensor(float)", "int32": "tensor(int32)", "float16": "tensor(float16)"}
NUMBERS = {"float32": np.float32, "int32": np.int32, "float16": np.float16}


class _Ends:
    """Names and types of what goes in and comes out, as the compressed model's program has them."""

    def __init__(self, package: Package) -> None:
        info, self.manifest = package.info, checked_manifest(package.info)
        extra = self.manifest.extra if self.manifest is not None else {}
        self.given = {item["name"]: item for item in info["inputs"]}
        made = [item["name"] for item in info["outputs"]]
        self.into = dict(zip(extra.get("inputs", self.given), self.given, strict=True))
        self.out = dict(zip(made, extra.get("outputs", made), strict=True))
        self.state: dict[str, str] = dict(extra.get("state", {}))

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        found = {name: self.given[own] for name, own in self.into.items() if name not in self.state}
        return {name: (tuple(item["shape"]), KINDS.get(item["dtype"], item["dtype"])) for name, item in found.items()}

    def bind(self, inputs: Arrays, state: Arrays | None) -> Arrays:
        """Arrays by the program's own names, state included. Raises BadInput for what does not fit."""
        wanted = self.inputs
        if set(inputs) != set(wanted):
            raise BadInput(f"Inputs {sorted(inputs)} given; the model takes {sorted(wanted)}.")
        found = {self.into[name]: _fitting(name, value, self.given[self.into[name]]) for name, value in inputs.items()}
        for name in self.state:
            item = self.given[self.into[name]]
            fresh = np.zeros(item["shape"], NUMBERS.get(item["dtype"], np.float32))
            found[self.into[name]] = fresh if state is None else state[name]
        return found

    def unbind(self, outputs: Arrays) -> tuple[Arrays, Arrays]:
        """(outputs, state to come) by the compressed model's names."""
        named = {self.out[name]: value for name, value in outputs.items()}
        following = {name: named.pop(output) for name, output in self.state.items()}
        return named, following


def _fitting(name: str, value: Any, item: dict[str, Any]) -> Any:
    array, kind = np.asarray(value), NUMBERS.get(item["dtype"], np.float32)
    if list(array.shape) != list(item["shape"]):
        raise BadInput(f"Input {name} is {list(array.shape)}; the model takes {item['shape']} {item['dtype']}.")
    if array.dtype != kind:
        cast = array.astype(kind)
        if not np.can_cast(array.dtype, kind, "same_kind") and not np.array_equal(cast, array):
            raise BadInput(f"Input {name} is {array.dtype}; the model takes {item['dtype']}.")
        array = cast
    return np.ascontiguousarray(array)


class InterpretedSession:
    """A package run by our interpreter, in the worker. `timing_is_native` is False: its time says nothing of Core ML.

    Raises BadInput for a damaged package, or one with operations that the interpreter does not know.
    """

    timing_is_native = False
    logits_from = OURS
    notes = NOTES

    def __init__(self, path: Path) -> None:
        self._package = Package(path)
        self._ends = _Ends(self._package)
        self.manifest = self._ends.manifest
        lacking = self._package.call("check").result["unknown"]
        if lacking:
            self._package.close()
            raise BadInput(
                f"{path}: it has {', '.join(lacking)}, which Octavo's interpreter of ML programs does not know.",
                "Run it on macOS, where Core ML itself does.",
            )

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        """What `step` takes: {name: (shape, type)}."""
        return self._ends.inputs

    def step(self, inputs: Arrays, state: Any = None) -> tuple[Arrays, Any]:
        """Run once. Raises BadInput for inputs that do not fit, OctavoError when an operation fails."""
        reply = self._package.call("step", self._ends.bind(inputs, state))
        return self._ends.unbind(reply.arrays)

    def placement(self) -> list[Placement]:
        """Nothing: nobody here knows a unit (`notes` say so), and a guess would pass for a report."""
        return []

    def close(self) -> None:
        self._package.close()


class NativeSession:
    """A package run by Core ML itself, in this process. Written by the documentation, and never run: it needs macOS.

    Raises Missing where coremltools cannot reach Core ML, OctavoError when Core ML refuses the package.
    """

    timing_is_native = True
    logits_from = "Core ML"
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, units: tuple[str, ...]) -> None:
        import coremltools as ct

        package = Package(path)
        try:
            self._ends = _Ends(package)
        finally:
            package.close()
        self.manifest = self._ends.manifest
        self._path, self._units = path, _compute_units(ct, units)
        try:
            self._model = ct.models.MLModel(str(path), compute_units=self._units)
        except Exception as error:  # Core ML's own errors come as RuntimeError and others
            raise OctavoError(f"{path}: Core ML cannot load it ({error}).", AGAIN) from error

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        """What `step` takes: {name: (shape, type)}."""
        return self._ends.inputs

    def step(self, inputs: Arrays, state: Any = None) -> tuple[Arrays, Any]:
        """Run once. Raises BadInput for inputs that do not fit, OctavoError when Core ML fails."""
        bound = self._ends.bind(inputs, state)
        try:
            made = self._model.predict(bound)
        except Exception as error:
            raise OctavoError(f"Core ML failed: {error}") from error
        return self._ends.unbind({name: np.asarray(value) for name, value in made.items()})

    def placement(self) -> list[Placement]:
        """The unit that Core ML's compute plan prefers for each operation."""
        from coremltools.models.compute_plan import MLComputePlan

        compiled = self._model.get_compiled_model_path()
        plan = MLComputePlan.load_from_path(compiled, compute_units=self._units)
        block = plan.model_structure.program.functions["main"].block
        found = []
        for operation in block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None:
                name = operation.outputs[0].name if operation.outputs else ""
                found.append(Placement(f"{name} ({operation.operator_name})", _unit(usage.preferred_compute_device)))
        return found

    def close(self) -> None:
        del self._model


def open_session(path: Path, units: tuple[str, ...]) -> InterpretedSession | NativeSession:
    """Core ML on macOS, the interpreter elsewhere. Raises Missing when only units that are not here were asked for."""
    if sys.platform == "darwin":
        return NativeSession(path, units)
    if "cpu" not in units:
        raise Missing(
            f"Core ML's {', '.join(units)} needs macOS or iOS.", "Ask for cpu: Octavo's interpreter runs it here."
        )
    return InterpretedSession(path)


def _compute_units(ct: Any, units: tuple[str, ...]) -> Any:
    wanted = frozenset(units) - {"cpu"}
    names = {frozenset(): "CPU_ONLY", frozenset({"gpu"}): "CPU_AND_GPU", frozenset({"npu"}): "CPU_AND_NE"}
    return getattr(ct.ComputeUnit, names.get(wanted, "ALL"))


def _unit(device: Any) -> str:
    kinds = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "npu"}
    return kinds.get(type(device).__name__, type(device).__name__)
