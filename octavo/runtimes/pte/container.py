"""A .pte file as it lies on disk: the program and the segments behind it, read without ExecuTorch and without torch.

The fields are those of executorch/schema/program.fbs (version 1.5). ExecuTorch's own readers are no help against a
damaged file: its runtime follows offsets unchecked, and flatc dies of one flipped bit in seven. Here every offset is
checked before it is followed; the tests hold what is read to what flatc and `exir._serialize` read of the same file.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from octavo.core.flatbuffer import Damaged, Table, root
from octavo.errors import BadInput

AGAIN = "The file is cut short, damaged or no ExecuTorch program; export it again."
HEADER = 40  # of the file: root offset, "ET12", then the extended header's first 32 bytes
TENSOR, INT, DOUBLE = 5, 2, 4  # members of the union KernelTypes
KERNEL_CALL, DELEGATE_CALL = 1, 2  # members of the union InstructionArguments
INLINE = 0  # DataLocation
SCALARS: dict[int, tuple[str, str, int]] = {  # ScalarType → (numpy's name, ONNX Runtime's word, bytes)
    0: ("uint8", "tensor(uint8)", 1), 1: ("int8", "tensor(int8)", 1), 2: ("int16", "tensor(int16)", 2),
    3: ("int32", "tensor(int32)", 4), 4: ("int64", "tensor(int64)", 8), 5: ("float16", "tensor(float16)", 2),
    6: ("float32", "tensor(float)", 4), 7: ("float64", "tensor(double)", 8), 11: ("bool", "tensor(bool)", 1),
    15: ("uint16", "tensor(bfloat16)", 2),
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of the file."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Tensor:
    """A tensor of the program: its type as a number of SCALARS, its shape, and where its constant values lie."""

    kind: int
    shape: tuple[int, ...]
    data: Span | None = None


@dataclass(frozen=True)
class Call:
    """One instruction: a portable kernel by name, or a delegate by its number; `args` number the plan's values."""

    kernel: str = ""
    delegate: int = -1
    args: tuple[int, ...] = ()


@dataclass(frozen=True)
class Delegate:
    """What a backend gets: its name and its blob."""

    backend: str
    blob: Span


class Container:
    """One .pte file, mapped. Raises BadInput when it is cut short, damaged or something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: cannot be read ({error}).", AGAIN) from error
        try:
            self._read()
        except (Damaged, ValueError, IndexError, OverflowError, MemoryError) as error:
            self.data.close()
            raise BadInput(f"{path}: no whole ExecuTorch program ({error}).", AGAIN) from error

    def close(self) -> None:
        """Unmap the file."""
        self.data.close()

    def bytes(self, span: Span) -> bytes:
        return self.data[span.start : span.stop]

    def _read(self) -> None:
        if self.data[4:6] != b"ET":
            raise ValueError("the letters ET are not where they belong")
        self._base = 0
        size = len(self.data)
        if self.data[8:12] == b"eh00":
            size, self._base = (int.from_bytes(self.data[at : at + 8], "little") for at in (16, 24))
            if not HEADER <= size <= len(self.data) or not size <= self._base <= len(self.data):
                raise ValueError(f"its header speaks of {size:,} and {self._base:,} bytes of {len(self.data):,}")
        self.program = Span(0, size)
        program = root(self.data[:size])
        self.segments = tuple(self._segment(item) for item in program.tables(4))
        self.named = {item.text(0): self.segments[item.scalar(1, "I")] for item in program.tables(7)}
        plans = program.tables(1)
        if not plans:
            raise ValueError("there is no method in it")
        self.method = plans[0].text(0)
        self._constants(program)
        self._plan(plans[0], program)

    def _segment(self, item: Table) -> Span:
        start, size = self._base + int(item.scalar(0, "Q")), int(item.scalar(1, "Q"))
        if start + size > len(self.data):
            raise ValueError(f"a segment ends at byte {start + size:,} of {len(self.data):,}")
        return Span(start, start + size)

    def _constants(self, program: Table) -> None:
        """Where the constants of portable kernels lie."""
        place = program.table(5)
        self._constant_segment = self.segments[place.scalar(0, "I")] if place and self.segments else Span(0, 0)
        self._constant_offsets = (place.numbers(1, "Q") or ()) if place else ()

    def _plan(self, plan: Table, program: Table) -> None:
        self.values = tuple(_value(self, item) for item in plan.tables(2))
        self.inputs = plan.numbers(3, "i") or ()
        self.outputs = plan.numbers(4, "i") or ()
        operators = [".".join(filter(None, (item.text(0), item.text(1)))) for item in plan.tables(6)]
        inline = program.tables(3)
        self.delegates = tuple(self._delegate(item, inline) for item in plan.tables(7))
        chains = plan.tables(5)
        self.calls = tuple(_call(item, operators) for chain in chains for item in chain.tables(2))
        for number in (*self.inputs, *self.outputs, *(arg for call in self.calls for arg in call.args)):
            if not 0 <= number < len(self.values):
                raise ValueError(f"value {number} of {len(self.values)}")
        for call in self.calls:
            if call.delegate >= len(self.delegates):
                raise ValueError(f"delegate {call.delegate} of {len(self.delegates)}")

    def _delegate(self, item: Table, inline: list[Table]) -> Delegate:
        place = item.table(1)
        index = place.scalar(1, "I") if place else 0
        if place and place.scalar(0, "b") != INLINE:
            return Delegate(item.text(0), self.segments[index])
        start, stop = inline[index].place(0)
        return Delegate(item.text(0), Span(start, stop))

    def constant(self, index: int, size: int) -> Span:
        """Where constant `index` of a portable kernel lies, which has `size` bytes. Raises ValueError outside."""
        start = self._constant_segment.start + int(self._constant_offsets[index])
        if start + size > self._constant_segment.stop:
            raise ValueError(f"constant {index} ends at byte {start + size:,} of {self._constant_segment.stop:,}")
        return Span(start, start + size)


def _value(container: Container, item: Table) -> Any:
    """A Tensor, an int, a float, or None for what this reader has no use for."""
    kind, value = item.scalar(0, "B"), item.table(1)
    if value is None:
        return None
    if kind == INT:
        return value.scalar(0, "q")
    if kind == DOUBLE:
        return value.scalar(0, "d", 0)
    if kind != TENSOR:
        return None
    scalar, shape = value.scalar(0, "b"), value.numbers(2, "i") or ()
    index, planned = value.scalar(5, "I"), value.table(6)
    if not index or planned is not None:
        return Tensor(scalar, shape)
    if scalar not in SCALARS or any(size < 0 for size in shape):
        raise ValueError(f"a constant of type {scalar} and shape {list(shape)}")
    return Tensor(scalar, shape, container.constant(index, prod(shape) * SCALARS[scalar][2]))


def _call(item: Table, operators: list[str]) -> Call:
    kind, value = item.scalar(0, "B"), item.table(1)
    args = (value.numbers(1, "i") or ()) if value else ()
    if kind == KERNEL_CALL and value:
        return Call(kernel=operators[value.scalar(0, "i")], args=args)
    if kind == DELEGATE_CALL and value:
        return Call(delegate=value.scalar(0, "i"), args=args)
    return Call()
