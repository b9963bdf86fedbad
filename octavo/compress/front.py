"""A graph run as a front: every node for all samples before the next, in float and in integers side by side.

So a layer can be adjusted to what really reaches it, its predecessors quantised and adjusted, in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from octavo.compress.annotate import elements
from octavo.compress.nodes import Layer, is_float, parameters, value
from octavo.compress.walk import Walk
from octavo.core.model import Edge

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

Tensors = list[Any]
Adjust = Callable[[Layer, Tensors, Tensors], None]
BUDGET = 1_500_000_000  # bytes of activations that a front may hold
LEVELS = {"int8": (-128, 127), "int16": (-32768, 32767)}


def seen_through(tensor: torch.Tensor, edge: Edge) -> torch.Tensor:
    """quantise → dequantise, as torch's quantized_decomposed computes it (multiplied by the float32 inverse)."""
    import torch

    low, high = LEVELS[edge.dtype]
    codes = torch.clamp(torch.round(tensor * (1.0 / edge.scale)) + edge.zero_point, low, high)
    return (codes - edge.zero_point) * edge.scale


def advance(
    exported: ExportedProgram,
    found: list[Layer],
    edges: Mapping[str, Edge],
    decoded: Mapping[str, torch.Tensor],
    given: list[dict[str, torch.Tensor]],
    adjust: Adjust,
) -> None:
    """Run the front. Before a layer of `found` is computed in integers, `adjust(layer, float inputs, integer inputs)`
    may change the tensors in `decoded` (by name), which that layer then reads."""
    import torch

    floats = Walk(exported)
    named = parameters(exported)
    by_node = {layer.node: layer for layer in found}
    exact: list[dict[Node, Any]] = [{} for _ in given]
    coarse: list[dict[Node, Any]] = [{} for _ in given]
    with torch.no_grad():
        for node, dead in zip(floats.nodes, floats._last, strict=True):
            if node.op == "output":
                return
            layer = by_node.get(node)
            if layer is not None:
                adjust(layer, [known[layer.input] for known in exact], [known[layer.input] for known in coarse])
                for place in (layer.weight_node, layer.bias_node):
                    if place is not None and named[place.name] in decoded:
                        for known in coarse:
                            known[place] = decoded[named[place.name]]
            edge = edges.get(node.name)
            for index, sample in enumerate(given):
                for known in (exact[index], coarse[index]):
                    result = _compute(node, known, floats, sample)
                    known[node] = seen_through(result, edge) if edge is not None and known is coarse[index] else result
                    for item in dead:
                        del known[item]


def _compute(node: Node, known: dict[Node, Any], walk: Walk, sample: dict[str, torch.Tensor]) -> Any:
    import torch

    if node.op == "placeholder":
        return walk.constants[node.name] if node.name in walk.constants else sample[node.name]
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda item: known[item])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def affordable(exported: ExportedProgram, wanted: int) -> int:
    """How many samples a front can hold within BUDGET, at most `wanted`."""
    walk = Walk(exported)
    live = peak = 0
    held: dict[Any, int] = {}
    for node, dead in zip(walk.nodes, walk._last, strict=True):
        if node.name not in walk.constants and is_float(node):
            held[node] = 4 * elements(node)
            live += held[node]
        peak = max(peak, live)
        live -= sum(held.pop(item, 0) for item in dead)
    return max(1, min(wanted, BUDGET // max(1, 2 * peak)))


def sizes(layer: Layer) -> tuple[int, ...]:
    """The weight's shape."""
    return tuple(int(n) for n in value(layer.weight_node).shape)
