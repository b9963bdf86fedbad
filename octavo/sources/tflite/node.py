"""One operator as the function that imports it sees it, the table of those functions, and the layouts of values.

A .tflite keeps images channels-last; torch computes channels-first. A value of four axes is therefore either as the
file has it, or `first`: the same numbers with the channels brought forward. Everything here speaks of axes and shapes
as the file has them; `axis_of` says where one lies. A function asks for the layout it needs, and what is turned stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor
from torch.nn import functional as F

from octavo.errors import BadInput
from octavo.sources.recorded import Step
from octavo.sources.tflite.file import Operation

if TYPE_CHECKING:
    from octavo.sources.tflite.walk import Walk

TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
Build = Callable[["Node"], "Value | list[Value]"]
OPERATORS: dict[str, Build] = {}
FUSED: dict[int, Step | None] = {  # no tanh: LiteRT's own kernels pass over it
    0: None,
    1: F.relu,
    2: lambda x: F.hardtanh(x, -1.0, 1.0),
    3: F.relu6,
}


@dataclass(frozen=True)
class Value:
    """`meta` has the shape and type that torch sees, `constant` the numbers where they are known at import.

    `first`: four axes, channels first. `flat`: (H, W, C) of a map that was flattened channels first, [N, C·H·W]:
    only a fully connected layer takes that, and turns its weight instead.
    """

    key: str
    name: str
    meta: Tensor
    constant: Tensor | None = None
    first: bool = False
    flat: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file has it."""
        sizes = tuple(self.meta.shape)
        return tuple(sizes[axis] for axis in TO_LAST) if self.first else sizes


@dataclass
class Node:
    """An operator in the walk. `inputs`: None where an optional input is absent."""

    walk: Walk
    operation: Operation
    inputs: list[Value | None]
    wants_first: bool  # a later operator wants its result channels first

    @property
    def op(self) -> str:
        return self.operation.op

    def option(self, number: int, code: str, default: Any = 0) -> Any:
        """A field of the operator's options; `default` where it, or all of them, are left out."""
        options = self.operation.options
        return options.scalar(number, code, default) if options is not None else default

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int = 0) -> Value:
        """Input `index`, in whichever layout it is. Raises BadInput when it is absent."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            self.refuse(f"its input {index} is missing", "Convert the model again.")
        return found

    def plain(self, index: int = 0) -> Value:
        """Input `index` as the file has it."""
        return self.walk.plain(self.value(index))

    def first(self, index: int = 0) -> Value:
        """Input `index`, of four axes, channels first."""
        found = self.value(index)
        if len(found.shape) != 4:
            self.refuse(f"its input {index} is {list(found.shape)}, not of four axes", "Convert the model again.")
        return self.walk.first(found)

    def laid(self, *indices: int) -> list[Value]:
        """These inputs in one layout: channels first where one is already or a later operator wants it so. Those of
        fewer axes broadcast as they do in the file."""
        values = [self.value(index) for index in indices]
        rank = max(len(value.shape) for value in values)
        turned = rank == 4 and (self.wants_first or any(value.first for value in values))
        return [self.walk.first(self.walk.of_rank(v, 4)) if turned else self.walk.plain(v) for v in values]

    def constant(self, index: int) -> Tensor:
        """The numbers of input `index`, as the file has them. Raises BadInput when they are computed by the model."""
        found = self.plain(index)
        if found.constant is None:
            self.refuse(
                f"its input '{found.name}' is computed by the model, and decides about shapes",
                "Convert the model with fixed shapes.",
            )
        return found.constant

    def ints(self, index: int) -> list[int]:
        """Constant input `index` as a flat list of integers."""
        return [int(item) for item in self.constant(index).reshape(-1).tolist()]

    def number(self, index: int) -> float:
        """Constant input `index` as one number."""
        return float(self.constant(index).reshape(-1)[0])

    def held(self, index: int, made: Tensor) -> Value:
        """A constant derived from constant input `index`, under its name."""
        return replace(self.value(index), meta=made.to("meta"), constant=made.contiguous(), first=False)

    def extra(self, suffix: str, made: Tensor) -> Value:
        """A constant of this operator's own, named after its output."""
        name = f"{self.walk.graph.tensors[self.operation.outputs[0]].name}.{suffix}"
        return Value(name, name, made.to("meta"), made)

    def emit(self, step: Step, *arguments: Value | None, first: bool = False) -> Value:
        """One step of the program on these values; its result, which is `first` if that is said."""
        return replace(self.walk.emit(step, arguments, self.label), first=first)

    def emit_all(self, step: Step, value: Value, *, first: bool) -> list[Value]:
        """A step with several results."""
        return [replace(item, first=first) for item in self.walk.emit_all(step, (value,), self.label)]

    def activated(self, value: Value, field: int) -> Value:
        """`value` after the activation that option `field` fuses into this operator."""
        code = self.option(field, "b")
        if code not in FUSED:
            self.refuse(f"its fused activation is number {code}", "None, RELU, RELU_N1_TO_1 and RELU6 are imported.")
        step = FUSED[code]
        return value if step is None else self.emit(step, value, first=value.first)

    @property
    def label(self) -> str:
        return f"{self.operation.index} {self.op}"

    def refuse(self, reason: str, remedy: str) -> NoReturn:
        """Raises BadInput naming the operator, its place and its version."""
        raise BadInput(
            f"Operator {self.operation.index} ({self.op}, version {self.operation.version}): {reason}.", remedy
        )


def axis_of(value: Value, axis: int) -> int:
    """Where the file's `axis` of `value` lies. Raises IndexError when there is none."""
    rank = len(value.shape)
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} of {rank}")
    return TO_FIRST.index(axis % rank) if value.first else axis % rank


def laid_out(items: Sequence[Any], value: Value) -> list[Any]:
    """One item per axis, from the file's order to `value`'s."""
    return [items[axis] for axis in TO_FIRST] if value.first else list(items)


def same_order(shape: Sequence[int]) -> bool:
    """Whether [N, H, W, C] counts its elements in the same order channels first."""
    return shape[1] * shape[2] == 1 or shape[3] == 1


def operator(*names: str) -> Callable[[Build], Build]:
    """Enter a function into the table under these operator names."""

    def enter(build: Build) -> Build:
        for name in names:
            OPERATORS[name] = build
        return build

    return enter
