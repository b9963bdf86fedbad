"""Resize: by torch's own interpolation where it computes the same, else axis by axis from positions known at import."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.onnx.node import Node, Step

Positions = NDArray[np.float64]


def build(node: Node) -> Step:
    """Scales are input 2, sizes input 3; `axes` since opset 18."""
    node.allow(antialias=(0,), exclude_outside=(0,), keep_aspect_ratio_policy=("stretch",))
    node.known(1)
    old = list(node.shape())
    axes = [axis % len(old) for axis in node.attr("axes") or range(len(old))]
    given = node.known(2)
    scales, sizes = [1.0] * len(old), list(old)
    if given is not None and given.numel():
        for axis, scale in zip(axes, given.tolist(), strict=True):
            scales[axis], sizes[axis] = scale, int(np.floor(old[axis] * scale))
        node.known(3)
    else:
        for axis, size in zip(axes, node.ints(3) or [], strict=True):
            scales[axis], sizes[axis] = size / old[axis], size
    mode, where = node.attr("mode", "nearest"), node.attr("coordinate_transformation_mode", "half_pixel")
    ready = _torch_has_it(node, mode, where, old, sizes, scales)
    if ready is not None:
        return ready
    changed = [axis for axis in range(len(old)) if scales[axis] != 1]
    found = {axis: _positions(node, where, old[axis], sizes[axis], scales[axis]) for axis in changed}
    if mode == "nearest":
        return _nearest(node, found, old)
    if mode == "linear":
        return _linear(node, found, old)
    node.refuse(f"mode '{mode}' with '{where}' is not imported", "Use linear, or cubic with half_pixel over 2 axes.")


def _torch_has_it(
    node: Node, mode: str, where: str, old: list[int], sizes: list[int], scales: list[float]
) -> Step | None:
    """F.interpolate over the last axes, where its definition is ONNX's."""
    whole = all(abs(size / was - scale) < 1e-9 for size, was, scale in zip(sizes, old, scales, strict=True))
    kinds = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    kind = kinds.get((mode, len(old)))
    if not whole or kind is None or sizes[:2] != old[:2] or node.attr("cubic_coeff_a", -0.75) != -0.75:
        return None
    short = where == "pytorch_half_pixel" and min(sizes[2:]) > 1
    if where not in ("half_pixel", "align_corners") and not short:
        return None
    corners, size = where == "align_corners", sizes[2:]
    return lambda x, *_: F.interpolate(x, size, mode=kind, align_corners=corners)


def _positions(node: Node, where: str, old: int, new: int, scale: float) -> Positions:
    """Where each output lies on the input's axis."""
    at = np.arange(new, dtype=np.float64)
    if where == "asymmetric":
        return at / scale
    if where == "align_corners":
        return at * (old - 1) / (new - 1) if new > 1 else at * 0
    if where == "half_pixel" or (where == "pytorch_half_pixel" and new > 1):
        return (at + 0.5) / scale - 0.5
    if where == "pytorch_half_pixel":
        return at * 0
    node.refuse(f"coordinate_transformation_mode '{where}' is not imported", "Use half_pixel or align_corners.")


def _nearest(node: Node, found: dict[int, Positions], old: list[int]) -> Step:
    rounds: dict[str, Callable[[Positions], Positions]] = {
        "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }  # fmt: skip
    choose = rounds[node.attr("nearest_mode", "round_prefer_floor")]
    for axis, at in found.items():
        index = np.clip(choose(at), 0, old[axis] - 1).astype(np.int64)
        node.extra(f"index{axis}", torch.from_numpy(index))

    def run(x: Tensor, *rest: Tensor | None) -> Tensor:
        for axis, index in zip(found, rest[len(rest) - len(found) :], strict=True):
            assert index is not None
            x = torch.index_select(x, axis, index)
        return x

    return run


def _linear(node: Node, found: dict[int, Positions], old: list[int]) -> Step:
    for axis, at in found.items():
        at = np.clip(at, 0, old[axis] - 1)
        low = np.floor(at).astype(np.int64)
        line = [-1 if i == axis else 1 for i in range(len(old))]
        node.extra(f"low{axis}", torch.from_numpy(low))
        node.extra(f"high{axis}", torch.from_numpy(np.minimum(low + 1, old[axis] - 1)))
        node.extra(f"share{axis}", torch.from_numpy((at - low).astype(np.float32)).reshape(line))

    def run(x: Tensor, *rest: Tensor | None) -> Tensor:
        given = [item for item in rest if item is not None]
        for number, axis in enumerate(found):
            low, high, share = given[3 * number : 3 * number + 3]
            below, above = torch.index_select(x, axis, low), torch.index_select(x, axis, high)
            x = below + (above - below) * share
        return x

    return run
