"""The walk over a .tflite graph: what is known at import is computed, the rest becomes a list of torch steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.errors import BadInput, OctavoError, nearest
from octavo.sources.recorded import Run, Step
from octavo.sources.tflite import arithmetic, layers, resize, shapes
from octavo.sources.tflite.file import LIMIT, Graph, Operation
from octavo.sources.tflite.names import short_names
from octavo.sources.tflite.node import OPERATORS, TO_FIRST, TO_LAST, Node, Value

TABLES = (arithmetic, layers, resize, shapes)  # each enters its operators when it is imported
SPATIAL = {  # operators that compute over an image, and where they take it
    "CONV_2D": 0, "DEPTHWISE_CONV_2D": 0, "TRANSPOSE_CONV": 2, "AVERAGE_POOL_2D": 0, "MAX_POOL_2D": 0,
    "RESIZE_BILINEAR": 0, "RESIZE_NEAREST_NEIGHBOR": 0, "DEPTH_TO_SPACE": 0,
}  # fmt: skip
AXES_STAY = {  # operators whose result has the axes of what they take
    *arithmetic.BINARY, *arithmetic.UNARY, "LEAKY_RELU", "GELU", "PRELU", "SOFTMAX", "LOG_SOFTMAX", "CONCATENATION",
    "PAD", "PADV2", "MIRROR_PAD", "SLICE", "SPLIT", "L2_NORMALIZATION",
}  # fmt: skip
TYPES = {
    "fp32": torch.float32, "int32": torch.int32, "int64": torch.int64, "bool": torch.bool, "uint8": torch.uint8,
    "int8": torch.int8, "int16": torch.int16,
}  # fmt: skip
QUANTISED = "Give the float model that it was made from; `octavo inspect` takes it as it is."
LOOPS = "Convert the model without control flow: unroll it, or convert one case."
INSTEAD = {
    "QUANTIZE": QUANTISED, "DENSIFY": "Convert the model without sparse tensors.", "WHILE": LOOPS, "IF": LOOPS,
    "TFLite_Detection_PostProcess": "Convert the network without its box selection, and run that outside.",
}  # fmt: skip


class Walk:
    """Visits operators in order. `runs`: the steps; `tensors`: the constants that they use, by name."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.runs: list[Run] = []
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[int, Value] = {}
        self.wanted = _wanted_first(graph)
        self._turned: dict[tuple[str, bool], Value] = {}  # by key and layout: the same value in the other layout
        self._count = 0
        named = {index: item for index, item in enumerate(graph.tensors) if item.data is not None}
        short = short_names([(item.name, len(item.shape)) for item in named.values()])
        self._names = dict(zip(named, short, strict=True))
        self.padded: dict[str, tuple[Value, list[int]]] = {}  # by key: what was padded with zeros, (H, W) begins, ends

    def walk(self) -> tuple[list[Value], list[tuple[str, Value]]]:
        """(inputs, [(name, output)]). Raises BadInput."""
        inputs = [self._input(name, index) for name, index in self.graph.inputs.items()]
        for operation in self.graph.operations:
            self._operation(operation)
        outputs = [
            (name, self.plain(self._find(index, "the graph's output"))) for name, index in self.graph.outputs.items()
        ]
        for name, value in outputs:
            if value.constant is not None:
                raise BadInput(f"The output '{name}' depends on no input.", "Convert the model without it.")
        self.runs = _needed(self.runs, {value.key for _, value in outputs})
        return inputs, outputs

    def used(self) -> dict[str, Tensor]:
        """The constants that a step takes."""
        keys = {key for run in self.runs for key in run.arguments}
        return {name: tensor for name, tensor in self.tensors.items() if f"tensor:{name}" in keys}

    def plain(self, value: Value) -> Value:
        """`value` as the file has it."""
        return self._turn(value, TO_LAST) if value.first else value

    def first(self, value: Value) -> Value:
        """`value`, of four axes, channels first."""
        return value if value.first else self._turn(value, TO_FIRST)

    def of_rank(self, value: Value, rank: int) -> Value:
        """`value` with axes of size 1 in front."""
        shape = value.shape
        if len(shape) == rank:
            return value
        made = self.emit(lambda x: x.reshape((1,) * (rank - len(shape)) + shape), (value,), "layout")
        return replace(made, name=value.name)

    def emit(self, step: Step, arguments: tuple[Value | None, ...], label: str) -> Value:
        return self.emit_all(lambda *given: (step(*given),), arguments, label)[0]

    def emit_all(self, step: Step, arguments: tuple[Value | None, ...], label: str) -> list[Value]:
        """Compute now what is known, else append the step. Shapes come first: a damaged file may ask for any."""
        with torch.no_grad():
            metas = step(*(value and value.meta for value in arguments))
            for meta in metas:
                if meta.numel() > LIMIT:
                    raise BadInput(f"Operator {label}: its result would be {list(meta.shape)}.", "Convert it again.")
            if all(value is None or value.constant is not None for value in arguments):
                found = step(*(value and value.constant for value in arguments))
                return [Value(self._key(), label, item.to("meta"), item) for item in found]
        keys = tuple(self._key() for _ in metas)
        given = tuple(None if value is None else self._argument(value) for value in arguments)
        self.runs.append(Run(step, given, keys, label))
        return [Value(key, label, meta) for key, meta in zip(keys, metas, strict=True)]

    def _turn(self, value: Value, order: tuple[int, ...]) -> Value:
        """The other layout of a value, made once."""
        at = value.key, value.first
        if at not in self._turned:
            made = replace(self.emit(lambda x: x.permute(order), (value,), "layout"), name=value.name)
            self._turned[at] = made = replace(made, first=not value.first)
            self._turned[made.key, made.first] = value
        return self._turned[at]

    def _input(self, name: str, index: int) -> Value:
        stored = self.graph.tensors[index]
        shape = list(stored.shape)
        if stored.kind not in TYPES or stored.data is not None:
            raise BadInput(f"The input '{name}' is {stored.kind}.", "Convert the model with float32 inputs.")
        if any(axis > 0 for axis in stored.free) or 0 in shape:
            shown = [-1 if axis in stored.free else size for axis, size in enumerate(shape)]
            raise BadInput(
                f"The input '{name}' {shown} has free sizes, and a program for a device has none.",
                "Convert the model with fixed shapes; only the first axis, the batch, may be free.",
            )
        value = Value(self._key(), name, torch.empty(shape, dtype=TYPES[stored.kind], device="meta"))
        self.values[index] = value
        return value

    def _operation(self, operation: Operation) -> None:
        """Import one operator: its results under their tensor numbers, each as large as the file says."""
        wanted = any(index in self.wanted for index in operation.outputs)
        node = Node(self, operation, [], wanted)
        node.inputs = [None if index < 0 else self._find(index, node.label) for index in operation.inputs]
        if operation.op not in OPERATORS:
            remedy = INSTEAD.get(
                operation.op, f"Convert the model with operators that are. {nearest(operation.op, OPERATORS)}"
            )
            node.refuse("the operator is not imported", remedy)
        try:
            made = OPERATORS[operation.op](node)
        except OctavoError:
            raise
        except Exception as error:  # a file that makes no sense trips torch in as many ways as torch has
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            listed = ", ".join(str(list(value.shape)) if value else "absent" for value in node.inputs)
            node.refuse(f"cannot be imported with inputs {listed}: {reason}", "Is it a valid model? Convert it again.")
        results = made if isinstance(made, list) else [made]
        if len(results) != len(operation.outputs):
            node.refuse(f"{len(operation.outputs)} outputs are asked of it, it has {len(results)}", "Convert it again.")
        for index, value in zip(operation.outputs, results, strict=True):
            self._check(node, index, value)
            self.values[index] = value

    def _check(self, node: Node, index: int, value: Value) -> None:
        """The result against the shape in the file. A tensor without one says nothing."""
        stored = self.graph.tensors[index]
        fits = len(stored.shape) == len(value.shape) and all(
            axis in stored.free or a == b for axis, (a, b) in enumerate(zip(stored.shape, value.shape, strict=True))
        )
        if stored.shape and not fits:
            node.refuse(f"its result is {list(value.shape)}, the file says {list(stored.shape)}", "Convert it again.")

    def _find(self, index: int, where: str) -> Value:
        """The value of tensor `index`: computed before, or stored."""
        if index in self.values:
            return self.values[index]
        stored = self.graph.tensors[index]
        if stored.data is None or stored.kind not in (*TYPES, "fp16", "bf16"):
            problem = "computed nowhere before it" if stored.data is None else f"{stored.kind}, which is not imported"
            raise BadInput(f"'{stored.name}', which {where} needs, is {problem}.", "Convert the model again.")
        tensor = torch.from_numpy(stored.data)
        self.values[index] = Value(self._key(), self._names[index], tensor.to("meta"), tensor)
        return self.values[index]

    def _argument(self, value: Value) -> str:
        """The key of a step's argument; a constant becomes a tensor of the program, once, under its name."""
        if value.constant is None:
            return value.key
        base = name = value.name or "constant"
        number = 1
        while name in self.tensors and not _same(self.tensors[name], value.constant):
            number += 1
            name = f"{base}~{number}"
        self.tensors.setdefault(name, value.constant.contiguous())
        return f"tensor:{name}"

    def _key(self) -> str:
        self._count += 1
        return f"value {self._count}"


def _wanted_first(graph: Graph) -> set[int]:
    """Tensors that end, through operators that leave axes alone, in one that computes over an image."""
    found: set[int] = set()
    for operation in reversed(graph.operations):
        if operation.op in SPATIAL:
            found |= set(operation.inputs[SPATIAL[operation.op] :][:1])
        elif operation.op in AXES_STAY and found & set(operation.outputs):
            found |= set(operation.inputs)
    return found


def _needed(runs: list[Run], wanted: set[str]) -> list[Run]:
    """The steps that an output depends on."""
    kept: list[Run] = []
    needed: set[Any] = set(wanted)
    for run in reversed(runs):
        if needed & set(run.results):
            needed |= set(run.arguments)
            kept.append(run)
    return kept[::-1]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
