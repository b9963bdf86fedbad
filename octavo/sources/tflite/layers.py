"""Operators with weights, and pools."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.tflite.node import Node, Value, operator, same_order

SAME = 0


@dataclass(frozen=True)
class Window:
    """Where a window goes over (H, W): `begin` and `end` are what SAME adds, the odd element at the end."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def even(self) -> bool:
        return self.begin == self.end

    def flat(self) -> list[int]:
        """The pads as torch's `pad` takes them: W first."""
        return [self.begin[1], self.end[1], self.begin[0], self.end[0]]


def window_of(
    node: Node, sizes: tuple[int, ...], kernel: list[int], strides: list[int], dilations: list[int]
) -> Window:
    """The window over an image of `sizes` (H, W)."""
    code = node.option(0, "b")
    if code not in (0, 1) or min(*kernel, *strides, *dilations) < 1:
        node.refuse(f"padding {code}, kernel {kernel}, strides {strides}, dilations {dilations}", "Convert it again.")
    total = [0, 0]
    if code == SAME:
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        total = [max(0, (-(-n // s) - 1) * s + k - n) for n, s, k in zip(sizes, strides, spans, strict=True)]
    return Window(kernel, strides, dilations, [t // 2 for t in total], [t - t // 2 for t in total])


@operator("CONV_2D")
def conv(node: Node) -> Value:
    """Weight [O, H, W, I / groups]. Options: padding, stride W, stride H, activation, dilation W, dilation H."""
    weight = node.constant(1)
    strides, dilations = [node.option(2, "i"), node.option(1, "i")], [node.option(5, "i", 1), node.option(4, "i", 1)]
    groups = node.value().shape[-1] // weight.shape[3]
    return _convolve(node, weight.permute(0, 3, 1, 2), strides, dilations, groups, activation=3)


@operator("DEPTHWISE_CONV_2D")
def depthwise(node: Node) -> Value:
    """Weight [1, H, W, C · m]. Options: padding, stride W, stride H, m, activation, dilation W, dilation H."""
    weight = node.constant(1)
    strides, dilations = [node.option(2, "i"), node.option(1, "i")], [node.option(6, "i", 1), node.option(5, "i", 1)]
    groups = node.value().shape[-1]
    return _convolve(node, weight.permute(3, 0, 1, 2), strides, dilations, groups, activation=4)


def _convolve(
    node: Node, weight: Tensor, strides: list[int], dilations: list[int], groups: int, activation: int
) -> Value:
    """Pads that are the same on both sides, the padding operator's before it too, belong to the convolution."""
    x = node.first()
    window = window_of(node, x.shape[1:3], list(weight.shape[2:]), strides, dilations)
    pads, ahead = window.begin, [] if window.even else window.flat()
    if x.key in node.walk.padded and not any(window.flat()):
        x, pads = node.walk.padded[x.key]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = F.pad(x, ahead) if ahead else x
        return F.conv2d(x, weight, bias, strides, [0, 0] if ahead else pads, dilations, groups)

    bias = node.plain(2) if node.has(2) else None
    return node.activated(node.emit(run, x, node.held(1, weight), bias, first=True), activation)


@operator("TRANSPOSE_CONV")
def deconv(node: Node) -> Value:
    """Weight [O, H, W, I]; input 0 is the result's shape. The whole result, then what SAME cuts off it.

    Options: padding, stride W, stride H, activation.
    """
    wanted, weight, x = node.ints(0)[1:3], node.constant(1).permute(3, 0, 1, 2), node.first(2)
    strides, kernel = [node.option(2, "i"), node.option(1, "i")], list(weight.shape[2:])
    window = window_of(node, tuple(wanted), kernel, strides, [1, 1])
    whole = [(n - 1) * s + k for n, s, k in zip(x.shape[1:3], strides, kernel, strict=True)]
    even = [b if w - 2 * b == n else 0 for w, b, n in zip(whole, window.begin, wanted, strict=True)]
    more = [max(0, b + n - w) for w, b, n in zip(whole, window.begin, wanted, strict=True)]
    if any(m >= s for m, s in zip(more, strides, strict=True)):
        node.refuse(f"its result {wanted} is larger than its kernel reaches", "Convert the model again.")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = F.conv_transpose2d(x, weight, bias, strides, even, more)
        for axis, (begin, pad, size) in enumerate(zip(window.begin, even, wanted, strict=True), 2):
            x = x if x.shape[axis] == size else x.narrow(axis, begin - pad, size)
        return x

    bias = node.plain(3) if node.has(3) else None
    return node.activated(node.emit(run, x, node.held(1, weight), bias, first=True), 3)


@operator("FULLY_CONNECTED")
def fully_connected(node: Node) -> Value:
    """Weight [O, I]. Options: activation, weights format, keep the axes of the input.

    A map flattened channels first has its turn here: the weight's columns follow its order.
    """
    if node.option(1, "b"):
        node.refuse("its weights are shuffled", "Convert the model without it.")
    x, weight = node.value(), node.plain(1)
    keep, (out, width) = node.option(2, "?", False), weight.shape
    if not keep and weight.constant is not None:
        x = _flattened(node, x, width)
    if x.flat is not None:
        height, across, channels = x.flat
        turned = node.constant(1).reshape(out, height, across, channels).permute(0, 3, 1, 2).reshape(out, width)
        weight = node.held(1, turned)
    x = node.walk.plain(x)
    shape = (*x.shape[:-1], out) if keep else (-1, out)
    before = None if x.shape[-1] == width and (keep or len(x.shape) == 2) else (-1, width)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = F.linear(x if before is None else x.reshape(before), weight, bias)
        return x if before is None else x.reshape(shape)

    return node.activated(node.emit(run, x, weight, node.plain(2) if node.has(2) else None), 0)


def _flattened(node: Node, x: Value, width: int) -> Value:
    """A map [N, H, W, C] that is channels first as [N, width] without turning it back, where that is all of it."""
    if not x.first or width != prod(x.shape[1:]):
        return x
    made, (_, height, across, channels) = node.emit(lambda x: x.reshape(-1, width), x), x.shape
    return made if same_order(x.shape) else replace(made, flat=(height, across, channels))


@operator("BATCH_MATMUL")
def batch_matmul(node: Node) -> Value:
    """Options: transpose the first, the second. A stored matrix is a linear layer's weight."""
    a, b, (turn_a, turn_b) = node.plain(0), node.plain(1), (node.option(0, "?"), node.option(1, "?"))
    if b.constant is not None and len(b.shape) == 2 and not turn_a:
        weight = node.held(1, b.constant if turn_b else b.constant.T)
        return node.emit(lambda a, b: F.linear(a, b), a, weight)
    return node.emit(lambda a, b: torch.matmul(a.mT if turn_a else a, b.mT if turn_b else b), a, b)


def _pool_window(node: Node) -> Window:
    """Options: padding, stride W, stride H, filter W, filter H, activation."""
    strides, kernel = [node.option(2, "i"), node.option(1, "i")], [node.option(4, "i"), node.option(3, "i")]
    return window_of(node, node.first().shape[1:3], kernel, strides, [1, 1])


@operator("MAX_POOL_2D")
def max_pool(node: Node) -> Value:
    """Padding is minus infinity, laid on ahead where the two sides differ."""
    window = _pool_window(node)
    ahead = [] if window.even else window.flat()
    pads = [0, 0] if ahead else window.begin

    def run(x: Tensor) -> Tensor:
        x = F.pad(x, ahead, value=-math.inf) if ahead else x
        return F.max_pool2d(x, window.kernel, window.strides, pads)

    return node.activated(node.emit(run, node.first(), first=True), 5)


@operator("AVERAGE_POOL_2D")
def average_pool(node: Node) -> Value:
    """Padding does not count. Where the two sides differ it is a sum over a known number of elements."""
    window, x = _pool_window(node), node.first()
    step: Callable[..., Any] = F.avg_pool2d
    if window.even:
        run = lambda x: step(x, window.kernel, window.strides, window.begin, count_include_pad=False)  # noqa: E731
        return node.activated(node.emit(run, x, first=True), 5)
    shares = F.avg_pool2d(F.pad(torch.ones(1, 1, *x.shape[1:3]), window.flat()), window.kernel, window.strides)
    counts = node.extra("counts", shares)
    made = node.emit(
        lambda x, n: step(F.pad(x, window.flat()), window.kernel, window.strides) / n, x, counts, first=True
    )
    return node.activated(made, 5)
