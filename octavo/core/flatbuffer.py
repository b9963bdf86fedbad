"""Just enough of FlatBuffers to read a table's fields by number (https://flatbuffers.dev/internals).

Every offset is checked against the buffer before it is followed; Damaged says what did not fit.
"""

from __future__ import annotations

import struct
from typing import Any


class Damaged(ValueError):
    """An offset or length that leads out of the file."""


class Table:
    """One table at position `at` of `data`. Fields that are absent read as their default."""

    def __init__(self, data: Any, at: int) -> None:
        self.data, self.at = data, at
        self._vtable = at - int(_unpack(data, "<i", at))
        self._size = int(_unpack(data, "<H", self._vtable))

    def _field(self, number: int) -> int:
        """Where field `number` lies, 0 when it is absent."""
        place = 4 + 2 * number
        if place + 2 > self._size:
            return 0
        offset = int(_unpack(self.data, "<H", self._vtable + place))
        return self.at + offset if offset else 0

    def scalar(self, number: int, code: str, default: int = 0) -> Any:
        """A number of struct type `code`."""
        at = self._field(number)
        return _unpack(self.data, f"<{code}", at) if at else default

    def table(self, number: int) -> Table | None:
        at = self._field(number)
        return Table(self.data, self._follow(at)) if at else None

    def tables(self, number: int) -> list[Table]:
        start, count = self._vector(number, 4)
        return [Table(self.data, self._follow(start + 4 * index)) for index in range(count)]

    def numbers(self, number: int, code: str) -> tuple[Any, ...] | None:
        """A vector of numbers; None when it is absent."""
        if not self._field(number):
            return None
        start, count = self._vector(number, struct.calcsize(f"<{code}"))
        return tuple(struct.unpack_from(f"<{count}{code}", self.data, start))

    def length(self, number: int, size: int = 1) -> int:
        """How many elements of `size` bytes a vector has."""
        return self._vector(number, size)[1]

    def place(self, number: int, size: int = 1) -> tuple[int, int]:
        """Where the elements of a vector lie in the buffer, `size` bytes each: [start, stop)."""
        start, count = self._vector(number, size)
        return start, start + count * size

    def raw(self, number: int) -> bytes:
        """The bytes of a vector of bytes."""
        start, stop = self.place(number)
        return bytes(self.data[start:stop])

    def text(self, number: int) -> str:
        return self.raw(number).decode("utf-8", "replace")

    def _vector(self, number: int, size: int) -> tuple[int, int]:
        at = self._field(number)
        if not at:
            return 0, 0
        start = self._follow(at)
        count = int(_unpack(self.data, "<I", start))
        if start + 4 + count * size > len(self.data):
            raise Damaged(f"{count} items at byte {start} of {len(self.data)}")
        return start + 4, count

    def _follow(self, at: int) -> int:
        return at + int(_unpack(self.data, "<I", at))


def root(data: Any) -> Table:
    """The root table of a buffer."""
    return Table(data, int(_unpack(data, "<I", 0)))


def _unpack(data: Any, code: str, at: int) -> Any:
    if at < 0 or at + struct.calcsize(code) > len(data):
        raise Damaged(f"byte {at} of {len(data)}")
    return struct.unpack_from(code, data, at)[0]
