"""Writing an .onnx file with its weights streamed: no more than a block of rows is in memory at a time.

An ONNX file is one protobuf message; the initializers are a repeated field of the graph inside it. So the graph is
written without them, and each initializer is then appended to the graph's bytes, whose length is known beforehand.
Beyond EXTERNAL_BYTES the weights go to a data file beside it (protobuf ends at 2 GiB), named after the model's digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY
from octavo.runtimes.base import Progress

EXTERNAL_BYTES = 1_500_000_000
ALIGN = 4096  # ONNX Runtime maps external data by pages
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers in onnx.proto: ModelProto.graph, GraphProto, TensorProto
BITS = {"FLOAT": 32, "FLOAT16": 16, "BFLOAT16": 16, "INT8": 8, "UINT8": 8, "INT4": 4}


@dataclass(frozen=True)
class Stored:
    """An initializer to write: name, ONNX type, shape, and its bytes in pieces (each array as it lies in memory)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        return (prod(self.shape) * BITS[self.dtype] + 7) // 8

    def header(self) -> Any:
        """Its TensorProto without the data."""
        import onnx

        return onnx.TensorProto(name=self.name, data_type=onnx.TensorProto.DataType.Value(self.dtype), dims=self.shape)


def write_model(path: Path, model: Any, stored: list[Stored], data_name: str, progress: Progress) -> None:
    """Write `model` (a ModelProto without these initializers) and their data to `path`, and sync.

    `data_name`: the file beside it that takes the data when there is too much for one file.
    """
    external = too_much(stored)
    headers = [item.header() for item in stored]
    if external:
        _write_data(path.with_name(data_name), stored, headers, progress)
    with open(path, "wb") as file:
        _write_message(file, model, stored, headers, external, progress)
        file.flush()
        os.fsync(file.fileno())


def too_much(stored: Iterable[Stored]) -> bool:
    """Whether these go to a data file beside the .onnx."""
    return sum(item.nbytes for item in stored) > EXTERNAL_BYTES


def graph_digest(model: Any, weights: Iterable[str]) -> str:
    """SHA-256 of everything in the file but the data of `weights` and the manifest: the program that will be run."""
    import onnx

    bare, held = onnx.ModelProto(), set(weights)
    bare.CopyFrom(_without_data(model, held))
    kept = [(item.key, item.value) for item in model.metadata_props if item.key != KEY]
    del bare.metadata_props[:]
    for key, value in kept:
        bare.metadata_props.add(key=key, value=value)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _without_data(model: Any, weights: set[str]) -> Any:
    """A copy of `model` whose weights are headers alone; the data is never copied."""
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            graph.initializer.append(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        else:
            graph.initializer.append(tensor)
    return bare


def _write_message(
    file: BinaryIO, model: Any, stored: list[Stored], headers: list[Any], external: bool, progress: Progress
) -> None:
    import onnx

    shell = onnx.ModelProto()
    shell.CopyFrom(model)
    shell.ClearField("graph")
    graph = model.graph.SerializeToString(deterministic=True)
    parts = [_initializer_start(item, header, external) for item, header in zip(stored, headers, strict=True)]
    size = len(graph) + sum(map(len, parts)) + (0 if external else sum(item.nbytes for item in stored))
    file.write(shell.SerializeToString(deterministic=True))
    file.write(tag(GRAPH) + varint(size))
    file.write(graph)
    for done, (item, start) in enumerate(zip(stored, parts, strict=True)):
        file.write(start)
        if not external:
            progress(item.name, done, len(stored))
            _write_pieces(file, item)


def _initializer_start(item: Stored, header: Any, external: bool) -> bytes:
    """The bytes of one initializer up to where its data begins."""
    body: bytes = header.SerializeToString(deterministic=True)
    if external:
        return tag(INITIALIZER) + varint(len(body)) + body
    body += tag(RAW_DATA) + varint(item.nbytes)
    return tag(INITIALIZER) + varint(len(body) + item.nbytes) + body


def _write_pieces(file: BinaryIO, item: Stored) -> None:
    written = 0
    for piece in item.pieces():
        written += file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    assert written == item.nbytes, f"{item.name}: wrote {written} of {item.nbytes} bytes"


def _write_data(path: Path, stored: list[Stored], headers: list[Any], progress: Progress) -> None:
    """Write the data file, in place only when complete, and say in the headers where each tensor lies."""
    import onnx

    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            for done, (item, header) in enumerate(zip(stored, headers, strict=True)):
                progress(item.name, done, len(stored))
                file.seek(-(-file.tell() // ALIGN) * ALIGN)
                header.data_location = onnx.TensorProto.EXTERNAL
                for key, value in {"location": path.name, "offset": file.tell(), "length": item.nbytes}.items():
                    header.external_data.add(key=key, value=str(value))
                _write_pieces(file, item)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def tag(field: int) -> bytes:
    """The key of a field that is nested or bytes."""
    return varint(field << 3 | 2)  # wire type 2: a length and that many bytes


def varint(value: int) -> bytes:
    """Seven bits a byte, low ones first (protobuf encoding)."""

    def groups(rest: int) -> Iterator[int]:
        while rest > 127:
            yield rest & 127 | 128
            rest >>= 7
        yield rest

    return bytes(groups(value))
