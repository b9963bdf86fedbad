"""An ONNX file without its weights' data: what can be checked of it at the cost of its headers, whatever it weighs.

Parsing a whole file takes its size twice over in memory (the bytes, and the message made of them), which would be more
than ONNX Runtime itself takes to run it. So the file is mapped, and of a large initializer all but `raw_data` is kept.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from octavo.runtimes.onnx.write import GRAPH, INITIALIZER, RAW_DATA, tag, varint

LARGE = 1 << 16  # bytes of an initializer from which on its data is left out
SIZES = {1: 8, 5: 4}  # bytes of protobuf's fixed-width wire types
Field = tuple[int, int, int, int]  # number, where it starts, where its content starts (else -1), where it ends


def outline(path: Path) -> bytes:
    """The serialized ModelProto of `path` without the `raw_data` of large initializers. Raises ValueError, OSError."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _model(data, 0, len(data))


def _model(data: mmap.mmap, start: int, end: int) -> bytes:
    return b"".join(
        _nested(GRAPH, _graph(data, content, stop)) if number == GRAPH and content >= 0 else data[first:stop]
        for number, first, content, stop in _fields(data, start, end)
    )


def _graph(data: mmap.mmap, start: int, end: int) -> bytes:
    return b"".join(
        _nested(INITIALIZER, _header(data, content, stop))
        if number == INITIALIZER and stop - content >= LARGE
        else data[first:stop]
        for number, first, content, stop in _fields(data, start, end)
    )


def _header(data: mmap.mmap, start: int, end: int) -> bytes:
    return b"".join(data[first:stop] for number, first, _, stop in _fields(data, start, end) if number != RAW_DATA)


def _nested(number: int, content: bytes) -> bytes:
    return tag(number) + varint(len(content)) + content


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[start:end]. Raises ValueError where it is cut short or no protobuf."""
    while start < end:
        key, at = _number(data, start, end)
        kind, content = key & 7, -1
        if kind == 2:
            length, content = _number(data, at, end)
            stop = content + length
        elif kind == 0:
            stop = _number(data, at, end)[1]
        elif kind in SIZES:
            stop = at + SIZES[kind]
        else:
            raise ValueError(f"byte {start}: wire type {kind} is no protobuf of ONNX")
        if stop > end:
            raise ValueError(f"byte {start}: a field ends at {stop:,}, what holds it at {end:,}")
        yield key >> 3, start, content, stop
        start = stop


def _number(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"byte {at}: a number that does not end")
