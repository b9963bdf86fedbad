"""The walk over an ONNX graph: what is known at import is computed, the rest becomes a list of torch steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import BadInput, OctavoError, nearest
from octavo.sources.onnx import arithmetic, layers, quantized, recurrent, shapes
from octavo.sources.onnx.node import FIRST_OPSET, LAST_OPSET, OPERATORS, Node, Value, torch_type
from octavo.sources.recorded import Run

TABLES = (arithmetic, layers, quantized, recurrent, shapes)  # each enters its operators when it is imported
DOMAINS = {"": "", "ai.onnx": "", "com.microsoft": "com.microsoft."}
LOOPS = "Unroll it at export for a fixed number of steps, or export only its body."
INSTEAD = {
    "Loop": LOOPS, "Scan": LOOPS,
    "NonMaxSuppression": "Export the network without its box selection, and run that outside.",
    "QLinearConv": "Give the QDQ form of the model (QuantFormat.QDQ), or its float original.",
    "QLinearMatMul": "Give the QDQ form of the model (QuantFormat.QDQ), or its float original.",
    "ConvInteger": "Give its float original.", "MatMulInteger": "Give its float original.",
}  # fmt: skip


NUMPY = {
    torch.uint8: np.uint8, torch.int8: np.int8, torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64,
    torch.bool: np.bool_, torch.float32: np.float32, torch.float64: np.float64,
}  # fmt: skip


class Walk:
    """Visits nodes in order. `runs`: the steps; `tensors`: the constants that they use, by key."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opset = opsets.get("", opsets.get("ai.onnx", 0))
        if not FIRST_OPSET <= self.opset <= LAST_OPSET:
            raise BadInput(
                f"The model is of opset {self.opset}; {FIRST_OPSET} to {LAST_OPSET} are imported.",
                "Convert it with onnx.version_converter.convert_version(model, 17).",
            )
        self.runs: list[Run] = []
        self.tensors: dict[str, Tensor] = {}
        self.taken: set[str] = set()

    def placeholder(self, name: str, shape: tuple[int, ...], kind: torch.dtype) -> Value:
        """A model input of this shape."""
        return Value(self._key(name), name, torch.empty(shape, dtype=kind, device="meta"))

    def known(self, name: str, tensor: Tensor, onnx_type: int = 0) -> Value:
        """A value whose numbers are known."""
        return Value(self._key(name), name, tensor.to("meta"), tensor, onnx_type=onnx_type)

    def graph(self, graph: Any, scope: dict[str, Value]) -> list[Value]:
        """Visit a graph, or the branch of an If, that sees `scope`; return its outputs. Raises BadInput."""
        for item in graph.initializer:
            scope[item.name] = self.known(item.name, tensor_of(item), item.data_type)
        for node in graph.node:
            made = self._if(node, scope) if node.op_type == "If" else self._node(node, scope)
            for name, value in zip(node.output, made, strict=False):
                if name:
                    scope[name] = value
        return [_find(scope, item.name, "the graph's output") for item in graph.output]

    def _if(self, proto: Any, scope: dict[str, Value]) -> list[Value]:
        """The branch taken, in place, when the condition is known."""
        node = self._view(proto, scope)
        condition = node.value(0)
        if condition.constant is None:
            deciding = self._inputs_of(condition.key)
            node.refuse(
                f"its condition '{condition.name}' depends on the data: the input {', '.join(deciding)}",
                f"Fix it to a value (--fix {deciding[0]}=VALUE) if it is a number; else export one case.",
            )
        branch = node.attr("then_branch" if bool(condition.constant.any()) else "else_branch")
        return self.graph(branch, dict(scope))

    def _node(self, proto: Any, scope: dict[str, Value]) -> list[Value]:
        """Import one node: compute it now if everything it needs is known, else append its step."""
        node = self._view(proto, scope)
        if proto.domain not in DOMAINS or DOMAINS[proto.domain] + proto.op_type not in OPERATORS:
            self._unsupported(node, proto)
        try:
            step = OPERATORS[DOMAINS[proto.domain] + proto.op_type](node)
            known = all(value is None or value.constant is not None for value in node.args)
            given = [value and (value.constant if known else value.meta) for value in node.args]
            with torch.no_grad():
                found = step(*given)
        except OctavoError:
            raise
        except Exception as error:  # a file that makes no sense trips torch in as many ways as torch has
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            listed = ", ".join(str(list(value.meta.shape)) if value else "absent" for value in node.inputs)
            node.refuse(
                f"cannot be imported with inputs {listed}: {reason}", "Is it a valid model? onnx.checker knows."
            )
        results = found if isinstance(found, tuple | list) else (found,)
        if known:
            return self._folded(node, results)
        keys = tuple(self._key(name) for name in node.outputs)
        arguments = tuple(None if value is None else self._argument(value) for value in node.args)
        self.runs.append(Run(step, arguments, keys, node.name))
        rows = zip(keys, node.outputs, results, strict=False)
        return [Value(key, name, result.to("meta")) for key, name, result in rows]

    def _folded(self, node: Node, results: tuple[Any, ...] | list[Any]) -> list[Value]:
        """Known results. A matrix that was only handed on or turned keeps its initializer's name."""
        first = node.inputs[0] if node.inputs else None
        made = []
        for name, result in zip(node.outputs, results, strict=False):
            value = self.known(name, result)
            same = first is not None and first.constant is not None and first.constant.dtype == result.dtype
            if same and first is not None and node.op in ("Identity", "Dropout", "Cast"):
                value = Value(value.key, first.name, value.meta, result, first.turned, first.onnx_type)
            elif same and first is not None and node.op == "Transpose" and result.dim() == 2:
                turned = first.turned != (node.attr("perm", [1, 0]) == [1, 0])
                value = Value(value.key, first.name, value.meta, result, turned)
            made.append(value)
        return made

    def _argument(self, value: Value) -> str:
        """The key of a step's argument; a constant becomes a tensor of the program, once, under its name."""
        if value.constant is None:
            return value.key
        name, number = value.name or "constant", 1
        while name in self.tensors and not _same(self.tensors[name], value.constant):
            number += 1
            name = f"{value.name}~{number}"
        self.tensors.setdefault(name, value.constant.contiguous())
        return f"tensor:{name}"

    def _inputs_of(self, key: str) -> list[str]:
        """The model's inputs that the value `key` is computed from."""
        wanted, made = {key}, {result for run in self.runs for result in run.results}
        for run in reversed(self.runs):
            if wanted & set(run.results):
                wanted |= {item for item in run.arguments if item is not None and not item.startswith("tensor:")}
        return sorted(wanted - made)

    def _view(self, proto: Any, scope: dict[str, Value]) -> Node:
        name = proto.name or (proto.output[0] if proto.output else proto.op_type)
        inputs = [_find(scope, item, f"node '{name}' ({proto.op_type})") if item else None for item in proto.input]
        attributes = {item.name: _attribute(item, name) for item in proto.attribute}
        return Node(proto.op_type, name, self.opset, attributes, inputs, list(proto.output))

    def _unsupported(self, node: Node, proto: Any) -> None:
        domain = f" of domain {proto.domain}" if proto.domain not in ("", "ai.onnx") else ""
        names = [name for name in OPERATORS if "." not in name]
        remedy = INSTEAD.get(node.op, f"Export the model with operators that are. {nearest(node.op, names)}")
        node.refuse(f"the operator{domain} is not imported", remedy)

    def _key(self, name: str) -> str:
        key, number = name, 1
        while key in self.taken:
            number += 1
            key = f"{name}~{number}"
        self.taken.add(key)
        return key


def tensor_of(item: Any) -> Tensor:
    """An ONNX tensor as torch's; half precision as float32 (exact). Raises BadInput for strings and complex numbers."""
    from onnx import numpy_helper

    try:
        kind = torch_type(item.data_type)
    except KeyError:
        raise BadInput(
            f"Tensor '{item.name}' is of ONNX type {item.data_type}.", "Give the model in float32."
        ) from None
    try:
        array = numpy_helper.to_array(item)
    except Exception as error:  # protobuf and numpy: sizes that do not fit the data
        raise BadInput(f"Tensor '{item.name}' is damaged ({error}).", "Export the model again.") from error
    return torch.from_numpy(np.array(array, dtype=NUMPY[kind], order="C"))


def _attribute(item: Any, node: str) -> Any:
    if item.HasField("t") and item.type == item.TENSOR:
        return tensor_of(item.t)
    plain: dict[int, Any] = {
        item.FLOAT: lambda: item.f, item.INT: lambda: item.i, item.STRING: lambda: item.s.decode(),
        item.FLOATS: lambda: list(item.floats), item.INTS: lambda: list(item.ints), item.GRAPH: lambda: item.g,
        item.STRINGS: lambda: [text.decode() for text in item.strings],
    }  # fmt: skip
    if item.type not in plain:
        raise BadInput(f"Node '{node}': its attribute '{item.name}' is of a kind that is not imported.", "")
    return plain[item.type]()


def _find(scope: dict[str, Value], name: str, where: str) -> Value:
    if name not in scope:
        raise BadInput(f"'{name}', which {where} needs, is computed nowhere before it.", "Export the model again.")
    return scope[name]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
