"""Reading and writing safetensors in row blocks, by position: nothing is mapped, peak memory is what is asked for.

Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, then the data
(https://github.com/huggingface/safetensors#format). bfloat16 arrives as its bits in uint16: numpy has no such type.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER_BYTES = 100 << 20  # the reference implementation's own limit


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype name, shape, and where its bytes lie from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.shape[0] if self.shape and self.shape[0] else self.nbytes


class SafetensorsFile:
    """An open file; `entries` by name. Raises BadInput when the header is cut short, oversized or inconsistent."""

    _fd = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}.") from error
        try:
            self.metadata, self.entries = self._header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows [start, stop) along axis 0 as an array of their own (a scalar counts as one row)."""
        entry = self.entries[name]
        count = entry.shape[0] if entry.shape else 1
        stop = count if stop is None else min(stop, count)
        flat = np.empty(max(stop - start, 0) * entry.row_bytes, np.uint8)
        self._read_into(flat, entry.offset + start * entry.row_bytes)
        return flat.view(DTYPES[entry.dtype]).reshape(entry.shape and (max(stop - start, 0), *entry.shape[1:]))

    def floats(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Read rows as float32 (exact for F32, F16 and BF16)."""
        return widen(self.rows(name, start, stop), self.entries[name].dtype)

    def _read_into(self, flat: NDArray[np.uint8], offset: int) -> None:
        view, done = flat.data, 0
        while done < flat.nbytes:
            got = os.preadv(self._fd, [view[done : done + (1 << 30)]], offset + done)
            if got <= 0:
                raise BadInput(f"{self.path}: ends at byte {offset + done}, {flat.nbytes - done} bytes too soon.")
            done += got

    def _header(self) -> tuple[dict[str, str], dict[str, Entry]]:
        size = os.fstat(self._fd).st_size
        if size < 8:
            raise BadInput(f"{self.path}: {size} bytes is no safetensors file.", "Download it again.")
        length = int.from_bytes(self._start(8, 0), "little")
        if length > MAX_HEADER_BYTES or 8 + length > size:
            raise BadInput(
                f"{self.path}: its header claims {length} bytes in a file of {size}.",
                "The file is cut short or is not safetensors; download it again.",
            )
        try:
            header = json.loads(self._start(length, 8))
            metadata = dict(header.pop("__metadata__", {}))
            entries = {name: self._entry(name, item, 8 + length, size) for name, item in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"{self.path}: its header is damaged ({error}).", "Download it again.") from error
        self._check_covered(entries, 8 + length, size)
        return metadata, entries

    def _start(self, count: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise BadInput(f"{self.path}: {error.strerror}.") from error

    def _check_covered(self, entries: dict[str, Entry], base: int, size: int) -> None:
        """The format has no holes and no two tensors share bytes: either means that the file is not what it says."""
        end = base
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if entry.offset != end:
                what = "overlaps the tensor before it" if entry.offset < end else "leaves a hole before it"
                raise BadInput(
                    f"{self.path}: {name} begins at byte {entry.offset - base}, which {what} (ends at {end - base}).",
                    "The file is damaged; download it again.",
                )
            end += entry.nbytes
        if end != size:
            raise BadInput(f"{self.path}: {size - end} bytes belong to no tensor.", "Download it again.")

    def _entry(self, name: str, item: dict[str, Any], base: int, size: int) -> Entry:
        dtype, shape = item["dtype"], tuple(item["shape"])
        begin, end = item["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
            raise ValueError(f"{name}: shape {list(shape)}, offsets {[begin, end]}")
        if dtype not in DTYPES:
            raise BadInput(f"{self.path}: {name} has dtype {dtype}.", f"Octavo reads {', '.join(DTYPES)}.")
        expected = prod(shape) * DTYPES[dtype].itemsize
        if end - begin != expected or base + end > size:
            raise BadInput(
                f"{self.path}: {name} {list(shape)} {dtype} needs {expected} bytes, has [{begin}, {end}) "
                f"of {size - base} in the file.",
                "The file is cut short or damaged; download it again.",
            )
        return Entry(dtype, shape, base + begin, end - begin)


def widen(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Raw values of a safetensors dtype as float32."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32, copy=False)


class SafetensorsWriter:
    """Writes a file whose tensors are all declared first; rows may then come in any order, by position.

    The caller opens it on a temporary path: it does not rename. `close` syncs.
    """

    _fd = -1

    def __init__(self, path: Path, declared: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        offset = 0
        for name, (dtype, shape) in _aligned_order(declared):
            nbytes = prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
            self.entries[name] = Entry(dtype, shape, offset, nbytes)
            offset += nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._base = 8 + len(text)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write(memoryview(len(text).to_bytes(8, "little") + text), 0)
        os.ftruncate(self._fd, self._base + offset)

    def write_rows(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write rows from row `start` of `name` on; thread-safe, since every write names its position.

        Raises ValueError for rows of another dtype than was declared, or that reach beyond the tensor.
        """
        entry = self.entries[name]
        begin = start * entry.row_bytes
        if rows.dtype != DTYPES[entry.dtype] or begin < 0 or begin + rows.nbytes > entry.nbytes:
            raise ValueError(f"{name}: {rows.dtype} {rows.shape} at row {start} of {entry.dtype} {entry.shape}")
        if rows.size:
            self._write(np.ascontiguousarray(rows).data.cast("B"), self._base + entry.offset + begin)

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._fd < 0:
            return
        try:
            os.fsync(self._fd)
        finally:
            self._release()

    def __del__(self) -> None:
        # After a failure nobody calls close; an open descriptor would keep the deleted file's space on the disk.
        self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done : done + (1 << 30)], offset + done)


def _aligned_order(
    declared: dict[str, tuple[str, tuple[int, ...]]],
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Widest types first, so that every tensor starts at a multiple of its item size; the format asks for it."""
    return iter(sorted(declared.items(), key=lambda item: -DTYPES[item[1][0]].itemsize))
