"""Biases on the grid of the accumulator: int32 codes whose scale is the input's times the weight's.

A bias is kept as the float32 value of its code, and the code is chosen so that every way a runtime may divide gives it
back: nothing rounds when a file is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.compress.nodes import Layer
from octavo.core.model import Edge
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LIMIT = 2**31 - 1
NEAR = 1 << 11  # how far from the best code one is looked for that all ways of dividing agree on


@dataclass(frozen=True)
class Snapped:
    """float32 values on the grid, their int32 codes, how many were cut to what int32 holds, and how many of the codes
    only a division in float64 gives back (beyond 2^24 a float32 quotient has no odd numbers)."""

    values: NDArray[np.float32]
    codes: NDArray[np.int32]
    clipped: int
    wide: int


def snap(bias: NDArray[np.float32], scale: NDArray[np.float64]) -> Snapped:
    """The nearest values of `bias` [O] that are code · scale [O], as float32, with codes that divide back exactly."""
    ideal = np.rint(bias.astype(np.float64) / scale)
    codes = np.clip(ideal, -LIMIT, LIMIT) + 0.0  # no integer reads back as −0
    clipped = int((np.abs(ideal) > LIMIT).sum())
    wide = 0
    for index in np.nonzero(~_agree(codes, scale))[0]:
        codes[index], narrow = _near(float(codes[index]), float(scale[index]))
        wide += not narrow
    return Snapped((codes * scale).astype(np.float32), codes.astype(np.int64).astype(np.int32), clipped, wide)


def _near(code: float, scale: float) -> tuple[float, bool]:
    """The code nearest to `code` that comes back however it is divided, and True; if none is near enough, the nearest
    that comes back in float64, and False."""
    steps = np.stack([np.arange(NEAR), -np.arange(NEAR)], axis=1).reshape(-1).astype(np.float64)
    tried = code + steps
    repeated = np.full(tried.shape, scale)
    for narrow in (True, False):
        good = np.nonzero(_agree(tried, repeated, narrow=narrow))[0]
        if good.size:
            return float(tried[good[0]]), narrow
    return code, False


def _agree(codes: NDArray[np.float64], scale: NDArray[np.float64], *, narrow: bool = True) -> NDArray[np.bool_]:
    """Whether each code comes back from its float32 value by division and by multiplication, in float64 and, if
    `narrow`, in float32."""
    values = (codes * scale).astype(np.float32)
    exact = values.astype(np.float64)
    ways = [exact / scale, exact * (1 / scale)]
    if narrow:
        short = scale.astype(np.float32)
        ways += [exact / short, (values / short).astype(np.float64)]
    result: NDArray[np.bool_] = np.logical_and.reduce([np.rint(way) == codes for way in ways])
    return result & (np.abs(codes) <= LIMIT)


def scales(layer: Layer, edges: Mapping[str, Edge], weight: QuantizedTensor) -> NDArray[np.float64] | None:
    """The bias's scale per output channel, float64 [O]; None where the input is no integer."""
    edge = edges.get(layer.input.name)
    if edge is None:
        return None
    per_channel = np.broadcast_to(weight.scale.reshape(-1), (weight.shape[0],)).astype(np.float64)
    return per_channel * edge.scale


def snap_biases(
    exported: ExportedProgram,
    found: Iterable[Layer],
    edges: Iterable[Edge],
    weights: Mapping[str, QuantizedTensor],
    biases: Mapping[str, NDArray[np.float32]],
) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """{bias: float32 on its layer's grid}, and notes on values that were cut. `biases`: the float values by name."""
    by_name = {edge.name: edge for edge in edges}
    made: dict[str, NDArray[np.float32]] = {}
    notes = []
    for layer in found:
        if layer.bias is None or layer.weight not in weights:
            continue
        scale = scales(layer, by_name, weights[layer.weight])
        if scale is None:
            continue
        snapped = snap(biases[layer.bias], scale)
        if layer.bias in made and not np.array_equal(made[layer.bias], snapped.values):
            raise Refused(
                f"{layer.bias} is the bias of two layers whose scales differ.", "Give each layer its own bias."
            )
        made[layer.bias] = snapped.values
        if snapped.wide:
            notes.append(f"{layer.bias}: {snapped.wide} of {len(scale)} codes come back only by division in float64")
        if snapped.clipped:
            notes.append(f"{layer.bias}: {snapped.clipped} of {len(scale)} values exceed 2^31 codes and were cut")
    return made, notes
