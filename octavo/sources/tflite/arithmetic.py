"""Operators that compute element by element, and those along one axis. They work in whichever layout a value is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.tflite.node import Node, Value, axis_of, laid_out, operator

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ADD": torch.add, "SUB": torch.sub, "MUL": torch.mul, "DIV": torch.div, "MAXIMUM": torch.maximum,
    "MINIMUM": torch.minimum, "POW": torch.pow, "SQUARED_DIFFERENCE": lambda a, b: torch.square(a - b),
}  # fmt: skip
FUSES = ("ADD", "SUB", "MUL", "DIV")  # those with a fused activation, their option 0
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "RELU": F.relu, "RELU6": F.relu6, "RELU_N1_TO_1": lambda x: F.hardtanh(x, -1.0, 1.0),
    "RELU_0_TO_1": lambda x: F.hardtanh(x, 0.0, 1.0), "LOGISTIC": torch.sigmoid, "TANH": torch.tanh, "ELU": F.elu,
    "HARD_SWISH": F.hardswish, "EXP": torch.exp, "LOG": torch.log, "SQRT": torch.sqrt, "RSQRT": torch.rsqrt,
    "SQUARE": torch.square, "NEG": torch.neg, "ABS": torch.abs, "SIN": torch.sin, "COS": torch.cos,
    "FLOOR": torch.floor, "CEIL": torch.ceil, "ROUND": torch.round,
}  # fmt: skip
REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "MEAN": torch.mean, "SUM": torch.sum, "REDUCE_MAX": torch.amax, "REDUCE_MIN": torch.amin,
}  # fmt: skip


@operator(*BINARY)
def binary(node: Node) -> Value:
    """Integers are divided as the file does it, towards zero."""
    a, b = node.laid(0, 1)
    step = BINARY[node.op]
    if node.op == "DIV" and not a.meta.is_floating_point():
        step = lambda a, b: torch.div(a, b, rounding_mode="trunc")  # noqa: E731
    made = node.emit(step, a, b, first=a.first)
    return node.activated(made, 0) if node.op in FUSES else made


@operator(*UNARY)
def unary(node: Node) -> Value:
    (x,) = node.laid(0)
    return node.emit(UNARY[node.op], x, first=x.first)


@operator("LEAKY_RELU")
def leaky_relu(node: Node) -> Value:
    (x,) = node.laid(0)
    slope = float(node.option(0, "f"))
    return node.emit(lambda x: F.leaky_relu(x, slope), x, first=x.first)


@operator("GELU")
def gelu(node: Node) -> Value:
    (x,) = node.laid(0)
    kind = "tanh" if node.option(0, "?") else "none"
    return node.emit(lambda x: F.gelu(x, approximate=kind), x, first=x.first)


@operator("PRELU")
def prelu(node: Node) -> Value:
    """One slope per channel is torch's own; slopes along other axes are not."""
    x, slope = node.laid(0, 1)
    channels = x.shape[-1]
    if x.first and slope.constant is not None and slope.shape == (1, 1, 1, channels):
        held = node.held(1, slope.constant.reshape(channels))
        return node.emit(F.prelu, x, held, first=True)
    return node.emit(lambda x, slope: torch.where(x >= 0, x, slope * x), x, slope, first=x.first)


@operator("SOFTMAX", "LOG_SOFTMAX")
def softmax(node: Node) -> Value:
    """Over the last axis of the file's. Option of SOFTMAX: beta, what the logits are multiplied with."""
    (x,) = node.laid(0)
    axis = axis_of(x, -1)
    if node.op == "LOG_SOFTMAX":
        return node.emit(lambda x: F.log_softmax(x, axis), x, first=x.first)
    beta = node.option(0, "f")
    return node.emit(lambda x: F.softmax(x if beta == 1 else x * beta, axis), x, first=x.first)


@operator("L2_NORMALIZATION")
def l2_normalization(node: Node) -> Value:
    """Over the last axis of the file's; the smallest norm is LiteRT's."""
    (x,) = node.laid(0)
    axis = axis_of(x, -1)
    made = node.emit(lambda x: F.normalize(x, 2.0, axis, 1e-6), x, first=x.first)
    return node.activated(made, 0)


@operator(*REDUCE)
def reduce(node: Node) -> Value:
    """Option: keep the axes. Without them, what is left must lie in the file's order."""
    keep, step = node.option(0, "?", False), REDUCE[node.op]
    (x,) = node.laid(0)
    axes = sorted({axis_of(x, axis) for axis in node.ints(1)})
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    if x.first and not keep:
        order = [name for name, axis in ((name, axis_of(x, name)) for name in range(4)) if axis in rest]
        if [axis_of(x, name) for name in order] != rest:
            x = node.walk.plain(x)
            axes = sorted({axis_of(x, axis) for axis in node.ints(1)})
    if not axes:
        return x
    return node.emit(lambda x: step(x, axes, keep), x, first=x.first and keep)


@operator("CAST")
def cast(node: Node) -> Value:
    """To the type of the result in the file."""
    from octavo.sources.tflite.walk import TYPES

    (x,) = node.laid(0)
    kind = node.walk.graph.tensors[node.operation.outputs[0]].kind
    if kind not in TYPES:
        node.refuse(f"its result is {kind}", "Convert the model in float32.")
    return node.emit(lambda x: x.to(TYPES[kind]), x, first=x.first)


@operator("DEQUANTIZE")
def dequantize(node: Node) -> Value:
    """Of half-precision weights, which are widened as they are read. Codes are refused before the walk begins."""
    x = node.value()
    if x.constant is None or not x.constant.is_floating_point():
        node.refuse(f"'{x.name}' is no weight in half precision", "Give the float model that it was made from.")
    return x


@operator("PAD", "PADV2")
def pad(node: Node) -> Value:
    """Pads [axes, 2] at begin and end; zeros, or input 2."""
    (x,) = node.laid(0)
    value = node.number(2) if node.op == "PADV2" else 0.0
    pairs = laid_out(node.constant(1).reshape(-1, 2).tolist(), x)
    if len(pairs) != len(x.shape) or min(size for pair in pairs for size in pair) < 0:
        node.refuse(f"pads {pairs} of an input {list(x.shape)}", "Convert the model again.")
    flat = [size for pair in reversed(pairs) for size in pair]
    made = node.emit(lambda x: F.pad(x, flat, value=value), x, first=x.first)
    if x.first and value == 0 and all(begin == end for begin, end in pairs) and not any(flat[4:]):
        node.walk.padded[made.key] = x, [pair[0] for pair in pairs[2:]]
    return made


@operator("MIRROR_PAD")
def mirror_pad(node: Node) -> Value:
    """Option: reflect (0, without the edge). An edge that is doubled is refused."""
    if node.option(0, "b"):
        node.refuse("its mode is SYMMETRIC", "REFLECT is imported.")
    (x,) = node.laid(0)
    pairs = laid_out(node.constant(1).reshape(-1, 2).tolist(), x)
    while len(pairs) > 1 and not any(pairs[0]):
        pairs = pairs[1:]
    flat = [size for pair in reversed(pairs) for size in pair]
    more = max(0, len(pairs) + 1 - len(x.shape))  # torch wants an axis that is not padded

    def run(x: Tensor) -> Tensor:
        padded = F.pad(x.reshape((1,) * more + tuple(x.shape)), flat, mode="reflect")
        return padded.reshape(padded.shape[more:])

    return node.emit(run if more else lambda x: F.pad(x, flat, mode="reflect"), x, first=x.first)
