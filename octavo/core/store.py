"""A compressed model on disk: `octavo.json`, `tensors.safetensors` (codes packed), `assets/`. Atomic, no pickle."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
MADE_BY_OCTAVO = (INDEX, "report.json")  # a directory that holds one of these may be replaced with --force
PACKAGES = {".mlpackage": "Manifest.json"}  # and a directory that is one file to its user, known by what it must hold
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

    def check(self, record: TensorRecord) -> None:
        """Raise BadInput when the file does not hold this tensor in the layout of its scheme."""
        for name, (dtype, shape) in layout(record.name, record.shape, record.scheme).items():
            entry = self._file.entries.get(name)
            if entry is None or (entry.dtype, entry.shape) != (dtype, shape):
                found = f"{entry.dtype} {list(entry.shape)}" if entry else "nothing"
                raise BadInput(
                    f"{self._file.path}: {name}: expected {dtype} {list(shape)}, found {found}.",
                    "Compress the model again.",
                )

    def tensor(self, record: TensorRecord, start: int = 0, stop: int | None = None) -> TensorValue:
        """Rows [start, stop) as QuantizedTensor, or float32 values. Raises BadInput for codes outside the range."""
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
        if not grid.range.holds(codes):
            raise BadInput(
                f"{self._file.path}: {record.name}: codes in [{codes.min()}, {codes.max()}], {record.scheme} has "
                f"[{grid.range.low}, {grid.range.high}].",
                "The file is damaged; compress the model again.",
            )
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
        store = Store(directory)
        model = CompressedModel(
            program=Program(data["program"]["kind"], data["program"]["body"]),
            tensors=tuple(TensorRecord(**item | {"shape": tuple(item["shape"])}) for item in data["tensors"]),
            reader=store,
            edges=tuple(Edge(**item) for item in data["edges"]),
            state=tuple(State(**item | {"shape": tuple(item["shape"])}) for item in data["state"]),
            assets={name: _asset(directory, name).read_bytes() for name in data["assets"]},
            skipped=tuple(Skipped(**item) for item in data["skipped"]),
            lineage=tuple(data["lineage"]),
        )
        for record in model.tensors:
            store.check(record)
        digest = data["digest"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{index}: damaged ({type(error).__name__}: {error}).", "Compress the model again.") from error
    except OSError as error:
        raise BadInput(f"{directory}: {error.strerror}: {error.filename}.", "Compress the model again.") from error
    if model.digest != digest:
        raise BadInput(f"{index}: its digest does not match its content.", "Compress the model again.")
    return model


def _asset(directory: Path, name: str) -> Path:
    """Where an asset lies. Raises ValueError for a name that would lead out of the directory."""
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"asset name {name!r}")
    return directory / ASSETS / name


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
        """Write scales from row `start` on. Raises ValueError for scales that fp16 does not hold exactly."""
        with np.errstate(over="ignore"):
            half = scale.astype("<f2")
        if not np.array_equal(half.astype(np.float32), scale):
            raise ValueError(f"{name}: scales at row {start} are not exact in fp16")
        self._writer.write_rows(f"{name}.scale", start, half)

    def floats(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write float rows as they are (bf16 as its bits)."""
        self._writer.write_rows(name, start, rows)

    def finish(self, model: CompressedModel) -> None:
        """Write the index and the assets, and sync everything."""
        self._writer.close()
        assets = self.directory / ASSETS
        assets.mkdir()
        for name, data in model.assets.items():
            _write_synced(_asset(self.directory, name), data)
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
        _sync_directory(assets)
        _sync_directory(self.directory)


@contextmanager
def new_path(target: Path, *, force: bool = False, directory: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target` that takes its place only when the block ends without an error.

    Raises BadInput when `target` exists and `force` is off, or is a directory that Octavo did not make; OctavoError
    when the disk is full. The old one stays.
    """
    target = Path(os.path.abspath(target))  # "." and "dir/.." have no name of their own
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        _may_write(target, force, directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        if directory:
            temporary.mkdir()
        yield temporary
        _replace(temporary, target)
    except OSError as error:
        raise OctavoError(f"Writing {target} failed: {error.strerror or error}.", "Nothing was replaced.") from error
    finally:
        _remove(temporary)


def _may_write(target: Path, force: bool, directory: bool) -> None:
    """Raise BadInput unless `target` is free or may be replaced: --force must not cost anyone a folder of their own."""
    if not target.exists():
        return
    if not force:
        raise BadInput(f"{target} exists already.", "Choose another -o, or replace it with --force.")
    if target.is_dir() and not directory:
        raise BadInput(f"{target} is a directory, and a file is to be written.", "Name the file with -o.")
    if directory and not target.is_dir():
        raise BadInput(f"{target} is a file, and a directory is to be written.", "Choose another -o.")
    marks = (PACKAGES[target.suffix],) if target.suffix in PACKAGES else MADE_BY_OCTAVO
    if directory and any(target.iterdir()) and not any((target / mark).is_file() for mark in marks):
        raise BadInput(f"{target} holds files that Octavo did not make; it is not replaced.", "Choose another -o.")


def _replace(temporary: Path, target: Path) -> None:
    """Move `temporary` to `target`; a directory that is there is set aside first and deleted after."""
    if temporary.is_file():
        _sync(temporary)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        if target.is_dir():
            target.rename(aside)
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C between the two renames as well
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    _remove(aside)
    _sync_directory(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # the error that led here is the one to tell
            path.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    """Make names last through a power cut, where the file system can."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):
            _sync(path, os.O_DIRECTORY)
