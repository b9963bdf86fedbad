"""A network's facts as a reader collects them: operators in running order, edges, weights, and what is unknown."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from octavo.core.architecture import Role
from octavo.core.facts import EdgeFacts, ModelFacts, OperatorFacts, OperatorKind, WeightFacts

Shape = tuple[int, ...]
ROLE_OF: dict[str, Role] = {
    "matmul": "matmul", "conv": "conv", "depthwise": "conv", "gather": "embedding",
}  # fmt: skip


@cache
def kinds(format: str) -> dict[str, OperatorKind]:
    """{operator name: kind} of one format, from operators.toml."""
    table = tomllib.loads(Path(__file__).with_name("operators.toml").read_text("utf-8"))[format]
    return {name: kind for kind, names in table.items() for name in names}


class Network:
    """Collects. An alias is another name of an edge (a quantised value and its float twin) or of a weight."""

    def __init__(self, roles_known: bool = False) -> None:
        self.operators: list[OperatorFacts] = []
        self.edges: dict[str, EdgeFacts] = {}
        self.weights: dict[str, WeightFacts] = {}
        self.constants: set[str] = set()
        self.written: set[str] = set()
        self.missing: list[str] = []
        self._alias: dict[str, str] = {}
        self._roles_known = roles_known

    def copy(self) -> Network:
        """One that can be added to without touching this."""
        made = Network(self._roles_known)
        made.take(self)
        return made

    def take(self, other: Network) -> None:
        """Become what `other` is by now."""
        self.operators, self.missing = list(other.operators), list(other.missing)
        self.edges, self.weights, self._alias = dict(other.edges), dict(other.weights), dict(other._alias)
        self.constants, self.written = set(other.constants), set(other.written)

    def resolve(self, name: str) -> str:
        """The name under which an edge or weight is kept."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def alias(self, name: str, of: str) -> None:
        if name != self.resolve(of):
            self._alias[name] = self.resolve(of)

    def is_constant(self, name: str) -> bool:
        """Whether the value is known before the model runs."""
        found = self.resolve(name)
        return found in self.weights or found in self.constants

    def weight(self, name: str, shape: Shape, stored: str, size: int) -> None:
        """A stored tensor; its role is `other` until an operator reads it."""
        self.weights[name] = WeightFacts(name, shape, "other", stored, size)

    def edge(self, name: str, shape: Shape, element_bytes: float) -> None:
        self.edges[name] = EdgeFacts(name, shape, element_bytes)

    def operator(
        self, name: str, op: str, kind: OperatorKind, macs: int, inputs: Iterable[str], outputs: Iterable[str]
    ) -> None:
        """Append an operator; which of its inputs are weights and which edges is found here."""
        named = list(dict.fromkeys(self.resolve(item) for item in inputs if item))
        weights = tuple(item for item in named if item in self.weights)
        edges = tuple(item for item in named if item in self.edges)
        written = tuple(dict.fromkeys(self.resolve(item) for item in outputs if self.resolve(item) in self.edges))
        self.operators.append(OperatorFacts(name, op, kind, macs, weights, edges, written))
        self.written.update(written)
        for item in () if self._roles_known else weights:
            self._give_role(item, kind)

    def _give_role(self, name: str, kind: str) -> None:
        weight, role = self.weights[name], ROLE_OF.get(kind)
        if role is None or len(weight.shape) < 2:
            return
        if weight.role == "other" or (weight.role == "matmul" and role == "embedding"):  # tied: an embedding first
            self.weights[name] = replace(weight, role=role)

    def _final(self, operator: OperatorFacts) -> OperatorFacts:
        """With the names that its edges have by now: an alias may have been found after the operator."""
        if not any(name in self._alias for name in (*operator.inputs, *operator.outputs)):
            return operator
        inputs, outputs = (tuple(map(self.resolve, names)) for names in (operator.inputs, operator.outputs))
        return replace(operator, inputs=inputs, outputs=outputs)

    def unknown_operators(self) -> None:
        """Say which operators nothing is known about."""
        names = sorted({operator.op for operator in self.operators if operator.kind == "other"})
        if names:
            self.missing.append(f"Operators whose cost is not known: {', '.join(names)}.")

    def facts(self, name: str, inputs: Iterable[str], outputs: Iterable[str], origin: str) -> ModelFacts:
        operators = tuple(self._final(operator) for operator in self.operators)
        used = {item for operator in operators for item in (*operator.inputs, *operator.outputs)}
        ends_in = tuple(dict.fromkeys(self.resolve(item) for item in inputs))
        ends_out = tuple(dict.fromkeys(self.resolve(item) for item in outputs))
        weights = tuple(self.weights.values())
        parameters = sum(weight.parameters for weight in weights)
        return ModelFacts(
            name=name,
            kind="network",
            parameters=parameters,
            active_parameters=parameters,
            weights=weights,
            operators=operators,
            edges=tuple(edge for key, edge in self.edges.items() if key in used or key in ends_in or key in ends_out),
            inputs=tuple(item for item in ends_in if item in self.edges),
            outputs=tuple(item for item in ends_out if item in self.edges),
            missing=tuple(self.missing),
            origin=origin,
        )
