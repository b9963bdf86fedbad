"""Resizing of images: by torch's own interpolation where it computes the same, else axis by axis."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.recorded import Step
from octavo.sources.tflite.node import Node, Value, operator


@operator("RESIZE_BILINEAR")
def bilinear(node: Node) -> Value:
    """Options: align corners, half-pixel centres. With neither, pixel i lies at i · in / out: from known positions."""
    corners, half = _options(node)
    x, size = node.first(), node.ints(1)
    if corners or half:
        run = lambda x: F.interpolate(x, size, mode="bilinear", align_corners=corners)  # noqa: E731
        return node.emit(run, x, first=True)
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), 2):
        if old != new:
            x = _along(node, x, axis, old, new)
    return x


def _along(node: Node, x: Value, axis: int, old: int, new: int) -> Value:
    """Linear interpolation of one axis, the last pixel repeated at the end."""
    at = np.minimum(np.arange(new, dtype=np.float32) * np.float32(old / new), old - 1)
    low = np.floor(at).astype(np.int64)
    line = [-1 if i == axis else 1 for i in range(4)]
    below, above = torch.from_numpy(low), torch.from_numpy(np.minimum(low + 1, old - 1))
    share = torch.from_numpy((at - low).astype(np.float32)).reshape(line)

    def run(x: Tensor, below: Tensor, above: Tensor, share: Tensor) -> Tensor:
        low, high = torch.index_select(x, axis, below), torch.index_select(x, axis, above)
        return low + (high - low) * share

    held = [node.extra(f"{name}{axis}", item) for name, item in (("low", below), ("high", above), ("share", share))]
    return node.emit(run, x, *held, first=True)


@operator("RESIZE_NEAREST_NEIGHBOR")
def nearest(node: Node) -> Value:
    """Options: align corners, half-pixel centres."""
    corners, half = _options(node)
    x, size = node.first(), node.ints(1)
    if not corners:
        mode = "nearest-exact" if half else "nearest"
        return node.emit(lambda x: F.interpolate(x, size, mode=mode), x, first=True)
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), 2):
        at = np.arange(new, dtype=np.float32) * np.float32((old - 1) / max(new - 1, 1))
        index = torch.from_numpy(np.minimum(np.floor(at + 0.5), old - 1).astype(np.int64))
        x = node.emit(_chosen(axis), x, node.extra(f"index{axis}", index), first=True)
    return x


def _chosen(axis: int) -> Step:
    return lambda x, index: torch.index_select(x, axis, index)


def _options(node: Node) -> tuple[bool, bool]:
    """(align corners, half-pixel centres). Bilinear has them after two fields of old files."""
    start = 2 if node.op == "RESIZE_BILINEAR" else 0
    corners, half = bool(node.option(start, "?")), bool(node.option(start + 1, "?"))
    sizes = node.ints(1)
    if len(sizes) != 2 or min(sizes) < 1 or (corners and half):
        node.refuse(f"sizes {sizes}, align_corners {corners}, half_pixel_centers {half}", "Convert the model again.")
    return corners, half
