"""Which values of a graph are quantised, and which of them share one scale: decided from a target's table alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.compress.nodes import is_float, operator, value
from octavo.compress.rules import Rules, rules
from octavo.errors import Refused

if TYPE_CHECKING:
    from torch.fx import Graph, Node

RELUS = {"relu": (0.0, None), "relu6": (0.0, 6.0)}


@dataclass(frozen=True)
class Group:
    """Values with one scale between them. `names`: nodes, in order of execution; `sources`: those of them that bring
    values of their own (the others only move these); `fixed`: scale and zero point that the target prescribes;
    `weight`: a constant that must be symmetric (a weight without a channel axis of its own)."""

    names: tuple[str, ...]
    sources: tuple[str, ...]
    fixed: tuple[float, int] | None = None
    weight: bool = False


@dataclass(frozen=True)
class Plan:
    """What calibration has to find. `floats`: [(node, why)] that stay in float; `fused`: {node: the activation after
    it} that has no scale of its own; `notes`: where a rule had to give way."""

    target: str
    dtype: str
    groups: tuple[Group, ...]
    floats: tuple[tuple[str, str], ...]
    fused: dict[str, str]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every node whose value is quantised."""
        return tuple(name for group in self.groups for name in group.names)


def annotate(
    graph: Graph,
    target: str = "common",
    dtype: str = "int8",
    *,
    weights: frozenset[str] | set[str] = frozenset(),
    keep: Sequence[str] = (),
) -> Plan:
    """The plan of a graph whose nodes carry the values' shapes (`meta["val"]`), as torch.export's do.

    `weights`: nodes of parameters that have codes of their own and of biases: they get no edge. `keep`: nodes that
    stay in float. Raises Refused when the target has no such type.
    """
    table = rules(target)
    if dtype not in table.types:
        raise Refused(f"{target} has no {dtype} activations.", f"It has {', '.join(table.types)}.")
    return _Annotation(graph, table, dtype, frozenset(weights), frozenset(keep)).plan()


class _Annotation:
    def __init__(self, graph: Graph, table: Rules, dtype: str, weights: frozenset[str], keep: frozenset[str]) -> None:
        self.nodes: list[Node] = list(graph.nodes)
        self.table, self.dtype, self.weights, self.keep = table, dtype, weights, keep
        self.parent: dict[Node, Node] = {}
        self.fused: dict[Node, Node] = {}
        self.floats: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.wanted: set[Node] = set()
        self.symmetric: set[Node] = set()

    def plan(self) -> Plan:
        self._fuse()
        quantised = {node for node in self.nodes if self._quantised(node)}
        for node in quantised:
            self._want(node)
        self._share(quantised)
        members: dict[Node, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if node in self.parent or node in self.wanted:
                members[self._root(node)].append(node)
        groups = [self._group(nodes) for nodes in members.values() if any(node in self.wanted for node in nodes)]
        fused = {node.name: after.name for node, after in self.fused.items()}
        return Plan(self.table.name, self.dtype, tuple(groups), tuple(self.floats), fused, tuple(self.notes))

    def _fuse(self) -> None:
        """Activations that the operator before them computes: that operator's own result gets no scale."""
        for node in self.nodes:
            kind = activation(node)
            before: Any = node.args[0] if kind else None
            if kind is None or not hasattr(before, "users") or before.name in self.keep:
                continue
            if len(before.users) == 1 and operator(before) in self.table.fused.get(kind, ()) and is_float(before):
                self.fused[before] = node

    def _quantised(self, node: Node) -> bool:
        """Whether the node runs on integers; if it could not, why is noted."""
        name = operator(node)
        if not name or not is_float(_one(node)):
            return False
        first = node.args[0] if node.args else None
        if node.name in self.keep or (activation(node) and getattr(first, "name", None) in self.keep):
            self.floats.append((node.name, "kept in float, as asked for"))
            return False
        if not self.table.quantised(name):
            self.floats.append(
                (node.name, self.table.floats.get(name, f"{name} has no int8 kernel on {self.table.name}"))
            )
            return False
        return name not in self.table.shared

    def _want(self, node: Node) -> None:
        """Scales for all that a quantised operator reads, and for what it computes unless the next one does."""
        weight = node.args[1] if operator(node) in self.table.weighted and len(node.args) > 1 else None
        biases = node.args[2:3] if operator(node) in self.table.weighted else ()
        for item in node.all_input_nodes:
            if item.name in self.weights or item in biases or not is_float(item) or item in self.fused:
                continue
            self.wanted.add(item)
            if item is weight and item.op in ("placeholder", "get_attr"):
                self.symmetric.add(item)
        if node not in self.fused and is_float(node):
            self.wanted.add(node)

    def _share(self, quantised: set[Node]) -> None:
        """Operators that only move values: one scale before and behind them. A joining one gives way where its inputs
        are prescribed different scales."""
        for node in self.nodes:
            name = operator(node)
            if name not in self.table.shared or node.name in self.keep or not is_float(_one(node)):
                continue
            before = [item for item in _moved(node) if is_float(_one(item)) and item.name not in self.weights]
            if name in self.table.joining and len({self._fixed(item) for item in before}) > 1:
                self.notes.append(
                    f"{node.name}: its inputs have prescribed scales that differ; the target rescales them"
                )
                self.wanted.update((*before, node))
                continue
            for item in before:
                self._join(item, node)

    def _fixed(self, node: Node) -> tuple[float, int] | None:
        kind = operator(self._root(node))
        return self.table.fixed.get(kind, {}).get(self.dtype)

    def _root(self, node: Node) -> Node:
        while self.parent.get(node, node) is not node:
            node = self.parent[node]
        return node

    def _join(self, first: Node, then: Node) -> None:
        """The earlier root stays root: it is a source."""
        a, b = self._root(first), self._root(then)
        self.parent.setdefault(a, a)
        self.parent[b] = a
        self.parent.setdefault(b, a)

    def _group(self, nodes: list[Node]) -> Group:
        named = [node for node in nodes if is_float(node)]
        moved = {node for node in nodes if operator(node) in self.table.shared and self._root(node) is not node}
        sources = [node for node in named if node not in moved or node.name in self.keep]
        return Group(
            tuple(node.name for node in named),
            tuple(node.name for node in (sources or named)),
            self._fixed(nodes[0]),
            any(node in self.symmetric for node in nodes),
        )


def activation(node: Node) -> str | None:
    """ "relu" or "relu6" where the node is one, by whatever name."""
    name = operator(node)
    if name in RELUS:
        return name
    if name in ("hardtanh", "clamp", "clamp_min"):
        low, high = bounds(node)
        return next((kind for kind, limits in RELUS.items() if limits == (low, high)), None)
    return None


def bounds(node: Node) -> tuple[float | None, float | None]:
    """What a clamp or hardtanh keeps its values within."""
    defaults = (-1.0, 1.0) if operator(node) == "hardtanh" else (None, None)
    names = ("min_val", "max_val") if operator(node) == "hardtanh" else ("min", "max")
    given: list[Any] = [
        node.args[index + 1] if len(node.args) > index + 1 else node.kwargs.get(name, default)
        for index, (name, default) in enumerate(zip(names, defaults, strict=True))
    ]
    low, high = (float(item) if isinstance(item, int | float) else None for item in given)
    return low, high


def _one(node: Node) -> Any:
    """The node, or for one that gives several values a stand-in with the first of them."""
    held = node.meta.get("val")
    if isinstance(held, list | tuple) and held:
        return _Several(held[0])
    return node


@dataclass(frozen=True)
class _Several:
    first: Any

    @property
    def meta(self) -> dict[str, Any]:
        return {"val": self.first}


def _moved(node: Node) -> list[Node]:
    """The inputs whose values a sharing operator passes on (never an index)."""
    first: Any = node.args[0]
    if isinstance(first, list | tuple):
        return [item for item in first if hasattr(item, "meta")]
    return [first] if hasattr(first, "meta") else []


def elements(node: Node) -> int:
    """How many numbers the node's value holds."""
    return int(value(node).numel())
