"""Where a sliding window goes: strides, dilations and pads of Conv and the pools, as ONNX's attributes say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.sources.onnx.node import Node


@dataclass(frozen=True)
class Window:
    """Per spatial axis. `rounding`: what is added at the end so that rounding up finds whole windows."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    rounding: list[int]

    def symmetric(self) -> tuple[list[int], list[int]]:
        """(pads that torch lays on itself, pads to lay on ahead): one of the two is empty or zero."""
        if self.begin == self.end and not any(self.rounding):
            return self.begin, []
        return [0] * len(self.begin), self.flat()

    def flat(self, *, own: bool = False, rounding: bool = False) -> list[int]:
        """The pads as torch's `pad` takes them, last axis first: all of them, only the attribute's, or only what
        rounding up adds."""
        both = not own and not rounding
        pairs = zip(self.begin, self.end, self.rounding, strict=True)
        sizes = [(b * (own or both), e * (own or both) + r * (rounding or both)) for b, e, r in pairs]
        return [size for pair in reversed(sizes) for size in pair]


def window_of(node: Node, kernel: Sequence[int]) -> Window:
    """The window of a Conv or pool over the node's first input."""
    axes = len(kernel)
    sizes = node.shape()[2:]
    if len(sizes) != axes:
        node.refuse(f"a kernel of {axes} axes over an input {list(node.shape())}", "Export the model again.")
    strides = list(node.attr("strides") or [1] * axes)
    dilations = list(node.attr("dilations") or [1] * axes)
    pads = list(node.attr("pads") or [0] * 2 * axes)
    begin, end = pads[:axes], pads[axes:]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = node.attr("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        total = [max(0, (-(-n // s) - 1) * s + k - n) for n, s, k in zip(sizes, strides, spans, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    elif auto == "VALID":
        begin, end = [0] * axes, [0] * axes
    rounding = [0] * axes
    if node.attr("ceil_mode", 0):
        for i, (n, s, k) in enumerate(zip(sizes, strides, spans, strict=True)):
            padded = n + begin[i] + end[i]
            count = -(-(padded - k) // s) + 1
            count -= (count - 1) * s >= n + begin[i]  # a window must start inside the input or the padding before it
            rounding[i] = max(0, (count - 1) * s + k - padded)
    return Window(list(kernel), strides, dilations, begin, end, rounding)
