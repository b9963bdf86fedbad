"""Codes and biases adjusted to calibration data, layer by layer in order (rounding.py says how)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.compress.calibrate import Progress
from octavo.compress.codes import code
from octavo.compress.front import advance, affordable
from octavo.compress.nodes import Layer
from octavo.compress.rounding import moments, spread, suits, target
from octavo.compress.walk import evenly
from octavo.core.model import Edge
from octavo.core.tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

SAMPLES = 64


def refine(
    exported: ExportedProgram,
    found: list[Layer],
    edges: Mapping[str, Edge],
    weights: Mapping[str, QuantizedTensor],
    floats: Mapping[str, NDArray[np.float32]],
    given: list[dict[str, torch.Tensor]],
    scheme: str,
    *,
    rounding: bool = True,
    bias: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> tuple[dict[str, QuantizedTensor], dict[str, NDArray[np.float32]]]:
    """(codes, float biases) after adjusting each layer to at most SAMPLES of `given`, spread evenly."""
    import torch

    few = evenly(given, affordable(exported, min(SAMPLES, len(given))))
    made, biases = dict(weights), dict(floats)
    decoded = {name: torch.from_numpy(value.dequantize()) for name, value in weights.items()}
    names = [layer.weight for layer in found]
    done = 0

    def adjust(layer: Layer, exact: list[torch.Tensor], coarse: list[torch.Tensor]) -> None:
        nonlocal done
        done += 1
        progress("refine", done, len(found))
        if not suits(layer):
            return
        seen = moments(layer, exact, coarse)
        weight = floats[layer.weight].astype(np.float64)
        shape = weight.shape
        grouped = weight.reshape(layer.groups, shape[0] // layer.groups, -1)
        if rounding and names.count(layer.weight) == 1:
            wanted = target(grouped, seen)
            start = code(layer.weight, wanted.reshape(shape).astype(np.float32), scheme)
            scale = np.broadcast_to(start.scale.reshape(-1), (shape[0],)).reshape(grouped.shape[:2])
            codes = spread(wanted, scale.astype(np.float64), seen, start.range).reshape(shape)
            made[layer.weight] = QuantizedTensor(codes, start.scale, start.block, start.range)
            decoded[layer.weight] = torch.from_numpy(made[layer.weight].dequantize())
        if bias and layer.bias is not None:
            now = made[layer.weight].dequantize().astype(np.float64).reshape(grouped.shape)
            gap = np.einsum("gok,gk->go", grouped, seen.mean) - np.einsum("gok,gk->go", now, seen.mean_quantised)
            biases[layer.bias] = (floats[layer.bias] + gap.reshape(-1)).astype(np.float32)
            decoded[layer.bias] = torch.from_numpy(biases[layer.bias])

    advance(exported, found, edges, decoded, few, adjust)
    return made, biases
