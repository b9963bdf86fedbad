"""A .tflite file's bytes through LiteRT's own accessors, its metadata, and a digest of all in it but the weights.

Nothing is copied, nothing native runs: an offset that leads out of the file is a Python exception, and so BadInput.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, EditedManifest, Manifest
from octavo.errors import BadInput
from octavo.runtimes.tflite.graph import IDENTIFIER, NAMES, operator_name, schema

AGAIN = "The file is cut short, damaged or no .tflite; export it again."
DAMAGE = (struct.error, ValueError, IndexError, TypeError, OverflowError, AttributeError, UnicodeDecodeError, KeyError)
Span = tuple[int, int]  # bytes from … to


class TfliteFile:
    """The main subgraph of a file: tensors by index, the bytes they hold, metadata by name.

    Raises BadInput for a file that is damaged or no .tflite, Missing without LiteRT.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.schema = schema()
        try:
            self.data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}.") from error
        if self.data.size < 8 or bytes(self.data[4:8]) != IDENTIFIER:
            raise BadInput(f"{path}: not a .tflite file ({self.data.size} bytes).", AGAIN)
        try:
            self.model = self.schema.Model.GetRootAs(self.data.data, 0)
            if not self.model.SubgraphsLength():
                raise BadInput(f"{path}: there is no graph in it.", AGAIN)
            self.body = self.model.Subgraphs(0)
            self.count = self.body.TensorsLength()
            self.names = {self.name(index): index for index in reversed(range(self.count))}
            self.metadata = self._metadata()
        except DAMAGE as error:
            raise self.damaged(error) from error

    def damaged(self, error: Exception) -> BadInput:
        """The error for something that does not lie where the file says."""
        return BadInput(f"{self.path}: damaged ({type(error).__name__}: {error}).", AGAIN)

    def name(self, index: int) -> str:
        return str((self.body.Tensors(index).Name() or b"").decode("utf-8", "replace"))

    def shape(self, index: int) -> tuple[int, ...]:
        tensor = self.body.Tensors(index)
        return () if tensor.ShapeIsNone() else tuple(int(size) for size in tensor.ShapeAsNumpy())

    def type(self, index: int) -> str:
        number = self.body.Tensors(index).Type()
        return NAMES.get(number, str(number))

    def bytes_of(self, index: int) -> NDArray[np.uint8]:
        """The data of a constant tensor; empty for one that is computed."""
        return self._buffer(self.body.Tensors(index).Buffer())

    def quantization(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64], int] | None:
        """(scales, zero points, axis); None for a tensor without."""
        held = self.body.Tensors(index).Quantization()
        if held is None or held.ScaleIsNone() or not held.ScaleLength():
            return None
        scale = np.asarray(held.ScaleAsNumpy(), np.float32)
        zero = (
            np.zeros(scale.size, np.int64) if held.ZeroPointIsNone() else np.asarray(held.ZeroPointAsNumpy(), np.int64)
        )
        return scale, zero, int(held.QuantizedDimension())

    def block_scales(self, index: int) -> tuple[NDArray[np.float32], int] | None:
        """(scales per block, block) of a tensor quantised in blocks; None for another."""
        held = self.body.Tensors(index).Quantization()
        if held is None or held.DetailsType() != self.schema.QuantizationDetails.BlockwiseQuantization:
            return None
        details = self.schema.BlockwiseQuantization()
        table = held.Details()
        details.Init(table.Bytes, table.Pos)
        scales = details.Scales()
        if not 0 <= scales < self.count or self.type(scales) != "FLOAT16":
            raise ValueError(f"tensor {scales} holds no scales")
        return self.bytes_of(scales).view(np.float16).astype(np.float32), int(details.BlockSize())

    def operators(self) -> Iterator[tuple[str, list[int], list[int]]]:
        """(name, inputs, outputs) of every operator; absent inputs are −1."""
        for place in range(self.body.OperatorsLength()):
            operator = self.body.Operators(place)
            code = self.model.OperatorCodes(operator.OpcodeIndex())
            kind = operator_name(self.schema, _Code(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
            ends = (operator.InputsAsNumpy, operator.OutputsAsNumpy)
            absent = (operator.InputsIsNone(), operator.OutputsIsNone())
            yield (kind, *([] if none else [int(i) for i in end()] for end, none in zip(ends, absent, strict=True)))  # type: ignore[misc]

    def span(self, data: NDArray[np.uint8]) -> Span:
        """Where in the file bytes lie that were read from it."""
        start = int(data.__array_interface__["data"][0]) - int(self.data.__array_interface__["data"][0])
        return start, start + data.size

    def _buffer(self, index: int) -> NDArray[np.uint8]:
        buffer = self.model.Buffers(index)
        if buffer is None or buffer.DataIsNone():
            return np.zeros(0, np.uint8)
        return np.asarray(buffer.DataAsNumpy(), np.uint8)

    def _metadata(self) -> dict[str, NDArray[np.uint8]]:
        found = {}
        for place in range(self.model.MetadataLength()):
            item = self.model.Metadata(place)
            found[(item.Name() or b"").decode()] = self._buffer(item.Buffer())
        return found


class _Code:
    """An operator code as `operator_name` wants it."""

    def __init__(self, builtin: int, deprecated: int) -> None:
        self.builtinCode, self.deprecatedBuiltinCode = builtin, deprecated


def graph_digest(file: TfliteFile, weights: Iterable[str]) -> str:
    """SHA-256 of the file's bytes but those of the tensors named `weights` and of the manifest.

    So it covers whatever could lead the runtime astray: offsets, shapes, operators, scales, sizes to reshape to.
    """
    spans = [file.span(file.metadata[KEY])] if KEY in file.metadata else []
    for name in weights:
        if name not in file.names:
            raise EditedManifest(f"The file has no tensor {name}, which its manifest names.", names=(name,))
        data = file.bytes_of(file.names[name])
        spans += [file.span(data)] if data.size else []
    digest, at = hashlib.sha256(str(file.data.size).encode()), 0
    for start, stop in sorted(spans):
        if start > at:
            digest.update(file.data[at:start].data)
        at = max(at, stop)
    digest.update(file.data[at:].data)
    return digest.hexdigest()


def manifest_of(file: TfliteFile) -> Manifest | None:
    """The manifest in the file, None without one. Raises EditedManifest when it contradicts itself."""
    if KEY not in file.metadata:
        return None
    try:
        text = file.metadata[KEY].tobytes().decode()
    except UnicodeDecodeError as error:
        raise EditedManifest(f"The artifact's manifest is damaged ({error}).") from error
    return Manifest.from_json(text)


def is_intact(file: TfliteFile, manifest: Manifest) -> bool:
    """Whether all in the file but its weights is as it was written."""
    try:
        return bool(
            manifest.extra.get("graph") == graph_digest(file, [at for item in manifest.tensors for at in item.at])
        )
    except DAMAGE as error:
        raise file.damaged(error) from error
