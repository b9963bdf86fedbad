"""Facts of a torch.export graph, out of its JSON form: what a compressed network and an opened .pt2 both hold.

Only the JSON is read: no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from octavo.core.facts import ModelFacts, OperatorKind, WeightFacts
from octavo.core.model import Program
from octavo.errors import BadInput
from octavo.sources.facts.network import Network, Shape, kinds

BYTES = {  # torch._export.serde.schema.ScalarType
    1: 1.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 8.0, 6: 2.0, 7: 4.0, 8: 8.0, 9: 4.0, 10: 8.0, 11: 16.0, 12: 1.0, 13: 2.0,
    28: 2.0, 29: 1.0, 30: 1.0, 31: 1.0, 32: 1.0, 33: 1.0, 34: 4.0, 35: 8.0,
}  # fmt: skip
KINDS_OF_INPUT = (
    ("parameter", "parameter_name"),
    ("buffer", "buffer_name"),
    ("tensor_constant", "tensor_constant_name"),
)


def graph_facts(program: Program, stored: Mapping[str, WeightFacts], name: str, origin: str = "") -> ModelFacts:
    """Facts of a graph program whose tensors are stored as `stored` says, by name.

    Raises BadInput when the JSON lacks what a graph has.
    """
    try:
        return _Reader(program.body, stored).facts(name, origin or "a torch.export graph")
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise BadInput(f"{name}: the program graph is damaged ({type(error).__name__}: {error}).") from error


class _Reader:
    def __init__(self, body: dict[str, Any], stored: Mapping[str, WeightFacts]) -> None:
        module = body["exported"]["graph_module"]
        self.graph, self.signature = module["graph"], module["signature"]
        self.net, self.kinds = Network(roles_known=True), kinds("aten")
        self.shapes: dict[str, Shape] = {}
        self.free: dict[str, int] = {}
        for key, meta in self.graph["tensor_values"].items():
            self.shapes[key] = tuple(self._size(size) for size in meta["sizes"])
            self.net.edge(key, self.shapes[key], BYTES.get(meta["dtype"], 4.0))
        for key, weight in stored.items():
            self.net.weights[key] = weight
        self._bind(body.get("aliases", {}))

    def _bind(self, aliases: Mapping[str, str]) -> None:
        """The graph's own names of its parameters, buffers and constants stand for the stored tensors."""
        for spec in self.signature["input_specs"]:
            for kind, key in KINDS_OF_INPUT:
                if kind in spec:
                    argument, stored = spec[kind]["arg"]["name"], aliases.get(spec[kind][key], spec[kind][key])
                    self.net.edges.pop(argument, None)
                    if stored in self.net.weights:
                        if argument != stored:
                            self.net.alias(argument, stored)
                    else:
                        self.net.constants.add(argument)

    def _size(self, size: dict[str, Any]) -> int:
        """A size; a free one is what it was in the example that the graph was exported with."""
        if "as_int" in size:
            return int(size["as_int"])
        expression = size["as_expr"]
        hint = expression.get("hint") or {}
        value = int(hint.get("as_int", 1)) if isinstance(hint, dict) else 1
        self.free[str(expression["expr_str"])] = value
        return value

    def facts(self, name: str, origin: str) -> ModelFacts:
        for node in self.graph["nodes"]:
            self._node(node)
        if self.free:
            self.net.missing.append(f"{len(self.free)} free sizes, planned as in the example the graph was made with.")
        self.net.unknown_operators()
        inputs = [spec["user_input"]["arg"] for spec in self.signature["input_specs"] if "user_input" in spec]
        outputs = [spec["user_output"]["arg"] for spec in self.signature["output_specs"] if "user_output" in spec]
        return self.net.facts(name, _names(inputs), _names(outputs), origin)

    def _node(self, node: dict[str, Any]) -> None:
        op = _operator(node["target"])
        inputs, outputs = list(_names([item["arg"] for item in node["inputs"]])), list(_names(node["outputs"]))
        if op is None or not outputs:
            return  # arithmetic on sizes, assertions
        if inputs and all(self.net.is_constant(name) for name in inputs):
            source = next((name for name in inputs if self.net.resolve(name) in self.net.weights), None)
            for name in outputs:
                self.net.edges.pop(name, None)
                if source is not None:
                    self.net.alias(name, source)
                else:
                    self.net.constants.add(name)
            return
        kind = self.kinds.get(op, "other")
        macs, kind = self._macs(op, kind, node, inputs, outputs)
        self.net.operator(outputs[0], op, kind, macs, inputs, outputs)

    def _macs(
        self, op: str, kind: OperatorKind, node: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> tuple[int, OperatorKind]:
        out = prod(self.shapes[outputs[0]])
        if kind == "conv":
            return self._convolution(op, node, inputs, out)
        if kind == "attention":
            query, key, value = (self.shapes[name] for name in inputs[:3])
            return prod(query) * key[-2] + prod(query[:-1]) * value[-2] * value[-1], kind
        if op in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            matrices = [self.shapes[name] for name in inputs if self.net.is_constant(name)]
            steps = prod(self.shapes[inputs[0]][:-1])
            return steps * sum(prod(shape) for shape in matrices if len(shape) == 2), kind
        if kind != "matmul":
            return 0, kind
        if op == "einsum":
            return self._einsum(node, inputs), "attention"
        first, second = inputs[1:3] if op in ("addmm", "baddbmm") else inputs[:2]
        fixed = self.net.is_constant(first) or self.net.is_constant(second)
        return out * self.shapes[first][-1], "matmul" if fixed else "attention"

    def _convolution(self, op: str, node: dict[str, Any], inputs: list[str], out: int) -> tuple[int, OperatorKind]:
        """Weights [O, I / groups, k…]; transposed [I, O / groups, k…], once per element of the input."""
        given = {item["name"]: item["arg"] for item in node["inputs"]}
        weight = self.shapes[inputs[1]]
        groups = int(given.get("groups", {}).get("as_int", 1))
        transposed = "transpose" in op or bool(given.get("transposed", {}).get("as_bool"))
        count = prod(self.shapes[inputs[0]]) if transposed else out
        channels = weight[0] // groups if transposed else weight[1]
        return count * prod(weight[1:]), "depthwise" if groups > 1 and channels == 1 else "conv"

    def _einsum(self, node: dict[str, Any], inputs: list[str]) -> int:
        equation = next((item["arg"]["as_string"] for item in node["inputs"] if "as_string" in item["arg"]), "")
        terms = equation.replace(" ", "").split("->")[0].split(",")
        sizes: dict[str, int] = {}
        for term, name in zip(terms, inputs, strict=False):
            sizes |= dict(zip(reversed(term), reversed(self.shapes[name]), strict=False))
        return prod(sizes.values()) if len(terms) > 1 else 0


def _operator(target: str) -> str | None:
    """`torch.ops.aten.conv2d.default` → conv2d; None for what is no tensor operator."""
    parts = target.split(".")
    return parts[3] if target.startswith("torch.ops.") and len(parts) > 3 else None


def _names(arguments: list[dict[str, Any]]) -> Iterator[str]:
    """The tensors among the arguments, in order."""
    for argument in arguments:
        if "as_tensor" in argument:
            yield argument["as_tensor"]["name"]
        elif "as_tensors" in argument:
            yield from (item["name"] for item in argument["as_tensors"])
        elif "as_optional_tensor" in argument:
            yield from _names([argument["as_optional_tensor"]])
        elif "as_optional_tensors" in argument:
            yield from _names(argument["as_optional_tensors"])
