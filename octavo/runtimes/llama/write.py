"""Writing a GGUF with gguf-py's own writer: all metadata first, then the tensors in row blocks.

gguf-py's `write_tensor_data` wants a tensor whole; the rows here go into its open file between its own padding, so that
peak memory is one row block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import IntegerRange
from octavo.core.manifest import KEY, Carried, Manifest
from octavo.core.model import CompressedModel, TensorRecord
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused
from octavo.runtimes.base import Progress
from octavo.runtimes.llama.blocks import BLOCKS, FLOATS, encode_floats, row_bytes
from octavo.runtimes.llama.names import heads_interleaved, interleaved_rows
from octavo.runtimes.llama.program import EXTRA, written_program

BLOCK_WEIGHTS = 4 << 20  # weights per row block: 4 MiB of codes, 16 MiB as float32


def write_gguf(
    path: Path,
    architecture: str,
    keys: dict[str, Any],
    model: CompressedModel,
    manifest: Manifest,
    extra: dict[str, NDArray[np.float32]],
    progress: Progress,
) -> None:
    """Write the file and sync it. `extra`: float tensors beside the model's own, by GGUF name (RoPE factors).

    The manifest goes in as the last key, and records all the others and `extra` (program.py).
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    tensors = manifest.tensors
    writer = GGUFWriter(path, architecture)
    try:
        for key, value in keys.items():
            _add(writer, key, value)
        program = manifest.extra | {EXTRA: written_program(writer, extra)}
        _add(writer, KEY, replace(manifest, extra=program).to_json())
        for name, values in extra.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for carried in tensors:
            kind = GGMLQuantizationType[carried.stored_as]
            nbytes = prod(carried.shape[:-1]) * row_bytes(carried.stored_as, carried.shape[-1])
            writer.add_tensor_info(carried.at[0], carried.shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        for values in extra.values():
            _padded(writer, file, iter([values]))
        for done, carried in enumerate(tensors):
            progress("export", done, len(tensors))
            _padded(writer, file, encoded_rows(model, carried))
        progress("export", len(tensors), len(tensors))
        file.flush()
        os.fsync(file.fileno())
    finally:
        writer.close()


def encoded_rows(model: CompressedModel, carried: Carried) -> Iterator[NDArray[Any]]:
    """The tensor's bytes as they lie in the file, in row blocks."""
    record = model.record(carried.name)
    heads = heads_interleaved(carried.moves)
    for start, stop in row_blocks(carried.shape, heads):
        value = model.reader.tensor(record, start, stop)
        try:
            yield _encode(value, record, carried, heads * (stop - start) // carried.shape[0])
        except Refused as error:
            raise Refused(f"{carried.name} {list(carried.shape)}: {error.message}", error.remedy) from error


def row_blocks(shape: tuple[int, ...], heads: int = 0) -> Iterator[tuple[int, int]]:
    """Row ranges of about BLOCK_WEIGHTS weights; whole heads when there are heads to interleave."""
    unit = shape[0] // heads if heads else 1
    step = max(1, BLOCK_WEIGHTS // (prod(shape[1:]) * unit)) * unit
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _encode(value: Any, record: TensorRecord, carried: Carried, heads: int) -> NDArray[Any]:
    """One row block, its moves made. `heads`: how many heads this block holds, if they are to be interleaved."""
    index = interleaved_rows(value.shape[0], heads) if heads else None
    if isinstance(value, QuantizedTensor):
        if index is not None:
            value = value.take_rows(index)
        block = BLOCKS[carried.stored_as]
        wide: IntegerRange = block.range
        return block.encode(value.refine((1, block.weights)).widen(wide))
    assert carried.stored_as in FLOATS, f"{record.name}: {record.scheme} as {carried.stored_as}"
    values = value if index is None else value[index]
    if "plus_one" in carried.moves:
        values = values + np.float32(1)
    return encode_floats(np.ascontiguousarray(values), carried.stored_as)


def _padded(writer: Any, file: Any, rows: Iterator[NDArray[Any]]) -> None:
    writer.write_padding(file, file.tell())
    for block in rows:
        file.write(np.ascontiguousarray(block).data)
    writer.write_padding(file, file.tell())


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp reads: bool, uint32, float32, string, or an array of one of them."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)
