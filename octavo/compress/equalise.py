"""Cross-layer equalisation: channels scaled so that one step fits them all, the function unchanged.

`equalise` looks at weights alone (Nagel et al. 2019, arXiv:1906.04721, eq. 11: s = √(r₁/r₂), to convergence), for
scales per tensor. `equalise_activations` also looks at what flows between the layers (as SmoothQuant,
arXiv:2211.10438, eq. 4, does for transformers): where weights have a scale per output channel the producer's side is
free, and what is balanced is the range of a value's channel against the weights that read it. `absorb` moves what is
always there of a channel into the next bias (Nagel et al., eq. 15).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.compress.channels import FROZEN, Classes, Ends
from octavo.compress.nodes import Layer, is_float, layers, operator, tensors, value
from octavo.compress.rounding import geometry
from octavo.compress.surgery import duplicate
from octavo.compress.walk import Walk, samples

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

Floats = NDArray[np.float64]
ROUNDS, SETTLED = 40, 1e-3
REACH = 256.0  # the largest factor that a channel is scaled by, either way


def equalise(exported: ExportedProgram) -> ExportedProgram:
    """The same function with weights whose channels have comparable ranges on both sides of every value."""
    ends = Classes(exported).ends()
    size = _size(ends)
    weights = {end.layer.weight: _weight(exported, end.layer) for end in ends}
    factors = np.ones(size)
    for _ in range(ROUNDS):
        rows, columns = np.zeros(size), np.zeros(size)
        for end in ends:
            weight = _scaled(weights[end.layer.weight], end, factors)
            np.maximum.at(rows, end.rows, np.abs(weight).max(axis=(1, 2)))
            np.maximum.at(columns, end.columns, _column_max(weight, end.layer))
        step = np.ones(size)
        both = (rows > 0) & (columns > 0)
        step[both] = np.sqrt(rows[both] / columns[both])
        step[FROZEN] = 1.0
        factors = np.clip(factors * step, 1 / REACH, REACH)
        if np.abs(np.log(step)).max() < SETTLED:
            break
    return apply(exported, ends, factors)


def equalise_activations(
    exported: ExportedProgram, peaks: Mapping[str, Floats], strength: float = 0.5
) -> ExportedProgram:
    """The same function with values whose channels have comparable ranges. `peaks`: {layer's node: the largest
    |x| of each of its input channels} (see `channel_peaks`); `strength` 0 … 1: how much of the
    imbalance moves to the weights."""
    ends = Classes(exported).ends()
    size = _size(ends)
    seen, columns = np.zeros(size), np.zeros(size)
    for end in ends:
        np.maximum.at(seen, end.columns, peaks[end.layer.node.name])
        np.maximum.at(columns, end.columns, _column_max(_weight(exported, end.layer), end.layer))
    factors = np.ones(size)
    both = (seen > 0) & (columns > 0)
    factors[both] = seen[both] ** strength / columns[both] ** (1 - strength)
    for end in ends:  # only ratios within a value matter; the mean stays
        inside = np.unique(end.columns[both[end.columns] & (end.columns != FROZEN)])
        if inside.size:
            factors[inside] /= np.exp(np.log(factors[inside]).mean())
    factors[FROZEN] = 1.0
    return apply(exported, ends, np.clip(factors, 1 / REACH, REACH))


def channel_peaks(exported: ExportedProgram, batches: Iterable[Mapping[str, Any]]) -> dict[str, Floats]:
    """{layer's node: largest |x| per input channel, float64 [I]} over the samples."""
    found: dict[str, Floats] = {}
    readers: dict[Any, list[Layer]] = {}
    for layer in layers(exported):
        readers.setdefault(layer.input, []).append(layer)

    def look(node: Node, result: Any) -> Any:
        for layer in readers.get(node, ()):
            axis = layer.channel_axis % result.dim()
            others = [item for item in range(result.dim()) if item != axis]
            peak = (result.abs().amax(dim=others) if others else result.abs()).double().numpy()
            found[layer.node.name] = np.maximum(found.get(layer.node.name, 0.0), peak)
        return result

    walk = Walk(exported)
    for sample in samples(exported, batches):
        walk(sample, look)
    return found


def apply(exported: ExportedProgram, ends: list[Ends], factors: Floats) -> ExportedProgram:
    """Divide each row by its class's factor, with its bias, and multiply each column by it."""
    import torch

    held = tensors(exported)
    made: dict[str, torch.Tensor] = {}
    for end in ends:
        layer = end.layer
        if (factors[end.rows] == 1).all() and (factors[end.columns] == 1).all():
            continue
        shape = held[layer.weight].shape
        weight = _scaled(_weight(exported, layer), end, factors).reshape(tuple(shape))
        made[layer.weight] = torch.from_numpy(weight.astype(np.float32))
        if layer.bias is not None:
            bias = held[layer.bias].detach().double().numpy() / factors[end.rows]
            made[layer.bias] = torch.from_numpy(bias.astype(np.float32))
    return duplicate(exported, made)


def absorb(exported: ExportedProgram, batches: Iterable[Mapping[str, Any]]) -> tuple[ExportedProgram, int]:
    """Move the part of a channel that is above zero on every sample into the biases behind it: relu(x) − c =
    relu(x − c) wherever x ≥ c. Only where one layer reads it through a ReLU and pads nothing. Returns the channels
    moved."""
    import torch

    pairs = [pair for pair in _pairs(exported) if _unpadded(pair[1])]
    lows = _lows(exported, {first.node for first, _ in pairs}, batches)
    held = tensors(exported)
    made: dict[str, torch.Tensor] = {}
    moved = 0
    for first, then in pairs:
        constant = np.maximum(lows[first.node.name], 0.0)
        if first.bias is None or then.bias is None or first.bias in made or then.bias in made or not constant.any():
            continue
        moved += int((constant > 0).sum())
        weight = _weight(exported, then).sum(axis=2)  # [O, I of its group]
        inputs = constant.reshape(then.groups, -1)
        rows = weight.reshape(then.groups, -1, weight.shape[1])
        gain = np.einsum("goi,gi->go", rows, inputs).reshape(-1)
        made[first.bias] = torch.from_numpy((held[first.bias].detach().double().numpy() - constant).astype(np.float32))
        made[then.bias] = torch.from_numpy((held[then.bias].detach().double().numpy() + gain).astype(np.float32))
    return duplicate(exported, made), moved


def _pairs(exported: ExportedProgram) -> list[tuple[Layer, Layer]]:
    """Layer → ReLU → layer, with no other reader between."""
    by_node = {layer.node: layer for layer in layers(exported)}
    found = []
    for then in by_node.values():
        relu = then.input
        if operator(relu) != "relu" or len(relu.users) != 1:
            continue
        before: Any = relu.args[0]
        if before in by_node and len(before.users) == 1 and is_float(before):
            found.append((by_node[before], then))
    return found


def _unpadded(layer: Layer) -> bool:
    if not layer.convolution:
        return True
    padding = layer.node.args[4] if len(layer.node.args) > 4 else layer.node.kwargs.get("padding", 0)
    return not isinstance(padding, str) and not any(geometry(layer, value(layer.weight_node).dim() - 2)[1])


def _lows(exported: ExportedProgram, wanted: set[Node], batches: Iterable[Mapping[str, Any]]) -> dict[str, Floats]:
    """{node: per channel what every value exceeds}: the smallest seen, and at most three deviations below the mean."""
    seen: dict[str, list[Floats]] = {}

    def look(node: Node, result: Any) -> Any:
        if node in wanted:
            axis = 1 if result.dim() > 2 else result.dim() - 1
            flat = result.double().transpose(0, axis).reshape(result.shape[axis], -1).numpy()
            now = [flat.min(axis=1), np.full(len(flat), flat.shape[1]), flat.sum(axis=1), (flat**2).sum(axis=1)]
            old = seen.get(node.name)
            sums = now[1:] if old is None else [a + b for a, b in zip(now[1:], old[1:], strict=True)]
            seen[node.name] = [now[0] if old is None else np.minimum(now[0], old[0]), *sums]
        return result

    walk = Walk(exported)
    for sample in samples(exported, batches):
        walk(sample, look)
    found = {}
    for name, (low, count, total, square) in seen.items():
        mean = total / count
        found[name] = np.minimum(low, mean - 3 * np.sqrt(np.maximum(square / count - mean**2, 0)))
    return found


def _size(ends: list[Ends]) -> int:
    return 1 + max((int(item.max(initial=0)) for end in ends for item in (end.rows, end.columns)), default=0)


def _weight(exported: ExportedProgram, layer: Layer) -> Floats:
    """float64 [O, I of a group, kernel positions]."""
    weight = tensors(exported)[layer.weight].detach().double().numpy()
    return weight.reshape(weight.shape[0], weight.shape[1], -1)


def _scaled(weight: Floats, end: Ends, factors: Floats) -> Floats:
    """rows / factor, columns · factor; a grouped layer's row reads its own group's columns."""
    groups, outputs, inputs = end.layer.groups, weight.shape[0], weight.shape[1]
    columns = factors[end.columns].reshape(groups, 1, inputs)
    by_row = np.broadcast_to(columns, (groups, outputs // groups, inputs)).reshape(outputs, inputs)
    scaled: Floats = weight / factors[end.rows][:, None, None] * by_row[:, :, None]
    return scaled


def _column_max(weight: Floats, layer: Layer) -> Floats:
    """The largest |w| that reads each input channel, [I of all groups]."""
    largest = np.abs(weight).max(axis=2)
    found: Floats = largest.reshape(layer.groups, -1, largest.shape[1]).max(axis=1).reshape(-1)
    return found
