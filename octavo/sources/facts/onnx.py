"""Facts of an ONNX graph: onnx's own shape inference for the sizes, the operators' definitions for the rest.

Weights are not read: external data stays where it is, and large values are taken out before shapes are inferred.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from octavo.core.facts import ModelFacts
from octavo.errors import BadInput
from octavo.sources.facts.network import Network, Shape, kinds
from octavo.sources.facts.onnx_macs import macs_of
from octavo.sources.facts.onnx_shapes import inferred, is_constant_node, scalar_of, shapes_of, type_bytes, type_name

Given = Mapping[str, tuple[int, ...] | int]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Which inputs are scales and zero points: {operator: {input: the one whose weight they belong to, None for an edge's}}
SCALES: dict[str, dict[int, int | None]] = {
    DEQUANTIZE: {1: 0, 2: 0}, "MatMulNBits": {2: 1, 3: 1}, "GatherBlockQuantized": {2: 0, 3: 0},
    "QLinearConv": {1: 0, 2: 0, 4: 3, 5: 3, 6: None, 7: None},
    "QLinearMatMul": {1: 0, 2: 0, 4: 3, 5: 3, 6: None, 7: None},
    "QGemm": {1: 0, 2: 0, 4: 3, 5: 3, 7: None, 8: None}, "ConvInteger": {2: 0, 3: 1}, "MatMulInteger": {2: 0, 3: 1},
    "DynamicQuantizeLSTM": {8: 1, 9: 1, 10: 2, 11: 2}, "MatMulIntegerToFloat": {2: 0, 3: 1, 4: 0, 5: 1},
    QUANTIZE: {1: None, 2: None},
}  # fmt: skip


def onnx_facts(path: Path, shapes: Given | None = None) -> ModelFacts:
    """Facts of one inference. `shapes`: free sizes, as {input name: whole shape} or {dimension name: size}; the first
    axis and any other free size not given is 1, which is said.

    Raises BadInput when the file is no ONNX model, its graph is inconsistent, or a shape given contradicts it.
    """
    model = _load(path)
    net = Network()
    _set_sizes(model.graph, dict(shapes or {}), net.missing)
    reader = _Reader(net, inferred(model, path))
    names = {item.name for item in model.graph.initializer}
    inputs = [item.name for item in model.graph.input if item.name not in names]
    reader.read(reader.model.graph, inputs)
    reader.say()
    return net.facts(path.stem, inputs, [item.name for item in model.graph.output], f"the graph of {path.name}")


def _load(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own kinds, and OSError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path}: not an ONNX model ({reason}).", "Export it again.") from error
    if not model.HasField("graph") or not model.graph.node:
        raise BadInput(f"{path}: an ONNX file without operators.", "Export it again.")
    return model


def _set_sizes(graph: Any, given: dict[str, Any], missing: list[str]) -> None:
    """Put sizes where the inputs' are free."""
    names = {item.name for item in graph.initializer}
    free: dict[str, None] = {}
    sizes: dict[str, int] = {}
    known = set(given)
    for item in graph.input:
        if item.name in names or not item.type.HasField("tensor_type"):
            continue
        dims = item.type.tensor_type.shape.dim
        shape = given.get(item.name)
        known.discard(item.name)
        if shape is not None and (not isinstance(shape, tuple) or len(shape) != len(dims)):
            raise BadInput(f"{item.name}: the shape given is {shape}; the graph's has {len(dims)} axes.")
        for axis, dim in enumerate(dims):
            known.discard(dim.dim_param)
            size = _size(item.name, axis, dim, shape, given)
            if size is None:
                size = 1
                if axis:
                    free[dim.dim_param or f"{item.name}[{axis}]"] = None
            if dim.dim_param:
                sizes[dim.dim_param] = size
            dim.ClearField("dim_param")
            dim.dim_value = size
    for item in (*graph.value_info, *graph.output):  # names of sizes that are now known, and sums of them that are not
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param:
                size = sizes.get(dim.dim_param)
                dim.ClearField("dim_param")
                if size is not None:
                    dim.dim_value = size
    if known:
        raise BadInput(
            f"{', '.join(sorted(known))}: the graph has no such input or dimension.",
            f"Inputs: {', '.join(item.name for item in graph.input if item.name not in names)}.",
        )
    if free:
        missing.append(f"Free sizes taken as 1: {', '.join(free)}. Give them to plan for others.")


def _size(name: str, axis: int, dim: Any, shape: tuple[int, ...] | None, given: dict[str, Any]) -> int | None:
    fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
    asked = shape[axis] if shape is not None else given.get(dim.dim_param) if dim.dim_param else None
    if asked is None:
        return fixed
    if type(asked) is not int or asked < 0:
        raise BadInput(f"{name}: size {asked!r} on axis {axis} is no whole number.")
    if fixed is not None and asked != fixed:
        raise BadInput(f"{name}: axis {axis} is {fixed} in the graph, {asked} was given.")
    return asked


class _Reader:
    """Walks the operators of a graph and of the branches that run."""

    def __init__(self, net: Network, model: Any) -> None:
        self.net, self.model, self.kinds = net, model, kinds("onnx")
        self.shapes: dict[str, Shape] = {}
        self.guessed: set[str] = set()
        self.numbers: dict[str, float] = {}
        self.branches: list[str] = []

    def read(self, graph: Any, inputs: list[str]) -> None:
        """Add the operators of `graph`; a value of unknown size counts as one element along the sizes unknown."""
        types = shapes_of(graph, self.shapes, self.guessed)
        for tensor in graph.initializer:
            self._initializer(tensor)
        for name in [name for name in self.net.weights if name.endswith(".scale")]:  # as Octavo names them
            self._own(name, f"{name.removesuffix('.scale')}.codes")
        for name, (shape, element_bytes) in types.items():
            if not self.net.is_constant(name):
                self.net.edge(name, shape, element_bytes)
        readers = _readers(graph)
        for node in graph.node:
            self._node(node, readers, {item.name for item in graph.output})

    def say(self) -> None:
        used = {name for operator in self.net.operators for name in operator.outputs}
        unknown = sorted(self.guessed & used)
        if unknown:
            self.net.missing.append(
                f"{len(unknown)} values whose size depends on the data or is not inferred, first {unknown[0]}."
            )
        if self.branches:
            self.net.missing.append(
                f"{len(self.branches)} If: planned with the branch that computes more, first {self.branches[-1]}."
            )
        self.net.unknown_operators()

    def _initializer(self, tensor: Any) -> None:
        shape, stored = tuple(tensor.dims), type_name(tensor.data_type)
        self.shapes[tensor.name] = shape
        self.net.constants.add(tensor.name)
        self.net.edges.pop(tensor.name, None)
        number = scalar_of(tensor)
        if number is not None:
            self.numbers[tensor.name] = number
        if shape and prod(shape) and (stored.startswith(("fp", "bf")) or "int8" in stored or "int4" in stored):
            self.net.weight(tensor.name, shape, stored, _bytes(shape, tensor.data_type))

    def _node(self, node: Any, readers: dict[str, list[Any]], ends: set[str]) -> None:
        net, op, inputs = self.net, node.op_type, list(node.input)
        if op == "If":
            return self._branch(node)
        if is_constant_node(node):
            return self._constant(node)
        self._own_scales(node)
        if inputs and all(net.is_constant(name) for name in inputs if name) and not _draws(op):
            return self._folded(node)
        if op == DEQUANTIZE and node.output[0] not in ends:
            return net.alias(node.output[0], inputs[0])
        if op == QUANTIZE and self._fuses(inputs[0], readers, ends):
            return net.alias(inputs[0], node.output[0]) if inputs[0] in net.edges else None
        body = next((item.g for item in node.attribute if item.name == "body"), None)
        if body is not None:
            return self._loop(node, body)
        kind = self.kinds.get(op, "other")
        if op == "Identity" or kind in ("elementwise", "activation", "softmax", "norm"):
            self._as_inputs(node)
        macs, kind = macs_of(node, kind, self.shape, net.is_constant)
        net.operator(node.name or node.output[0], op, kind, macs, inputs, node.output)
        return None

    def shape(self, name: str) -> Shape:
        """The shape of an edge or weight; () of nothing."""
        found = self.net.resolve(name)
        if name not in self.shapes and found in self.net.weights:
            return self.net.weights[found].shape
        return self.shapes.get(name, self.shapes.get(found, ()))

    def _as_inputs(self, node: Any) -> None:
        """Where inference gave up, a pointwise result is as large as the largest of what it is made of."""
        name = node.output[0]
        if name not in self.guessed or name not in self.net.edges:
            return
        made_of = [item for item in node.input if self.net.resolve(item) in self.net.edges]
        if made_of and not any(item in self.guessed for item in made_of):
            shape = max((self.shape(item) for item in made_of), key=prod)
            self.shapes[name] = shape
            self.net.edge(name, shape, self.net.edges[name].element_bytes)
            self.guessed.discard(name)

    def _fuses(self, name: str, readers: dict[str, list[Any]], ends: set[str]) -> bool:
        """Whether the float value exists only to be quantised: then its operator writes the quantised one."""
        return name in self.net.written and name not in ends and len(readers.get(name, [])) == 1

    def _own_scales(self, node: Any) -> None:
        """Scales and zero points belong to the weight they scale: their bytes count there, and they are no parameters.
        Codes that a node packs count as the weights they hold."""
        for place, of in SCALES.get(node.op_type, {}).items():
            if place < len(node.input) and node.input[place]:
                owner = node.input[of] if of is not None and of < len(node.input) else ""
                self._own(self.net.resolve(node.input[place]), self.net.resolve(owner))
        if node.op_type == "MatMulNBits" and node.input[1] in self.net.weights:
            numbers = {item.name: int(item.i) for item in node.attribute}
            weight = self.net.weights[node.input[1]]
            if weight.stored == "uint8":
                self.net.weight(
                    node.input[1], (numbers["N"], numbers["K"]), f"int{numbers.get('bits', 4)}", weight.stored_bytes
                )

    def _own(self, scale: str, weight: str) -> None:
        if scale == weight:
            return
        found, owner = self.net.weights.pop(scale, None), self.net.weights.get(weight)
        self.net.constants.add(scale)
        if found is not None and owner is not None:
            self.net.weight(weight, owner.shape, owner.stored, owner.stored_bytes + found.stored_bytes)

    def _constant(self, node: Any) -> None:
        for item in node.attribute:
            if item.name == "value" and item.HasField("t"):
                item.t.name = node.output[0]
                return self._initializer(item.t)
        self.net.constants.add(node.output[0])
        return None

    def _folded(self, node: Any) -> None:
        """What follows from constants alone is computed before the model runs; it still is the weight it came from."""
        source = next((name for name in node.input if self.net.resolve(name) in self.net.weights), None)
        for name in node.output:
            self.net.edges.pop(name, None)
            if source is not None:
                self.net.alias(name, source)
            else:
                self.net.constants.add(name)

    def _branch(self, node: Any) -> None:
        """Of an If, the branch with more multiply-accumulates."""
        best: tuple[int, Any, _Reader] | None = None
        for item in node.attribute:
            trial = _Reader(self.net.copy(), self.model)
            trial.shapes, trial.guessed, trial.numbers = dict(self.shapes), set(self.guessed), dict(self.numbers)
            trial.branches = list(self.branches)
            trial.read(item.g, [])
            cost = sum(operator.macs for operator in trial.net.operators)
            if best is None or cost > best[0]:
                best = cost, item, trial
        if best is None:
            return
        _, item, trial = best
        self.net.take(trial.net)
        self.shapes, self.guessed, self.numbers = trial.shapes, trial.guessed, trial.numbers
        for outer, inner in zip(node.output, item.g.output, strict=False):
            self.net.edges.pop(outer, None)
            self.net.alias(outer, inner.name)
            self.shapes[outer] = self.shapes.get(inner.name, self.shapes.get(outer, ()))
            self.guessed.discard(outer)
        self.branches = [*trial.branches, node.name or "If"]

    def _loop(self, node: Any, body: Any) -> None:
        """A Loop or Scan as one recurrent operator; its body runs as often as is known, else once."""
        inner = _Reader(self.net.copy(), self.model)
        inner.shapes, inner.numbers = dict(self.shapes), dict(self.numbers)
        before = len(inner.net.operators)
        inner.read(body, [])
        once = sum(operator.macs for operator in inner.net.operators[before:])
        times = self.numbers.get(node.input[0]) if node.op_type == "Loop" and node.input else None
        if node.op_type == "Scan" and node.input:
            times = next(iter(self.shape(node.input[-1])), None)
        if times is None:
            self.net.missing.append(f"{node.name or node.op_type}: how often it runs is not known; counted once.")
        read = [name for operator in inner.net.operators[before:] for name in operator.weights]
        for name in read:
            self.net.weights.setdefault(name, inner.net.weights[name])
        count = int(times or 1)
        self.net.operator(node.name or node.output[0], node.op_type, "recurrent", once * max(count, 1),
                          [*node.input, *read], node.output)  # fmt: skip


def _readers(graph: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _draws(op: str) -> bool:
    return bool(re.match(r"Random|Multinomial|Bernoulli", op))


def _bytes(shape: Shape, data_type: int) -> int:
    return -(-int(prod(shape) * type_bytes(data_type) * 2) // 2)
