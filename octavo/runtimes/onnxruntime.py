"""ONNX Runtime: one .onnx file with program, codes, scales, tokenizer files and Octavo's manifest.

`onnx/` holds the pieces: layout (how a tensor lies), graph (the float program), bind (codes in place of weights),
write, read, session. Language models take ids and a KV cache and return logits and the cache.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
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
from octavo.runtimes.base import Availability, Programs, Progress, ReadBack, Session
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

    def __init__(self) -> None:
        self._made: dict[Path, Path] = {}  # data files by the file that `lower` wrote them for

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
        carried = tuple(self._carried(record) for record in model.tensors)
        return manifest_for(model, self.name, carried, extra=extra, notes=tuple(_notes(model, carried)))

    def lower(
        self, model: CompressedModel, manifest: Manifest, path: Path, programs: Programs, progress: Progress
    ) -> None:
        """Write the file to `path`; weights beyond 1.5 GB go to a data file beside it, named after the digest.

        Raises Missing without torch's exporter, OctavoError when it cannot export the program; then no data file is
        left that was not there before (`discard` does the same for what fails later).
        """
        proto = self._bound_graph(model, manifest, programs)
        from octavo.runtimes.onnx.session import asset_entries
        from octavo.runtimes.onnx.write import graph_digest, too_much, write_model

        stored = [item for carried in manifest.tensors for item in _stored(model, carried)]
        for key, value in asset_entries(model.assets).items():
            proto.metadata_props.add(key=key, value=value)
        whole = type(proto)()
        whole.CopyFrom(proto)
        whole.graph.initializer.extend(item.header() for item in stored)
        digest = graph_digest(whole, [item.name for item in stored])
        text = replace(manifest, extra=manifest.extra | {"graph": digest}).to_json()
        proto.metadata_props.add(key=KEY, value=text)
        data = path.with_name(_data_name(model))
        if too_much(stored) and not data.exists():
            self._made[path] = data
        try:
            write_model(path, proto, stored, data.name, progress)
        except BaseException:  # Ctrl-C as well: nobody else knows of these gigabytes
            self.discard(path)
            raise

    def discard(self, path: Path) -> None:
        """Delete the data file that `lower` made beside `path`, unless it was there before: nothing points to it."""
        data = self._made.pop(path, None)
        if data is not None:
            data.unlink(missing_ok=True)

    def read_back(self, path: Path) -> ReadBack:
        """Open the file with the onnx package. Raises BadInput when it is damaged."""
        from octavo.runtimes.onnx.read import OnnxReadBack

        return OnnxReadBack(path)

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        units: tuple[str, ...] = ("cpu",),
        context: int | None = None,
        kv: str | None = None,
    ) -> Session:
        """Load the file in ONNX Runtime; see OnnxSession. Its cache grows as it is fed: `context` changes nothing.

        Raises BadInput for a `kv` other than f32: the type of the cache is part of the graph.
        """
        if kv not in (None, "f32"):
            raise BadInput(f"{path}: the graph has an f32 KV cache, not {kv}.", "Leave --kv out, or use llamacpp.")
        from octavo.runtimes.onnx.session import OnnxSession

        return OnnxSession(path, threads=threads, units=units)

    def files(self, path: Path) -> list[Path]:
        """The file, and the files beside it that hold its weights if they were too much for one.

        Raises BadInput for a damaged file, or naming what is missing.
        """
        from octavo.runtimes.onnx.read import data_files, parse

        return [path, *data_files(path, parse(path, headers=True))]

    def run_line(self, path: Path) -> str:
        """The command that runs the file; only a graph's inputs are the reader's to put in. Raises BadInput."""
        from octavo.runtimes.onnx.read import parse
        from octavo.runtimes.onnx.session import assets_of

        model = parse(path, headers=True)
        given = "--input X.npz"
        if any(item.key == KEY and "eos" in Manifest.from_json(item.value).extra for item in model.metadata_props):
            given = "-p 'Once upon a time'" if "tokenizer.json" in assets_of(model) else "--ids 1,2,3"
        return f"octavo run {shlex.quote(str(path))} {given}"

    def doctor(self) -> Availability:
        """Whether ONNX Runtime opens and runs a small file of our kind, in a worker; exporting also needs torch."""
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec

        from octavo.runtimes.onnx.selfcheck import check

        try:
            versions = f"onnxruntime {version('onnxruntime')}, onnx {version('onnx')}"
        except PackageNotFoundError as error:
            return Availability(False, reason=f"{error.name} is not installed.", remedy="pip install octavo")
        wrong = check()
        if wrong:
            return Availability(False, versions, (), wrong, "pip install --force-reinstall onnxruntime")
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

    def _bound_graph(self, model: CompressedModel, manifest: Manifest, programs: Programs) -> Any:
        """The ModelProto with codes in the places of weights, and none of the initializers that hold them."""
        try:
            import onnx_ir
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise Missing(f"Exporting to ONNX needs {error.name}.", "pip install 'octavo[compress]'") from error
        from octavo.runtimes.onnx.bind import bind
        from octavo.runtimes.onnx.graph import float_graph
        from octavo.runtimes.onnx.integers import widen

        made = float_graph(model, programs.outline)
        bind(made, model, manifest.tensors)
        if model.edges:
            widen(made)
        proto = onnx_ir.to_proto(made)
        proto.ir_version, proto.producer_name, proto.producer_version = IR_VERSION, "octavo", ""
        weights = {at for carried in manifest.tensors for at in carried.at}
        kept = [item for item in proto.graph.input if item.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        del proto.graph.value_info[:]
        return proto


def _data_name(model: CompressedModel) -> str:
    return f"{model.digest[:16]}.onnx.data"


def _notes(model: CompressedModel, carried: tuple[Carried, ...]) -> Iterator[str]:
    """What else there is to know of the file: that it is two files, and where its arithmetic is not float."""
    from octavo.runtimes.onnx.bind import ACCURACY
    from octavo.runtimes.onnx.write import too_much

    if too_much([item for tensor in carried for item in _stored(model, tensor)]):
        yield f"The weights lie in {_data_name(model)} beside it: the artifact is both files."
    multiplied = {"matmul", "head"} if any(t.role == "head" for t in carried) else {"matmul", "embedding"}  # tied
    if any(t.role in multiplied and layout_of(t.scheme, t.shape, t.role).kind == "blocks" for t in carried):
        yield f"Activations are quantised to int8 inside MatMulNBits (accuracy_level={ACCURACY})."


def _stored(model: CompressedModel, carried: Carried) -> Iterator[Any]:
    """The initializers of one tensor, their data read from the compressed model as it is written."""
    from octavo.runtimes.onnx.write import Stored

    layout = layout_of(carried.scheme, carried.shape, carried.role)
    shapes = stored_shapes(carried.scheme, carried.shape, layout)
    if layout.kind == "float":
        yield Stored(carried.at[0], FLOATS[carried.scheme], shapes[0], lambda: _float_pieces(model, carried))
        return
    scales: list[NDArray[np.floating[Any]]] = []  # kept from the pass over the codes: they are read together
    integer = "UINT8" if layout.kind == "blocks" else f"INT{layout.bits}"
    yield Stored(carried.at[0], integer, shapes[0], lambda: _code_pieces(model, carried, layout, scales))
    yield Stored(carried.at[1], layout.scale, shapes[1], lambda: scales)


def _float_pieces(model: CompressedModel, carried: Carried) -> Iterator[NDArray[Any]]:
    for start, stop in _rows(carried.shape, whole=not carried.shape):
        value = model.tensor(carried.name) if start is None else model.tensor(carried.name, start, stop)
        yield encode_floats(np.asarray(value, np.float32), carried.scheme)


def _code_pieces(
    model: CompressedModel, carried: Carried, layout: Layout, scales: list[NDArray[np.floating[Any]]]
) -> Iterator[NDArray[np.uint8]]:
    per_tensor = SCHEMES[carried.scheme].granularity == "tensor"
    scales.clear()
    for start, stop in _rows(carried.shape, whole=layout.kind == "dequantize"):
        value = model.tensor(carried.name) if start is None else model.tensor(carried.name, start, stop)
        if not isinstance(value, QuantizedTensor) or value.zero_point is not None:
            raise BadInput(f"{carried.name}: not the codes of {carried.scheme} that its record promises.")
        if not (per_tensor and scales):
            scales.append(encode_scale(carried.name, value.scale, layout))
        yield encode_codes(value, layout)


def _rows(shape: tuple[int, ...], *, whole: bool) -> Iterator[tuple[int | None, int | None]]:
    """Row ranges of at most PIECE_ELEMENTS; (None, None) for the whole tensor."""
    if whole:
        yield None, None
        return
    step = max(1, PIECE_ELEMENTS // max(prod(shape[1:]), 1))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
