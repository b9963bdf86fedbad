"""LiteRT (TensorFlow Lite): one .tflite file with program, codes, scales and Octavo's manifest in its metadata.

`tflite/` holds the pieces: convert (litert-torch in a worker), match (where it put each weight), bind (codes in their
places), tidy, ends, edges, write, read, session. The converter makes the graph; every number in it is ours, or refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from octavo.core.carriage import carriage
from octavo.core.manifest import Carried, Manifest, manifest_for
from octavo.core.model import CompressedModel, TensorRecord
from octavo.core.scheme import SCHEMES
from octavo.errors import BadInput, Refused
from octavo.runtimes.base import Availability, Programs, Progress, ReadBack, Session

FLOATS = ("fp32", "fp16", "bf16")


class LiteRt:
    """The Runtime of LiteRT, on the CPU: XNNPACK, and LiteRT's own kernels for what that lacks."""

    name = "litert"
    suffix = ".tflite"

    def carry(self, model: CompressedModel) -> Manifest:
        """Decide how each tensor lies in the file. Raises Refused for a scheme that it cannot hold exactly, and for
        language models; BadInput for a program whose inputs have no fixed size."""
        if model.program.kind != "graph":
            raise Refused(
                "Octavo exports language models to llamacpp and onnxruntime, not to litert.", "Choose one of those."
            )
        inputs = _inputs(model)
        free = [name for name, shape in inputs.items() if -1 in shape]
        if free:
            raise BadInput(
                f"The size of {', '.join(free)} is free: {[inputs[name] for name in free]}; LiteRT wants it fixed.",
                f"Say it when compressing (of an .onnx file: --fix {free[0]}=1,3,224,224), or capture no free sizes.",
            )
        extra: dict[str, Any] = {"inputs": list(inputs)}
        extra["state"] = {state.name: f"present.{state.name}" for state in model.state}
        carried = tuple(self._carried(record) for record in model.tensors)
        return manifest_for(model, self.name, carried, extra=extra, notes=tuple(_notes(carried)))

    def lower(
        self,
        model: CompressedModel,
        manifest: Manifest,
        path: Path,
        programs: Programs,
        progress: Progress,
        *,
        io: str = "float",
        layout: str | None = None,
    ) -> None:
        """Write the file to `path`.

        `io` "int8": inputs and outputs are the integers of their edges (manifest.extra["io"] has scale and zero point).
        `layout` "nhwc": images go in, and come out, channels last. Raises Refused when the file would not hold the
        compressed model's numbers, or its ends cannot be integers; OctavoError when the converter fails.
        """
        from octavo.runtimes.tflite.bind import bind
        from octavo.runtimes.tflite.convert import converted
        from octavo.runtimes.tflite.edges import find_edges
        from octavo.runtimes.tflite.ends import channels_last, described, float_ends
        from octavo.runtimes.tflite.graph import Graph
        from octavo.runtimes.tflite.names import Names
        from octavo.runtimes.tflite.repair import repair
        from octavo.runtimes.tflite.tidy import tidy
        from octavo.runtimes.tflite.write import write

        if io not in ("float", "int8") or layout not in (None, "nchw", "nhwc"):
            raise BadInput(f"--io {io} --layout {layout}: unknown.", "--io int8 or float, --layout nhwc or nchw.")
        progress("convert", 0, 3)
        data, outputs = converted(programs, static=bool(model.edges))
        progress("bind", 1, 3)
        graph = Graph(data)
        repair(graph)
        tidy(graph)
        layouts = channels_last(graph) if layout == "nhwc" else ([""] * len(graph.inputs), [""] * len(graph.outputs))
        edges = find_edges(graph, model.edges, _sizes(model))
        _ends_are(graph, io)
        if io == "float":
            float_ends(graph)
        names, ends = Names(graph), (manifest.extra["inputs"], _named(outputs, model))
        names.ends(*ends)
        held = manifest.extra | {"outputs": ends[1], "io": described(graph, ends, layouts, io)}
        tensors = bind(graph, model, manifest.tensors, names)
        held["edges"] = names.edges(edges)
        names.settle()
        progress("write", 2, 3)
        write(path, graph, replace(manifest, tensors=tensors, extra=held), model.assets)
        progress("write", 3, 3)

    def discard(self, path: Path) -> None:
        """There is nothing beside the file."""

    def read_back(self, path: Path) -> ReadBack:
        """Open the file with LiteRT's schema. Raises BadInput when it is damaged."""
        from octavo.runtimes.tflite.read import TfliteReadBack

        return TfliteReadBack(path)

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        units: tuple[str, ...] = ("cpu",),
        context: int | None = None,
        kv: str | None = None,
    ) -> Session:
        """Load the file in LiteRT; see TfliteSession. Raises BadInput for a damaged file, or a KV cache asked for."""
        if kv is not None:
            raise BadInput(f"{path}: a .tflite of Octavo's has no KV cache.", "Leave --kv out.")
        from octavo.runtimes.tflite.session import TfliteSession

        return TfliteSession(path, threads=threads, units=units)

    def files(self, path: Path) -> list[Path]:
        """The file; it is one."""
        return [path]

    def run_line(self, path: Path) -> str:
        """The command that runs the file."""
        return f"octavo run {shlex.quote(str(path))} --input X.npz"

    def doctor(self) -> Availability:
        """Whether LiteRT opens and runs a small file of our kind, in a worker; exporting also needs litert-torch."""
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec

        from octavo.runtimes.tflite.selfcheck import check

        try:
            versions = f"ai-edge-litert {version('ai-edge-litert')}"
        except PackageNotFoundError as error:
            return Availability(False, reason=f"{error.name} is not installed.", remedy="pip install 'octavo[litert]'")
        wrong = check()
        if wrong:
            return Availability(False, versions, (), wrong, "pip install --force-reinstall ai-edge-litert")
        lacking = [name for name in ("torch", "litert_torch") if find_spec(name) is None]
        if lacking:
            reason = f"runs and verifies; to export, {' and '.join(lacking)} are missing"
            return Availability(True, versions, ("cpu",), reason, "pip install 'octavo[compress,litert]'")
        return Availability(True, f"{versions}, litert-torch {version('litert-torch')}", ("cpu",))

    def _carried(self, record: TensorRecord) -> Carried:
        cell = carriage(self.name, record)
        widened = () if cell.how == "exact" or record.scheme in FLOATS else (f"widened to {int(cell.bits or 8)} bits",)
        return Carried(
            name=record.name,
            shape=record.shape,
            role=record.role,
            scheme=record.scheme,
            digest=record.digest,
            stored_as=cell.stored_as,
            at=(record.name,),
            moves=widened,
            why=cell.why,
        )


def _notes(carried: tuple[Carried, ...]) -> Iterator[str]:
    """Where the arithmetic is not what the scheme's name says."""
    quantised = {item.role for item in carried if item.scheme not in FLOATS and not SCHEMES[item.scheme].activation}
    if quantised & {"matmul", "head", "conv"}:
        yield "Matrix products and convolutions quantise activations to int8 as they come (LiteRT's hybrid kernels)."
    if "conv" in quantised:
        yield "Depthwise and transposed convolutions unpack their weights once, at load, and compute in float32."


def _graph_of(model: CompressedModel) -> dict[str, Any]:
    module: dict[str, Any] = model.program.body["exported"]["graph_module"]
    return module


def _inputs(model: CompressedModel) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors that the program takes, in order; −1 where a size is free."""
    module = _graph_of(model)
    given = [spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec]
    names = [argument["as_tensor"]["name"] for argument in given if "as_tensor" in argument]
    return {name: _shape(module["graph"]["tensor_values"][name]) for name in names}


def _sizes(model: CompressedModel) -> dict[str, int]:
    """{value: how many elements it has} of the program's values."""
    return {name: prod(_shape(value)) for name, value in _graph_of(model)["graph"]["tensor_values"].items()}


def _shape(meta: dict[str, Any]) -> tuple[int, ...]:
    return tuple(size.get("as_int", -1) for size in meta["sizes"])


def _named(outputs: list[str], model: CompressedModel) -> list[str]:
    """The outputs' names; the last ones are the state that comes back."""
    plain = len(outputs) - len(model.state)
    first = ["output"] if plain == 1 and model.state else outputs[:plain]
    return [*first, *(f"present.{state.name}" for state in model.state)]


def _ends_are(graph: Any, io: str) -> None:
    """Raise Refused when integers are asked for at the ends, and one of them is float."""
    floats = [graph.shape(index) for index in (*graph.inputs, *graph.outputs) if graph.type(index) == "FLOAT32"]
    if io == "int8" and floats:
        raise Refused(
            f"--io int8: {len(floats)} of the inputs and outputs have no scale of their own ({floats[0]}).",
            "Compress with a static scheme (w8a8) that quantises the ends, or leave --io at float.",
        )
