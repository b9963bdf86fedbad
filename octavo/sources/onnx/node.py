"""One ONNX node as the function that imports it sees it, and the table of those functions.

A function is called once, at import, with what is known then: attributes, shapes, and the values of constant inputs. It
returns the step: what torch does with the tensors at every run. So nothing in a step depends on a value of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from octavo.errors import BadInput
from octavo.sources.recorded import Step as Step

Build = Callable[["Node"], Step]
OPERATORS: dict[str, Build] = {}
FIRST_OPSET, LAST_OPSET = 11, 21


@dataclass(frozen=True)
class Value:
    """A value of the graph: `meta` has its shape and type, `constant` its numbers where they are known at import.

    `name`: what the tensor is called when it becomes a parameter: the initializer's name, also for its transpose
    (`turned`), so that a weight keeps one name whichever way it lies.
    """

    key: str
    name: str
    meta: Tensor
    constant: Tensor | None = None
    turned: bool = False
    onnx_type: int = 0  # of an initializer: torch lacks some types


@dataclass
class Node:
    """`inputs`: None where an optional input is absent. `args`: what the step will be given (filled from `inputs`)."""

    op: str
    name: str
    opset: int
    attributes: dict[str, Any]
    inputs: list[Value | None]
    outputs: list[str]

    def __post_init__(self) -> None:
        self.args: list[Value | None] = list(self.inputs)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """Input `index`. Raises BadInput when it is absent."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            self.refuse(f"its input {index} is missing", "Export the model again.")
        return found

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of input `index`."""
        return tuple(self.value(index).meta.shape)

    def rank(self, index: int = 0) -> int:
        """How many axes input `index` has."""
        return len(self.shape(index))

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute: int, float, str, list, Tensor or graph."""
        return self.attributes.get(name, default)

    def known(self, index: int) -> Tensor | None:
        """The numbers of input `index` if they are known; None if it is absent. The step will not get it.

        Raises BadInput when they depend on the model's inputs.
        """
        if not self.has(index):
            return None
        found = self.value(index)
        if found.constant is None:
            self.refuse(
                f"its input '{found.name}' is computed from the model's inputs, and decides about shapes or flow",
                "Fix the input that it comes from to a value or a shape (--fix NAME=VALUE).",
            )
        self.args[index] = None
        return found.constant

    def ints(self, index: int, default: list[int] | None = None) -> list[int] | None:
        """Input `index` as a flat list of integers; `default` when absent."""
        found = self.known(index)
        return default if found is None else [int(item) for item in found.reshape(-1).tolist()]

    def number(self, index: int, default: float | None = None) -> float | None:
        """Input `index` as one number; `default` when absent."""
        found = self.known(index)
        return default if found is None else found.reshape(-1)[0].item()

    def axes(self, index: int = 1, default: list[int] | None = None) -> list[int] | None:
        """Axes: an attribute before opset 13 or 18, an input since."""
        return list(self.attr("axes")) if self.attr("axes") is not None else self.ints(index, default)

    def replace(self, index: int, suffix: str, made: Tensor, *, turned: bool = False) -> None:
        """Give the step a constant derived from constant input `index`; it keeps that name, plus `suffix`."""
        origin = self.value(index)
        name = origin.name + suffix
        self.args[index] = Value(name, name, made.to("meta"), made.contiguous(), turned)

    def append(self, index: int, suffix: str, made: Tensor) -> None:
        """Give the step one more constant, after the inputs, named after constant input `index`."""
        name = self.value(index).name + suffix
        self.args.append(Value(name, name, made.to("meta"), made.contiguous()))

    def extra(self, suffix: str, made: Tensor) -> None:
        """Give the step one more constant, after the inputs, named after the node's output."""
        name = f"{self.outputs[0]}.{suffix}"
        self.args.append(Value(name, name, made.to("meta"), made))

    def refuse(self, reason: str, remedy: str) -> NoReturn:
        """Raises BadInput naming the node, the operator and its opset."""
        raise BadInput(f"Node '{self.name}' ({self.op}, opset {self.opset}): {reason}.", remedy)

    def allow(self, **only: tuple[Any, ...]) -> None:
        """Refuse attributes whose value is none of these."""
        for name, values in only.items():
            if self.attr(name, values[0]) not in values:
                self.refuse(
                    f"{name}={self.attr(name)!r} is not imported, only {', '.join(map(repr, values))}",
                    "Export the model without it.",
                )


def operator(*names: str) -> Callable[[Build], Build]:
    """Enter a function into the table under these operator names."""

    def enter(build: Build) -> Build:
        for name in names:
            OPERATORS[name] = build
        return build

    return enter


def plain(step: Step) -> Build:
    """An operator that needs nothing at import."""
    return lambda node: step


def torch_type(number: int) -> torch.dtype:
    """The torch type of an ONNX type number: half precision runs as float32, unsigned and 4-bit integers as the next
    type that holds them. Raises KeyError for strings, complex numbers and 8-bit floats."""
    return {
        1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.int32, 5: torch.int16, 6: torch.int32,
        7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float64, 12: torch.int64, 13: torch.int64,
        16: torch.float32, 21: torch.uint8, 22: torch.int8,
    }[number]  # fmt: skip
