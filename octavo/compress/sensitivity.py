"""Which layers a model can least afford in integers: one at a time, and all up to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.compress.front import seen_through
from octavo.compress.nodes import Layer, layers, operator
from octavo.compress.walk import Sample, Walk, evenly, samples
from octavo.core.estimate import finite
from octavo.core.model import Edge
from octavo.core.tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

SAMPLES = 16
AWAY = 6.0  # dB: a layer that alone costs as much as the whole model bar 6 dB dominates it


@dataclass(frozen=True)
class LayerNoise:
    """A layer's SQNR in dB at the program's outputs: `alone` with only this layer's weights and result in integers,
    `upto` with this layer and all before it. Infinite where nothing changed."""

    node: str
    weight: str
    alone: float
    upto: float


@dataclass(frozen=True)
class Sensitivity:
    """Every layer in order of execution; `whole`: all in integers; `keep`: the layers worth keeping in float, worst
    first, each of which alone is within AWAY of the whole model's noise."""

    layers: tuple[LayerNoise, ...]
    whole: float
    keep: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As JSON, for the lineage and the recipe."""
        return {
            "step": "sensitivity",
            "whole_db": finite(self.whole),
            "keep": list(self.keep),
            "layers": [asdict(item) | {"alone": finite(item.alone), "upto": finite(item.upto)} for item in self.layers],
        }


def sensitivity(
    exported: ExportedProgram,
    edges: Sequence[Edge],
    weights: Mapping[str, QuantizedTensor],
    batches: Iterable[Sample],
) -> Sensitivity:
    """SQNR at the outputs per layer, over at most SAMPLES samples. A layer's result is the next value behind it that
    has an edge. The cost is two runs per layer and sample."""
    import torch

    given = evenly(list(samples(exported, batches)), SAMPLES)
    found = [layer for layer in layers(exported) if layer.weight in weights]
    by_name = {edge.name: edge for edge in edges}
    decoded = {name: torch.from_numpy(value.dequantize()) for name, value in weights.items()}
    order = {node.name: index for index, node in enumerate(exported.graph.nodes)}
    plain = _outputs(exported, {}, {}, given)
    noises = []
    for layer in found:
        own = {name: by_name[name] for name in _result(layer, by_name)}
        alone = _outputs(exported, {layer.weight: decoded[layer.weight]}, own, given)
        before = [item for item in found if order[item.node.name] <= order[layer.node.name]]
        last = max(order[name] for name in (*own, layer.node.name))
        part = {name: edge for name, edge in by_name.items() if order[name] <= last}
        upto = _outputs(exported, {item.weight: decoded[item.weight] for item in before}, part, given)
        noises.append(LayerNoise(layer.node.name, layer.weight, _db(plain, alone), _db(plain, upto)))
    every = _db(plain, _outputs(exported, decoded, by_name, given))
    worst = sorted((item for item in noises if item.alone < every + AWAY), key=lambda item: item.alone)
    return Sensitivity(tuple(noises), every, tuple(item.weight for item in worst))


def whole(
    exported: ExportedProgram, edges: Sequence[Edge], weights: Mapping[str, QuantizedTensor], batches: Iterable[Sample]
) -> float:
    """SQNR in dB at the outputs with everything in integers."""
    import torch

    given = list(samples(exported, batches))
    decoded = {name: torch.from_numpy(value.dequantize()) for name, value in weights.items()}
    noisy = _outputs(exported, decoded, {edge.name: edge for edge in edges}, given)
    return _db(_outputs(exported, {}, {}, given), noisy)


def _outputs(
    exported: ExportedProgram,
    weights: Mapping[str, torch.Tensor],
    edges: Mapping[str, Edge],
    given: list[dict[str, torch.Tensor]],
) -> NDArray[np.float64]:
    """All float outputs of all samples, flat."""
    walk = Walk(exported, weights)

    def look(node: Node, result: Any) -> Any:
        return seen_through(result, edges[node.name]) if node.name in edges else result

    parts = [item for sample in given for item in walk(sample, look) if item.is_floating_point()]
    return np.concatenate([item.double().numpy().reshape(-1) for item in parts])


def _result(layer: Layer, edges: Mapping[str, Edge]) -> list[str]:
    """The edge on the layer's result: its own, or that of the activation computed with it."""
    if layer.node.name in edges:
        return [layer.node.name]
    return [user.name for user in layer.node.users if user.name in edges and operator(user)]


def _db(plain: NDArray[np.float64], noisy: NDArray[np.float64]) -> float:
    error = float(((plain - noisy) ** 2).sum())
    return round(10 * float(np.log10((plain**2).sum() / error)), 3) if error else float("inf")
