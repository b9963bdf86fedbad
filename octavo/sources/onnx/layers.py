"""Operators with weights, pools and norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.onnx.node import Node, Step, operator
from octavo.sources.onnx.windows import Window, window_of

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DECONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _spatial(node: Node) -> int:
    axes = node.rank() - 2
    if axes not in CONVOLVE:
        node.refuse(f"{axes} spatial axes (input {list(node.shape())})", "1, 2 and 3 are imported.")
    return axes


@operator("Conv")
def conv(node: Node) -> Step:
    step, window = CONVOLVE[_spatial(node)], window_of(node, node.shape(1)[2:])
    group = node.attr("group", 1)
    even, ahead = window.symmetric()

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = F.pad(x, ahead) if ahead else x
        return step(x, weight, bias, window.strides, even, window.dilations, group)

    return run


@operator("ConvTranspose")
def deconv(node: Node) -> Step:
    """The uncropped result, then the pads cut off; `output_shape` and SAME are ways to say the pads."""
    step, axes = DECONVOLVE[_spatial(node)], _spatial(node)
    kernel = node.shape(1)[2:]
    strides, dilations = node.attr("strides") or [1] * axes, node.attr("dilations") or [1] * axes
    extra, group = node.attr("output_padding") or [0] * axes, node.attr("group", 1)
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(node.shape()[2:], strides, dilations, kernel, extra, strict=True)
    ]
    auto = node.attr("auto_pad", "NOTSET")
    wanted = node.attr("output_shape")
    if wanted is None and auto.startswith("SAME"):
        wanted = [n * s for n, s in zip(node.shape()[2:], strides, strict=True)]
    if wanted is not None:
        total = [f - w for f, w in zip(full, wanted, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    else:
        pads = node.attr("pads") or [0] * 2 * axes
        begin, end = pads[:axes], pads[axes:]
    if begin == end and all(p >= 0 for p in begin):
        return lambda x, w, b=None: step(x, w, b, strides, begin, extra, group, dilations)
    crop = [-size for axis in reversed(range(axes)) for size in (begin[axis], end[axis])]
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        node.refuse(f"output_padding {extra} is not below the stride", "Export the model again.")
    return lambda x, w, b=None: F.pad(step(x, w, b, strides, 0, extra, group, dilations), crop)


@operator("Gemm")
def gemm(node: Node) -> Step:
    """A known B is a linear layer's weight, [out, in]: turned at import where the file has it the other way."""
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    turn_a = bool(node.attr("transA", 0))
    if node.value(1).constant is not None:
        _as_linear_weight(node, 1, turned=bool(node.attr("transB", 0)))
        columns = node.shape(1)[0 if node.attr("transB", 0) else 1]
        biased = alpha == 1 and beta == 1 and node.has(2) and node.shape(2) == (columns,)

        def linear(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
            a = a.mT if turn_a else a
            if biased or c is None:
                out = F.linear(a, b, c)
                return out if alpha == 1 else out * alpha
            out = F.linear(a, b)
            return (out if alpha == 1 else out * alpha) + (c if beta == 1 else c * beta)

        return linear
    turn_b = bool(node.attr("transB", 0))

    def general(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        out = torch.matmul(a.mT if turn_a else a, b.mT if turn_b else b)
        out = out if alpha == 1 else out * alpha
        return out if c is None else out + (c if beta == 1 else c * beta)

    return general


@operator("MatMul")
def matmul(node: Node) -> Step:
    if node.value(1).constant is not None and node.rank(1) == 2 and node.rank(0) >= 1:
        _as_linear_weight(node, 1, turned=False)
        return lambda a, b: F.linear(a, b)
    return torch.matmul


def _as_linear_weight(node: Node, index: int, *, turned: bool) -> None:
    """Give the step the constant [in, out] as [out, in] (`turned`: it is that already), under its own name."""
    weight = node.value(index)
    assert weight.constant is not None
    if not turned:
        node.replace(index, "", weight.constant.T, turned=not weight.turned)


@operator("MaxPool")
def max_pool(node: Node) -> Step:
    """Padding is minus infinity, laid on ahead where torch's own pads cannot say it."""
    if len(node.outputs) > 1:
        node.refuse("its second output, the indices, is asked for", "Export the model without MaxUnpool.")
    node.allow(storage_order=(0,))
    step, window = MAX_POOL[_spatial(node)], window_of(node, node.attr("kernel_shape"))
    even, ahead = window.symmetric()
    if any(2 * pad > kernel for pad, kernel in zip(even, window.kernel, strict=True)):
        even, ahead = [0] * len(even), window.flat()

    def run(x: Tensor) -> Tensor:
        x = F.pad(x, ahead, value=-math.inf) if ahead else x
        return step(x, window.kernel, window.strides, even, window.dilations)

    return run


@operator("AveragePool")
def average_pool(node: Node) -> Step:
    """What torch's pool cannot say (uneven pads, pads that do not count) is a sum over a known number of elements."""
    node.allow(dilations=([1] * _spatial(node), None))
    step, window = AVERAGE_POOL[_spatial(node)], window_of(node, node.attr("kernel_shape"))
    counted = bool(node.attr("count_include_pad", 0))
    even, ahead = window.symmetric()
    if not ahead and all(2 * pad <= kernel for pad, kernel in zip(even, window.kernel, strict=True)):
        return lambda x: step(x, window.kernel, window.strides, even, False, counted)
    node.extra("counts", _counts(window, node.shape()[2:], step, counted))
    ahead = window.flat()

    def run(x: Tensor, counts: Tensor) -> Tensor:
        return step(F.pad(x, ahead), window.kernel, window.strides) / counts

    return run


def _counts(window: Window, sizes: tuple[int, ...], step: Callable[..., Tensor], counted: bool) -> Tensor:
    """The share of each window's elements that count: float32 [1, 1, …out]."""
    ones = torch.ones(1, 1, *sizes)
    if counted:  # what rounding up adds never counts
        ones = F.pad(ones, window.flat(own=True), value=1.0)
        return step(F.pad(ones, window.flat(rounding=True)), window.kernel, window.strides)
    return step(F.pad(ones, window.flat()), window.kernel, window.strides)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node) -> Step:
    axes = list(range(2, node.rank()))
    if node.op == "GlobalMaxPool":
        return lambda x: torch.amax(x, axes, True)
    if len(axes) == 2:  # the form that every runtime has an operator for
        return lambda x: F.adaptive_avg_pool2d(x, 1)
    return lambda x: torch.mean(x, axes, True)


@operator("BatchNormalization")
def batch_norm(node: Node) -> Step:
    node.allow(training_mode=(0,))
    epsilon = node.attr("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def instance_norm(node: Node) -> Step:
    epsilon = node.attr("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization")
def layer_norm(node: Node) -> Step:
    if len(node.outputs) > 1:
        node.refuse("its mean or deviation is asked for as an output", "Export the model for inference.")
    axis, epsilon = node.attr("axis", -1) % node.rank(), node.attr("epsilon", 1e-5)
    shape = list(node.shape()[axis:])
    if list(node.shape(1)) == shape and (not node.has(2) or list(node.shape(2)) == shape):
        return lambda x, scale, bias=None: F.layer_norm(x, shape, scale, bias, epsilon)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        out = F.layer_norm(x, shape, None, None, epsilon) * scale
        return out if bias is None else out + bias

    return run


@operator("GroupNormalization")
def group_norm(node: Node) -> Step:
    """Before opset 21 scale and bias are per group, since then per channel."""
    groups, epsilon = node.attr("num_groups"), node.attr("epsilon", 1e-5)
    each = node.shape()[1] // groups
    for index in (1, 2) if node.opset < 21 and each > 1 else ():
        given = node.value(index).constant
        if given is None:
            node.refuse("scale and bias are computed", "Export the model again, with opset 21.")
        node.replace(index, f".per_channel_{each}", given.repeat_interleave(each))
    return lambda x, scale, bias: F.group_norm(x, groups, scale, bias, epsilon)


@operator("LRN")
def local_response(node: Node) -> Step:
    size = node.attr("size")
    if size % 2 == 0:
        node.refuse(f"size {size} is even", "Odd sizes are imported.")
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    return lambda x: F.local_response_norm(x, size, alpha, beta, bias)


@operator("LpNormalization")
def lp_norm(node: Node) -> Step:
    node.allow(p=(2, 1))
    axis, power = node.attr("axis", -1), node.attr("p", 2)
    return lambda x: x / torch.linalg.vector_norm(x, power, axis, True)


@operator("Resize")
def resize(node: Node) -> Step:
    from octavo.sources.onnx.resize import build

    return build(node)


@operator("MeanVarianceNormalization")
def mean_variance(node: Node) -> Step:
    axes = node.attr("axes", [0, 2, 3])

    def run(x: Tensor) -> Any:
        mean = x.mean(axes, True)
        return (x - mean) / (torch.sqrt((x * x).mean(axes, True) - mean * mean) + 1e-9)

    return run
