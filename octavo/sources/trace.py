"""A captured graph run node by node: every value by its node's name, with what it was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.model import Edge, Program, TensorValue
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput
from octavo.sources.qdq import codes_name, outline
from octavo.sources.torch import rebuild

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True)
class Traced:
    """The value of a node. `before`: the nodes that it is computed from; `weight`: the tensor that it multiplies by;
    `tensors`: all that it uses."""

    name: str
    operator: str
    array: NDArray[Any]
    before: tuple[str, ...]
    weight: str
    tensors: tuple[str, ...]


class Trace:
    """The values of `program` on `inputs`, in order: the network's inputs and every node that gives floats.

    With `edges` every value is as its grid shows it: the simulation of a static model. Raises BadInput for inputs that
    the program does not take.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, TensorValue],
        inputs: Mapping[str, NDArray[Any]],
        edges: Iterable[Edge] = (),
    ) -> None:
        edges = tuple(edges)
        floats = {
            name: value if isinstance(value, np.ndarray) else value.dequantize() for name, value in tensors.items()
        }
        self._given_all = program, dict(tensors), dict(inputs), edges
        self._exported = outline(program, edges, tensors) if edges else rebuild(program, floats)
        self._codes = {codes_name(edge) for edge in edges}
        self._seen = {f"{edge.name}_seen": edge.name for edge in edges}
        signature = self._exported.graph_signature
        self.inputs = tuple(str(name) for name in signature.user_inputs)
        self._weights = {spec.arg.name: str(spec.target) for spec in signature.input_specs if spec.target}
        self.outputs = tuple(self._seen.get(str(name), str(name)) for name in signature.user_outputs)
        self._held = self._run(inputs)
        self.values = tuple(self._traced())

    def variants(self, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
        """(what was done, the node's value then) for likely mistakes in a layer: its weight's scales dropped, its
        weight's or its input's height and width swapped, a matrix transposed; of an output also the scales of all
        weights dropped. What follows the layer up to `name` is computed too."""
        chain = self._chain(name)
        for what, place, value in self._changes(chain[0]) if chain else ():
            arguments = [self._held[item.name] if hasattr(item, "name") else item for item in chain[0].args]
            yield what, self._again(chain[0], [*arguments[:place], value, *arguments[place + 1 :]], chain[1:])
        program, tensors, inputs, edges = self._given_all
        if name in self.outputs and any(isinstance(value, QuantizedTensor) for value in tensors.values()):
            bare: dict[str, TensorValue] = {key: _bare(value) for key, value in tensors.items()}
            yield "the scales of all weights dropped", Trace(program, bare, inputs, edges).value(name)

    def value(self, name: str) -> NDArray[Any]:
        """One of `values`. Raises KeyError."""
        return {item.name: item.array for item in self.values}[name]

    def _changes(self, node: Any) -> Iterator[tuple[str, int, Any]]:
        """(what, which argument, its changed value) of a layer."""
        import torch

        weight = self._given_all[1].get(self._weights.get(getattr(node.args[1], "name", ""), ""))
        if isinstance(weight, QuantizedTensor):
            yield "its weight's scales dropped", 1, torch.from_numpy(_bare(weight))
        for what, place, axes in (
            ("its weight's height and width swapped", 1, (2, 3)), ("its input's height and width swapped", 0, (2, 3)),
            ("its weight's rows and columns swapped", 1, (0, 1)),
        ):  # fmt: skip
            value = self._held[node.args[place].name]
            square = value.dim() == (2 if axes == (0, 1) else 4) and value.shape[axes[0]] == value.shape[axes[1]]
            if square and value.shape[axes[0]] > 1:
                yield what, place, value.transpose(*axes).contiguous()

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """{node: its value}."""
        import torch

        held: dict[str, Any] = {}

        class Watch(torch.fx.Interpreter):
            def run_node(self, n: Node) -> Any:
                held[n.name] = super().run_node(n)
                return held[n.name]

        given = [self._given(spec, inputs) for spec in self._exported.graph_signature.input_specs]
        with torch.inference_mode():
            Watch(self._exported.graph_module).run(*given)
        return held

    def _given(self, spec: Any, inputs: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        if spec.kind.name != "USER_INPUT":
            exported = self._exported
            return exported.state_dict.get(str(spec.target), exported.constants.get(str(spec.target)))
        if spec.arg.name not in inputs:
            raise BadInput(f"The program takes {', '.join(self.inputs)}; {spec.arg.name} was not given.")
        return torch.from_numpy(np.ascontiguousarray(inputs[spec.arg.name]))

    def _traced(self) -> Iterator[Traced]:
        for node in self._exported.graph.nodes:
            name = self._seen.get(node.name, node.name)
            value = self._held.get(node.name)
            computed = node.op == "call_function" or node.name in self.inputs
            if not computed or node.name in self._codes or not hasattr(value, "is_floating_point"):
                continue
            if value is None or not value.is_floating_point() or self._has_edge(node):
                continue
            source = self._source(node) if node.name in self._seen else node
            weights = [self._weights[item.name] for item in source.all_input_nodes if item.name in self._weights]
            big = [item for item in weights if self._rank(item) > 1]
            yield Traced(
                name, _operator(source), value.numpy(), self._before(source), big[0] if big else "", tuple(weights)
            )

    def _has_edge(self, node: Node) -> bool:
        return any(user.name in self._codes for user in node.users)

    def _source(self, seen: Node) -> Node:
        """The node whose value an edge's dequantised one is."""
        found: Node = seen.all_input_nodes[0].all_input_nodes[0]
        return found

    def _before(self, node: Node) -> tuple[str, ...]:
        """Names of the values that a node is computed from; through values that are not listed to those that are."""
        found: dict[str, None] = {}
        for item in node.all_input_nodes:
            if item.name in self._weights:
                continue
            value = self._held.get(item.name)
            if not hasattr(value, "is_floating_point"):
                found |= dict.fromkeys(self._before(item))
            else:
                found[self._seen.get(item.name, item.name)] = None
        return tuple(found)

    def _rank(self, weight: str) -> int:
        held = self._exported.state_dict.get(weight, self._exported.constants.get(weight))
        return 0 if held is None else int(held.dim())

    def _chain(self, name: str) -> list[Any]:
        """The layer that a value comes from and the operators that follow it, the value's own last."""
        nodes = {self._seen.get(node.name, node.name): node for node in self._exported.graph.nodes}
        node, chain = nodes.get(name), list[Any]()
        while node is not None and node.op == "call_function":
            chain.insert(0, node)
            if _operator(node) in ("conv2d", "linear"):
                return chain
            computed = [item for item in node.all_input_nodes if item.name not in self._weights]
            node = computed[0] if len(computed) == 1 else None
        return []

    def _again(self, node: Any, arguments: list[Any], following: list[Any]) -> NDArray[Any]:
        import torch

        with torch.inference_mode():
            value = node.target(*arguments, **node.kwargs)
            last = node
            for item in following:
                given = [
                    value if part is last else self._held[part.name] if hasattr(part, "name") else part
                    for part in item.args
                ]
                value, last = item.target(*given, **item.kwargs), item
        found: NDArray[Any] = value.numpy()
        return found


def _operator(node: Node) -> str:
    """conv2d, of aten.conv2d.default; `input` for an input."""
    if node.op != "call_function":
        return "input"
    parts = str(node.target).split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _bare(value: TensorValue) -> NDArray[np.float32]:
    """Codes taken for numbers; floats as they are."""
    return value.codes.astype(np.float32) if isinstance(value, QuantizedTensor) else value
