"""Reading an .onnx file back with the onnx package: initializers into codes, scales and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, Carried, EditedManifest, Manifest
from octavo.core.model import Edge, TensorValue
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import BadInput, Refused
from octavo.runtimes.onnx.integers import UNSIGNED
from octavo.runtimes.onnx.layout import EDGE_CODES, FLOATS, decode, layout_of, stored_shapes
from octavo.runtimes.onnx.write import graph_digest

SIGNED = {unsigned: (signed, offset) for signed, (unsigned, offset) in UNSIGNED.items()}
AGAIN = "The file is cut short, damaged or no ONNX; export it again."


class OnnxReadBack:
    """A file opened with the onnx package; weights in a data file beside it are read when asked for.

    Raises BadInput when it is damaged or no ONNX file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = parse(path)
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self.metadata = {item.key: item.value for item in self._model.metadata_props}

    @property
    def manifest(self) -> Manifest | None:
        """The manifest in the file, None without one.

        Raises EditedManifest when it contradicts itself, or when the graph is not the one that was written: with the
        names of the tensors and edges that are other than recorded, where it is those.
        """
        try:
            return checked_manifest(self._model)
        except EditedManifest as error:
            raise EditedManifest(error.message, error.remedy, error.names or self._changed()) from error

    def tensor(self, carried: Carried) -> TensorValue:
        """Codes and scales, or float32 values. Raises Refused when what lies there cannot be the tensor described."""
        layout = layout_of(carried.scheme, carried.shape, carried.role)
        shapes = stored_shapes(carried.scheme, carried.shape, layout)
        if layout.kind == "float":
            return self._array(carried.name, carried.at[0], FLOATS[carried.scheme], shapes[0]).astype(np.float32)
        integer = "UINT8" if layout.kind == "blocks" else f"INT{layout.bits}"
        codes = self._array(carried.name, carried.at[0], integer, shapes[0])
        scale = self._array(carried.name, carried.at[1], layout.scale, shapes[1])
        return decode(carried.name, carried.scheme, carried.shape, layout, codes, scale)

    def digest(self, carried: Carried) -> str:
        """The digest of `tensor(carried)`. Raises Refused likewise."""
        value = self.tensor(carried)
        return value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)

    def edges(self) -> dict[str, Edge]:
        """{edge: how the file quantises that value}. Raises Refused for a damaged one."""
        found = {}
        for node in self._model.graph.node:
            name = node.output[0].removesuffix(EDGE_CODES) if node.op_type == "QuantizeLinear" else ""
            if name and name != node.output[0]:
                scale, zero = (self._parameter(name, at) for at in node.input[1:3])
                signed, offset = SIGNED.get(str(zero.dtype), (str(zero.dtype), 0))
                found[name] = Edge(name, float(scale), int(zero) - offset, signed)
        return found

    def _changed(self) -> tuple[str, ...]:
        """Tensors and edges that are not what the manifest records, of a manifest that can be read."""
        try:
            manifest = Manifest.from_json(self.metadata[KEY])
            found = self.edges()
        except (EditedManifest, Refused, KeyError):
            return ()
        wanted = {item["name"]: Edge(**item) for item in manifest.parts["edges"]}
        tensors = [item.name for item in manifest.tensors if self._digest_or_none(item) != item.digest]
        return (*tensors, *(name for name, edge in wanted.items() if found.get(name) != edge))

    def _digest_or_none(self, carried: Carried) -> str | None:
        try:
            return self.digest(carried)
        except Refused:
            return None

    def _parameter(self, edge: str, at: str) -> Any:
        """The one number in an initializer."""
        from onnx import numpy_helper

        if at not in self._tensors:
            raise Refused(f"The edge '{edge}': the file has no initializer {at}.", AGAIN)
        value = numpy_helper.to_array(self._tensors[at])
        if value.size != 1:
            raise Refused(f"The edge '{edge}': {at} holds {value.size} numbers, not one.", AGAIN)
        return value.reshape(-1)[0]

    def listing(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Every initializer of the file: (name, shape, type)."""
        import onnx

        kinds = onnx.TensorProto.DataType
        return [(name, tuple(item.dims), kinds.Name(item.data_type)) for name, item in self._tensors.items()]

    def stored(self, carried: Carried) -> NDArray[np.float32]:
        """A float tensor as it lies in the file; here nothing rewrites one. Raises Refused like `tensor`."""
        return np.asarray(self.tensor(carried), np.float32)

    def close(self) -> None:
        """Let go of what was read."""
        self._tensors = {}
        self._model = None

    def _array(self, name: str, at: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """One initializer. Raises Refused when it is missing or of another type, shape or length."""
        import onnx
        from onnx import numpy_helper

        tensor = self._tensors.get(at)
        if tensor is None:
            raise Refused(f"{name}: the file has no initializer {at}.", "Export the model again.")
        found = onnx.TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims)
        if found != (dtype, shape):
            raise Refused(f"{name} (as {at}): the file has {found[0]} {list(found[1])}, not {dtype} {list(shape)}.")
        try:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                header, tensor = tensor, onnx.TensorProto()  # a copy: the data is loaded into it
                tensor.CopyFrom(header)
            array: NDArray[Any] = numpy_helper.to_array(tensor, base_dir=str(self.path.parent))
        except (ValueError, OSError, TypeError, OverflowError, onnx.checker.ValidationError) as error:
            raise Refused(f"{name} (as {at}): onnx cannot read it ({error}).", AGAIN) from error
        return array


def parse(path: Path, *, headers: bool = False) -> Any:
    """The ModelProto of a file; with `headers` large initializers come without their data.

    Raises BadInput when it is damaged or no ONNX file, or lacks a data file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from octavo.runtimes.onnx.outline import outline

    try:
        if headers:
            model = onnx.ModelProto.FromString(outline(path))
        else:
            model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError, RuntimeError) as error:
        raise BadInput(f"{path}: onnx cannot read it ({type(error).__name__}: {error}).", AGAIN) from error
    if not model.graph.node or not model.opset_import:
        raise BadInput(f"{path}: onnx finds no graph in it.", AGAIN)
    data_files(path, model)
    return model


def data_files(path: Path, model: Any) -> list[Path]:
    """The files that hold weights of `model`, which was read from `path`. Raises BadInput naming the missing ones."""
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    files = [path.parent / place for place in sorted(places)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise BadInput(
            f"{path}: its weights lie in {', '.join(missing)}, and no such file is there.",
            "Put it where the export left it, or export again.",
        )
    return files


def checked_manifest(model: Any) -> Manifest | None:
    """The manifest in a ModelProto; raises EditedManifest like `OnnxReadBack.manifest`."""
    found = [item.value for item in model.metadata_props if item.key == KEY]
    if not found:
        return None
    manifest = Manifest.from_json(found[0])
    names = [at for item in manifest.tensors for at in item.at]
    if manifest.extra.get("graph") != graph_digest(model, names):
        raise EditedManifest(
            "The graph was changed after Octavo wrote the file: it may compute something else with the same weights.",
            "Export the model again.",
        )
    return manifest
