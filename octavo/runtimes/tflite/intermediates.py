"""Every operator's output of a .tflite file, by making it an output of a copy.

Not through the interpreter's own switch that preserves all tensors: that leaves XNNPACK out, whose kernels are the ones
that run the file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import EditedManifest
from octavo.errors import OctavoError
from octavo.runtimes.base import Arrays
from octavo.runtimes.intermediates import bound
from octavo.runtimes.tflite.file import AGAIN, TfliteFile, manifest_of
from octavo.runtimes.tflite.graph import Graph
from octavo.runtimes.tflite.session import allocated

SHOWN = ("FLOAT32", "INT8", "UINT8", "INT16")


def record(params: dict[str, Any], arrays: Arrays, emit: Any) -> tuple[dict[str, Any], Arrays]:
    """A worker's target: path, names (of the inputs, in the order of `arrays`), threads."""
    path = Path(params["path"])
    file = TfliteFile(path)
    edges, inputs = _names(file)
    graph = Graph(path.read_bytes())
    kinds = {int(index): graph.kind(operator) for operator in graph.operators for index in operator.outputs}
    named = {index: _name(graph, index) for index in (*kinds, *graph.inputs)}
    own, taken_names = graph.outputs, [*inputs[: len(graph.inputs)], *(named[i] for i in graph.inputs[len(inputs) :])]
    shown = [index for index in kinds if graph.type(index) in SHOWN and np.prod(graph.shape(index))]
    shown += [index for index in own if index not in shown]
    graph.model.signatureDefs = []
    graph.body.outputs = np.asarray(shown, np.int32)
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        copy = Path(folder) / "all.tflite"
        copy.write_bytes(graph.pack())
        found = _run(copy, taken_names, params, arrays)
    values, held = [], {}
    for place, (index, value) in enumerate(zip(shown, found, strict=True)):
        values.append([kinds.get(index, ""), edges.get(file.name(index), named.get(index, ""))])
        held[str(place)] = value
    return {"values": values, "outputs": [shown.index(index) for index in own]}, held


def _run(path: Path, names: list[str], params: dict[str, Any], arrays: Arrays) -> list[NDArray[np.float32]]:
    """All outputs in order, as floats."""
    try:
        interpreter, _ = allocated(path, params["threads"])
        details = interpreter.get_input_details()
        taken = {
            name: (tuple(int(n) for n in item["shape"]), item["dtype"])
            for name, item in zip(names, details, strict=True)
        }
        for item, value in zip(details, bound(params["names"], arrays, taken).values(), strict=True):
            interpreter.set_tensor(item["index"], _fitting(value, item))
        interpreter.invoke()
        return [_floats(interpreter.get_tensor(item["index"]), item) for item in interpreter.get_output_details()]
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise OctavoError(f"{params['path']}: LiteRT cannot run it ({said}).", AGAIN) from error


def _names(file: TfliteFile) -> tuple[dict[str, str], list[str]]:
    """({tensor: edge}, names of the inputs), as far as the manifest says."""
    try:
        manifest = manifest_of(file)
    except EditedManifest:
        manifest = None
    extra = manifest.extra if manifest is not None else {}
    return {at: edge for edge, at in extra.get("edges", {}).items()}, list(extra.get("inputs", []))


def _name(graph: Graph, index: int) -> str:
    """A tensor's name without the number that makes it unique."""
    name = graph.tensors[index].name
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
    return text.partition("#")[0]


def _fitting(value: NDArray[Any], item: dict[str, Any]) -> NDArray[Any]:
    """An input in the file's type, and channels last where it takes them so."""
    shape = tuple(int(n) for n in item["shape"])
    if value.shape != shape and value.ndim == 4 and tuple(value.shape[axis] for axis in (0, 2, 3, 1)) == shape:
        value = value.transpose(0, 2, 3, 1)
    scale, zero = item["quantization"]
    kind = np.dtype(item["dtype"])
    if value.dtype.kind == "f" and kind.kind in "iu" and scale:
        info = np.iinfo(kind)
        value = np.clip(np.rint(value / np.float32(scale)) + zero, info.min, info.max)
    return np.ascontiguousarray(value.astype(kind))


def _floats(value: NDArray[Any], item: dict[str, Any]) -> NDArray[np.float32]:
    scale, zero = item["quantization"]
    if value.dtype.kind in "iu" and scale:
        return np.asarray((value.astype(np.float32) - np.float32(zero)) * np.float32(scale), np.float32)
    return np.asarray(value, np.float32)
