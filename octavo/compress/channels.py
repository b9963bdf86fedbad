"""Which channels of a graph may be scaled together without changing what it computes.

A class is a set of output channels of layers and the input channels that read them, joined by operators for which
f(s·x) = s·f(x) holds channel by channel with s > 0 (ReLU, pools, concatenation, sums of equally scaled values).
Dividing the producers' rows by s and multiplying the consumers' columns by s then changes nothing (Nagel et al. 2019,
arXiv:1906.04721, section 4.1, for any graph and not only for chains of pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.compress.nodes import Layer, is_float, layers, operator, parameters, value

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

HOMOGENEOUS = (
    "relu", "leaky_relu", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "dropout",
    "feature_dropout", "clone", "contiguous", "alias", "detach",
)  # fmt: skip
Indices = NDArray[np.int64]
FROZEN = 0


@dataclass(frozen=True)
class Ends:
    """One layer's channels by class: `rows` [O] of its outputs, `columns` [I] of the inputs it reads (all groups).
    Class 0 is frozen: those channels must stay as they are."""

    layer: Layer
    rows: Indices
    columns: Indices


class Classes:
    """Union-find over channels, walked once through the graph."""

    def __init__(self, exported: ExportedProgram) -> None:
        self.parent = [FROZEN]
        self.named = parameters(exported)
        self.by_node = {layer.node: layer for layer in layers(exported)}
        self.of: dict[Node, Indices] = {}
        self._walk(exported)

    def ends(self) -> list[Ends]:
        """Every layer's rows and columns by final class; layers whose weights are read twice are frozen."""
        found = []
        for node, layer in self.by_node.items():
            columns = self.of.get(layer.input, np.zeros(0, np.int64))
            if len(columns) != _inputs(layer):  # its channels lie along another axis than they are followed on
                columns = np.zeros(_inputs(layer), np.int64)
            found.append(Ends(layer, self._final(self.of[node]), self._final(columns)))
        return found

    def _walk(self, exported: ExportedProgram) -> None:
        for node in exported.graph.nodes:
            if node.op == "output":
                for item in node.all_input_nodes:
                    self._freeze(item)
            elif is_float(node):
                self.of[node] = self._channels(node)
            else:
                for item in node.all_input_nodes:
                    self._freeze(item)
        weights = [layer.weight for layer in self.by_node.values()]
        for layer in self.by_node.values():
            if weights.count(layer.weight) > 1 or len(layer.weight_node.users) > 1:
                self._freeze(layer.node)
                self._freeze(layer.input)

    def _channels(self, node: Node) -> Indices:
        """The class of each channel of a node's value."""
        name = operator(node)
        layer = self.by_node.get(node)
        if layer is not None:
            outputs = int(value(layer.weight_node).shape[0])
            if len(self.of.get(layer.input, ())) != _inputs(layer):
                self._freeze(layer.input)
            return self._fresh(outputs) if layer.channel_axis == _axis(node) else np.zeros(outputs, np.int64)
        first: Any = node.args[0] if node.args else None
        if name in HOMOGENEOUS and first in self.of and _axis(first) == _axis(node):
            return self.of[first]
        if name == "cat" and self._along(node):
            return np.concatenate([self.of[item] for item in first])
        if name in ("add", "cat", "maximum", "minimum") and not node.kwargs:
            same = self._same(node)
            if same is not None:
                return same
        if name == "mean" and first in self.of and value(first).dim() == 4 and _over_space(node):
            return self.of[first]
        if name in ("flatten", "view", "reshape", "squeeze") and first in self.of:
            repeated = self._flattened(node, first)
            if repeated is not None:
                return repeated
        for item in node.all_input_nodes:
            self._freeze(item)
        return self._frozen(node)

    def _along(self, node: Node) -> bool:
        """Whether a cat joins channels."""
        axis = node.args[1] if len(node.args) > 1 else 0
        dims = value(node).dim()
        items: Any = node.args[0]
        alike = all(item in self.of and value(item).dim() == dims for item in items)
        return dims > 1 and axis in (1, 1 - dims) and alike

    def _same(self, node: Node) -> Indices | None:
        """The classes of values that are combined element by element, made one; None where a constant is among them."""
        items = list(node.all_input_nodes)
        shapes = {tuple(value(item).shape) for item in items if item in self.of}
        if operator(node) != "cat" and (len(shapes) != 1 or len(items) != 2):
            return None
        if any(item.name in self.named or item not in self.of for item in items):
            return None
        sizes = {len(self.of[item]) for item in items}
        if len(sizes) != 1:
            return None
        for other in items[1:]:
            for a, b in zip(self.of[items[0]], self.of[other], strict=True):
                self._unite(int(a), int(b))
        return self.of[items[0]]

    def _flattened(self, node: Node, first: Node) -> Indices | None:
        """Channels of [N, C, …] laid out in [N, C·…], each as often as it has positions."""
        before, after = value(first).shape, value(node).shape
        if len(before) < 2 or len(after) != 2 or int(before[0]) != int(after[0]) or _axis(first) != 1:
            return None
        return np.repeat(self.of[first], int(after[1]) // len(self.of[first]))

    def _fresh(self, count: int) -> Indices:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _frozen(self, node: Node) -> Indices:
        shape = value(node).shape
        axis = _axis(node)
        return np.zeros(int(shape[axis]) if len(shape) else 1, np.int64)

    def _freeze(self, node: Node) -> None:
        for item in self.of.get(node, ()):
            self._unite(int(item), FROZEN)

    def _root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def _unite(self, a: int, b: int) -> None:
        low, high = sorted((self._root(a), self._root(b)))
        self.parent[high] = low

    def _final(self, indices: Indices) -> Indices:
        return np.array([self._root(int(index)) for index in indices], np.int64)


def _inputs(layer: Layer) -> int:
    """Input channels, of all groups."""
    return int(value(layer.weight_node).shape[1]) * layer.groups


def _axis(node: Node) -> int:
    """Which axis holds the channels: 1 of [N, C, …] with positions, the last of a matrix."""
    return 1 if value(node).dim() > 2 else value(node).dim() - 1


def _over_space(node: Node) -> bool:
    axes = node.args[1] if len(node.args) > 1 else None
    return isinstance(axes, list | tuple) and {int(axis) % 4 for axis in axes} == {2, 3}  # type: ignore[call-overload]
