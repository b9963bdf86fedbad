"""A compressed model on disk: `octavo.json`, `tensors.safetensors` (codes packed), `assets/`. Atomic, no pickle."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import packed_row_bytes, unpack
from octavo.core.model import CompressedModel, Edge, Program, Skipped, State, TensorRecord, TensorValue
from octavo.core.safetensors import SafetensorsFile, SafetensorsWriter
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput, OctavoError

FORMAT = "octavo.compressed/1"
INDEX, TENSORS, ASSETS = "octavo.json", "tensors.safetensors", "assets"
FLOAT_DTYPE = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def layout(name: str, shape: tuple[int, ...], scheme: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The safetensors entries of one tensor: {entry name: (dtype, shape)}."""
    if scheme in FLOAT_DTYPE:
        return {name: (FLOAT_DTYPE[scheme], shape)}
    grid = SCHEMES[scheme]
    assert grid.range is not None
    columns = int(np.prod(shape[1:], dtype=np.int64))
    groups = tuple(s // b for s, b in zip(shape, grid.block(shape), strict=True))
    return {
        f"{name}.codes": ("U8", (shape[0], packed_row_bytes(columns, grid.range.bits))),
        f"{name}.scale": ("F16", groups),
    }


class Store:
    """Reads a compressed model's tensors from its directory, in rows."""

    def __init__(self, directory: Path) -> None:
        self._file = SafetensorsFile(directory / TENSORS)

    def tensor(self, record: TensorRecord, start: int = 0, stop: int | None = None) -> TensorValue:
        """Rows [start, stop) as QuantizedTensor, or float32 values."""
        if not record.quantized:
            return self._file.floats(record.name, start, stop)
        grid = SCHEMES[record.scheme]
        assert grid.range is not None
        stop = record.shape[0] if stop is None else min(stop, record.shape[0])
        shape = (stop - start, *record.shape[1:])
        packed = self._file.rows(f"{record.name}.codes", start, stop)
        codes = unpack(packed, grid.range.bits, int(np.prod(record.shape[1:], dtype=np.int64))).reshape(shape)
        per_tensor = grid.granularity == "tensor"
        scale = self._file.floats(f"{record.name}.scale", *((0, 1) if per_tensor else (start, stop)))
        return QuantizedTensor(codes, scale, grid.block(shape), grid.range)


def load(directory: Path) -> CompressedModel:
    """Open a compressed model. Raises BadInput when the directory is not one, or is damaged."""
    index = directory / INDEX
    if not index.is_file():
        raise BadInput(f"{directory}: no {INDEX}: not a compressed model.", "Make one with `octavo compress MODEL`.")
    try:
        data = json.loads(index.read_text("utf-8"))
        if data["format"] != FORMAT:
            raise BadInput(f"{index}: format {data['format']!r}; this Octavo reads {FORMAT!r}.")
        model = CompressedModel(
            program=Program(data["program"]["kind"], data["program"]["body"]),
            tensors=tuple(TensorRecord(**item | {"shape": tuple(item["shape"])}) for item in data["tensors"]),
            reader=Store(directory),
            edges=tuple(Edge(**item) for item in data["edges"]),
            state=tuple(State(**item | {"shape": tuple(item["shape"])}) for item in data["state"]),
            assets={name: (directory / ASSETS / name).read_bytes() for name in data["assets"]},
            skipped=tuple(Skipped(**item) for item in data["skipped"]),
            lineage=tuple(data["lineage"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{index}: damaged ({type(error).__name__}: {error}).", "Compress the model again.") from error
    except OSError as error:
        raise BadInput(f"{directory}: {error.strerror}: {error.filename}.", "Compress the model again.") from error
    if model.digest != data["digest"]:
        raise BadInput(f"{index}: its digest does not match its content.", "Compress the model again.")
    return model


class StoreWriter:
    """Fills a directory that is not in place yet: rows of tensors in any order, then `finish`."""

    def __init__(self, directory: Path, tensors: dict[str, tuple[tuple[int, ...], str]]) -> None:
        """`tensors`: {name: (shape, scheme or float type)}."""
        self.directory = directory
        declared: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, (shape, scheme) in tensors.items():
            declared |= layout(name, shape, scheme)
        self._writer = SafetensorsWriter(directory / TENSORS, declared)

    def codes(self, name: str, start: int, packed: NDArray[np.uint8]) -> None:
        """Write packed code rows from row `start` on."""
        self._writer.write_rows(f"{name}.codes", start, packed)

    def scales(self, name: str, start: int, scale: NDArray[np.float32]) -> None:
        """Write scales (exact in fp16) from row `start` on."""
        self._writer.write_rows(f"{name}.scale", start, scale.astype("<f2"))

    def floats(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write float rows as they are (bf16 as its bits)."""
        self._writer.write_rows(name, start, rows)

    def finish(self, model: CompressedModel) -> None:
        """Write the index and the assets, and sync everything."""
        self._writer.close()
        assets = self.directory / ASSETS
        assets.mkdir()
        for name, data in model.assets.items():
            _write_synced(assets / name, data)
        index = {
            "format": FORMAT,
            "digest": model.digest,
            "program": {"kind": model.program.kind, "body": model.program.body},
            "tensors": [asdict(record) for record in model.tensors],
            "edges": [asdict(edge) for edge in model.edges],
            "state": [asdict(state) for state in model.state],
            "assets": sorted(model.assets),
            "skipped": [asdict(item) for item in model.skipped],
            "lineage": list(model.lineage),
        }
        _write_synced(self.directory / INDEX, json.dumps(index, indent=1, sort_keys=True).encode())


@contextmanager
def new_path(target: Path, *, force: bool = False, directory: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target` that takes its place only when the block ends without an error.

    Raises BadInput when `target` exists and `force` is off, OctavoError when the disk is full; the old one stays.
    """
    if target.exists() and not force:
        raise BadInput(f"{target} exists already.", "Choose another -o, or replace it with --force.")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if directory:
            temporary.mkdir()
        yield temporary
        _replace(temporary, target)
    except OSError as error:
        raise OctavoError(f"Writing {target} failed: {error.strerror or error}.", "Nothing was replaced.") from error
    finally:
        _remove(temporary)


def _replace(temporary: Path, target: Path) -> None:
    """Move `temporary` to `target`; a directory that is there is set aside first and deleted after."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    if target.is_dir():
        target.rename(aside)
    try:
        os.replace(temporary, target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    _remove(aside)
    if hasattr(os, "O_DIRECTORY"):
        parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(parent)
        os.close(parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
