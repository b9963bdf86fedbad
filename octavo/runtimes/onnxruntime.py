"""ONNX Runtime: one .onnx file with program, codes, scales, tokenizer files and Octavo's manifest.

`onnx/` holds the pieces: layout (how a tensor lies), graph (the float program), bind (codes in place of weights),
write, read, session. Language models take ids and a KV cache and return logits and the cache.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import decoder_spec
from octavo.core.carriage import carriage
from octavo.core.manifest import KEY, Carried, Manifest, manifest_for
from octavo.core.model import CompressedModel, TensorRecord
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput, Missing
from octavo.runtimes.base import Availability, Progress, ReadBack, Session
from octavo.runtimes.onnx.layout import (
    FLOATS,
    Layout,
    encode_codes,
    encode_floats,
    encode_scale,
    layout_of,
    stored_shapes,
)

PIECE_ELEMENTS = 8 << 20  # at most this many weights of a tensor are in memory at a time
IR_VERSION = 10  # what opset 21 belongs to


class OnnxRuntime:
    """The Runtime of ONNX Runtime, on the CPU."""

    name = "onnxruntime"
    suffix = ".onnx"

    def carry(self, model: CompressedModel) -> Manifest:
        """Decide how each tensor lies in the file. Raises Refused for a scheme that it cannot hold exactly."""
        extra: dict[str, Any] = {"state": {state.name: f"present.{state.name}" for state in model.state}}
        if model.program.kind == "huggingface":
            spec = decoder_spec(model.program.body)
            names = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]
            extra = {
                "state": {f"past_key_values.{name}": f"present.{name}" for name in names},
                "eos": list(spec.eos),
                "bos": spec.bos,
                "context": spec.context,
            }
        return manifest_for(model, self.name, tuple(self._carried(record) for record in model.tensors), extra=extra)

    def lower(
        self, model: CompressedModel, manifest: Manifest, path: Path, module: Callable[[], Any], progress: Progress
    ) -> None:
        """Write the file to `path`; weights beyond 1.5 GB go to a data file beside it, named after the digest.

        Raises Missing without torch's exporter, OctavoError when it cannot export the program.
        """
        proto = self._bound_graph(model, manifest, module)
        from octavo.runtimes.onnx.session import asset_entries
        from octavo.runtimes.onnx.write import graph_digest, write_model

        stored = [item for carried in manifest.tensors for item in _stored(model, carried)]
        for key, value in asset_entries(model.assets).items():
            proto.metadata_props.add(key=key, value=value)
        whole = type(proto)()
        whole.CopyFrom(proto)
        whole.graph.initializer.extend(item.header() for item in stored)
        digest = graph_digest(whole, [item.name for item in stored])
        text = replace(manifest, extra=manifest.extra | {"graph": digest}).to_json()
        proto.metadata_props.add(key=KEY, value=text)
        write_model(path, proto, stored, f"{model.digest[:16]}.onnx.data", progress)

    def read_back(self, path: Path) -> ReadBack:
        """Open the file with the onnx package. Raises BadInput when it is damaged."""
        from octavo.runtimes.onnx.read import OnnxReadBack

        return OnnxReadBack(path)

    def open(self, path: Path, *, threads: int | None = None, units: tuple[str, ...] = ("cpu",)) -> Session:
        """Load the file in ONNX Runtime; see OnnxSession."""
        from octavo.runtimes.onnx.session import OnnxSession

        return OnnxSession(path, threads=threads, units=units)

    def files(self, path: Path) -> list[Path]:
        """The file, and the data file beside it if the weights were too much for one."""
        from octavo.runtimes.onnx.read import parse

        found = {
            entry.value for t in parse(path).graph.initializer for entry in t.external_data if entry.key == "location"
        }
        return [path, *(path.with_name(name) for name in sorted(found))]

    def run_line(self, path: Path) -> str:
        """The command that runs the file outside Octavo."""
        code = (
            "import sys, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1]); "
            "print([(i.name, i.shape, i.type) for i in s.get_inputs()])"
        )
        return f"python -c {shlex.quote(code)} {shlex.quote(str(path))}"

    def doctor(self) -> Availability:
        """Whether onnx and onnxruntime are installed; exporting also needs torch and onnxscript."""
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec

        try:
            versions = f"onnxruntime {version('onnxruntime')}, onnx {version('onnx')}"
        except PackageNotFoundError as error:
            return Availability(False, reason=f"{error.name} is not installed.", remedy="pip install octavo")
        lacking = [name for name in ("torch", "onnxscript") if find_spec(name) is None]
        reason = f"runs and verifies; to export, {' and '.join(lacking)} are missing" if lacking else ""
        return Availability(True, versions, ("cpu",), reason, "pip install 'octavo[compress]'" if lacking else "")

    def _carried(self, record: TensorRecord) -> Carried:
        cell = carriage(self.name, record)
        layout = layout_of(record.scheme, record.shape, record.role)
        grid = SCHEMES.get(record.scheme)
        widened = grid is not None and grid.range is not None and grid.range.bits != layout.bits
        stored_as = cell.stored_as
        if layout.kind == "blocks":
            stored_as = f"{cell.stored_as} {layout.bits}-bit, block {layout.block}"
        return Carried(
            name=record.name,
            shape=record.shape,
            role=record.role,
            scheme=record.scheme,
            digest=record.digest,
            stored_as=stored_as,
            at=(record.name,) if layout.kind == "float" else (f"{record.name}.codes", f"{record.name}.scale"),
            moves=(f"widened to {layout.bits} bits",) if widened else (),
            why=cell.why,
        )

    def _bound_graph(self, model: CompressedModel, manifest: Manifest, module: Callable[[], Any]) -> Any:
        """The ModelProto with codes in the places of weights, and none of the initializers that hold them."""
        try:
            import onnx_ir
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise Missing(f"Exporting to ONNX needs {error.name}.", "pip install 'octavo[compress]'") from error
        from octavo.runtimes.onnx.bind import bind
        from octavo.runtimes.onnx.graph import float_graph

        made = float_graph(model, module)
        bind(made, model, manifest.tensors)
        proto = onnx_ir.to_proto(made)
        proto.ir_version, proto.producer_name, proto.producer_version = IR_VERSION, "octavo", ""
        weights = {at for carried in manifest.tensors for at in carried.at}
        kept = [item for item in proto.graph.input if item.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        del proto.graph.value_info[:]
        return proto


def _stored(model: CompressedModel, carried: Carried) -> Iterator[Any]:
    """The initializers of one tensor, their data read from the compressed model as it is written."""
    from octavo.runtimes.onnx.write import Stored

    layout = layout_of(carried.scheme, carried.shape, carried.role)
    shapes = stored_shapes(carried.scheme, carried.shape, layout)
    if layout.kind == "float":
        yield Stored(carried.at[0], FLOATS[carried.scheme], shapes[0], lambda: _float_pieces(model, carried))
        return
    scales: list[NDArray[np.float16]] = []  # kept from the pass over the codes: they are read together
    integer = "UINT8" if layout.kind == "blocks" else f"INT{layout.bits}"
    yield Stored(carried.at[0], integer, shapes[0], lambda: _code_pieces(model, carried, layout, scales))
    yield Stored(carried.at[1], "FLOAT16", shapes[1], lambda: scales)


def _float_pieces(model: CompressedModel, carried: Carried) -> Iterator[NDArray[Any]]:
    for start, stop in _rows(carried.shape, whole=not carried.shape):
        value = model.tensor(carried.name) if start is None else model.tensor(carried.name, start, stop)
        yield encode_floats(np.asarray(value, np.float32), carried.scheme)


def _code_pieces(
    model: CompressedModel, carried: Carried, layout: Layout, scales: list[NDArray[np.float16]]
) -> Iterator[NDArray[np.uint8]]:
    per_tensor = SCHEMES[carried.scheme].granularity == "tensor"
    scales.clear()
    for start, stop in _rows(carried.shape, whole=layout.kind == "dequantize"):
        value = model.tensor(carried.name) if start is None else model.tensor(carried.name, start, stop)
        if not isinstance(value, QuantizedTensor) or value.zero_point is not None:
            raise BadInput(f"{carried.name}: not the codes of {carried.scheme} that its record promises.")
        if not (per_tensor and scales):
            scales.append(encode_scale(carried.name, value.scale))
        yield encode_codes(value, layout)


def _rows(shape: tuple[int, ...], *, whole: bool) -> Iterator[tuple[int | None, int | None]]:
    """Row ranges of at most PIECE_ELEMENTS; (None, None) for the whole tensor."""
    if whole:
        yield None, None
        return
    step = max(1, PIECE_ELEMENTS // max(prod(shape[1:]), 1))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
