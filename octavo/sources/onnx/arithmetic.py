"""Operators that work element by element, or reduce."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.onnx.node import OPERATORS, Node, Step, operator, plain

UNARY: dict[str, Step] = {
    "Neg": torch.neg, "Abs": torch.abs, "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh,
    "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "Erf": torch.erf,
    "Reciprocal": torch.reciprocal, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu,
    "Softplus": F.softplus, "Softsign": F.softsign, "Not": torch.logical_not, "IsNaN": torch.isnan,
    "HardSwish": F.hardswish, "Mish": F.mish,
}  # fmt: skip
OPERATORS.update({name: plain(step) for name, step in UNARY.items()})


def _divide(a: Any, b: Any) -> Tensor:
    """Integers divide towards zero, as in C."""
    whole = all(not (t.is_floating_point() if isinstance(t, Tensor) else isinstance(t, float)) for t in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


BINARY: dict[str, Step] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": _divide,
    "Pow": lambda a, b: torch.pow(a, b), "Equal": lambda a, b: a == b, "Greater": lambda a, b: a > b,
    "Less": lambda a, b: a < b, "GreaterOrEqual": lambda a, b: a >= b, "LessOrEqual": lambda a, b: a <= b,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "PRelu": lambda a, b: a.where(a >= 0, a * b),
    "Max": torch.maximum, "Min": torch.minimum,
}  # fmt: skip
WITH_NUMBERS = {"Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}


@operator(*(set(BINARY) - {"Max", "Min"}))
def binary(node: Node) -> Step:
    """Two tensors, broadcast; a constant of rank 0 becomes part of the program, so that x² stays x²."""
    step = BINARY[node.op]
    if node.op not in WITH_NUMBERS:
        return step
    floats = [node.value(i).meta.is_floating_point() for i in (0, 1)]
    for index in (1, 0):
        other = node.value(1 - index)
        given = node.value(index).constant
        lone = given is not None and given.dim() == 0 and other.constant is None and floats[0] == floats[1]
        if given is not None and lone:
            node.known(index)
            return _with_number(step, given.item(), index)
    if node.op == "Pow" and floats[0] != floats[1]:
        kind = node.value(0).meta.dtype
        return lambda a, b: torch.pow(a, b).to(kind)
    return step


def _with_number(step: Step, number: float, index: int) -> Step:
    return (lambda a, b: step(a, number)) if index == 1 else (lambda a, b: step(number, b))


@operator("Max", "Min", "Sum", "Mean")
def several(node: Node) -> Step:
    """Any number of tensors, broadcast."""
    step = BINARY.get(node.op, torch.add)
    count = len(node.inputs)
    scale = count if node.op == "Mean" else 1
    return lambda *tensors: reduce(step, tensors) / scale if scale > 1 else reduce(step, tensors)


@operator("Mod")
def mod(node: Node) -> Step:
    return torch.fmod if node.attr("fmod", 0) else torch.remainder


@operator("IsInf")
def is_inf(node: Node) -> Step:
    node.allow(detect_negative=(1,), detect_positive=(1,))
    return torch.isinf


@operator("Where")
def where(node: Node) -> Step:
    return torch.where


@operator("Clip")
def clip(node: Node) -> Step:
    """Bounds are inputs; an absent one does not bound."""
    if all(not node.has(i) or node.value(i).constant is not None for i in (1, 2)):
        low, high = node.number(1), node.number(2)
        return lambda x, *_: x if low is None and high is None else torch.clamp(x, low, high)
    return lambda x, low=None, high=None: torch.clamp(x, low, high)


@operator("LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "ThresholdedRelu", "Gelu", "Shrink")
def activation(node: Node) -> Step:
    """Activations with attributes."""
    alpha = node.attr("alpha")
    if node.op == "LeakyRelu":
        return lambda x: F.leaky_relu(x, 0.01 if alpha is None else alpha)
    if node.op == "Elu":
        return lambda x: F.elu(x, 1.0 if alpha is None else alpha)
    if node.op == "Celu":
        return lambda x: F.celu(x, 1.0 if alpha is None else alpha)
    if node.op == "ThresholdedRelu":
        return lambda x: F.threshold(x, 1.0 if alpha is None else alpha, 0.0)
    if node.op == "Gelu":
        approximate = node.attr("approximate", "none")
        return lambda x: F.gelu(x, approximate=approximate)
    if node.op == "Selu":
        a, gamma = node.attr("alpha", 1.6732631921768188), node.attr("gamma", 1.0507010221481323)
        return lambda x: gamma * F.elu(x, a)
    if node.op == "Shrink":
        bias, bound = node.attr("bias", 0.0), node.attr("lambd", 0.5)
        return lambda x: torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))
    a, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    if math.isclose(a, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(x * a + beta, 0.0, 1.0)


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: Node) -> Step:
    """Along one axis; before opset 13, along all axes from that one on."""
    axis = node.attr("axis", -1 if node.opset >= 13 else 1)
    steps: dict[str, Callable[[Tensor, int], Tensor]] = {
        "Softmax": F.softmax, "LogSoftmax": F.log_softmax,
        "Hardmax": lambda x, at: torch.zeros_like(x).scatter(at, x.argmax(at, keepdim=True), 1.0),
    }  # fmt: skip
    step = steps[node.op]
    if node.opset >= 13 or axis % node.rank() == node.rank() - 1:
        return lambda x: step(x, axis)
    shape, at = node.shape(), axis % node.rank()
    return lambda x: step(x.flatten(at), at).reshape(shape)


REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype),
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keep),
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
}


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


REDUCE["ReduceProd"] = _product


@operator(*REDUCE)
def reduction(node: Node) -> Step:
    """Over `axes` (attribute or input), over all of them when there are none, unless that is to mean nothing."""
    step, keep = REDUCE[node.op], bool(node.attr("keepdims", 1))
    axes = node.axes() or []
    if not axes and node.attr("noop_with_empty_axes", 0):
        return lambda x, *_: x
    over = axes or list(range(node.rank()))
    return (lambda x, *_: step(x, over, keep)) if over else lambda x, *_: x


@operator("ArgMax", "ArgMin")
def arg_extreme(node: Node) -> Step:
    axis, keep, last = node.attr("axis", 0), bool(node.attr("keepdims", 1)), node.attr("select_last_index", 0)
    step = torch.argmax if node.op == "ArgMax" else torch.argmin
    if not last:
        return lambda x: step(x, axis, keep)
    size = node.shape()[axis]
    return lambda x: size - 1 - step(x.flip(axis), axis, keep)


@operator("CumSum")
def cumulative(node: Node) -> Step:
    node.allow(exclusive=(0,))
    (axis,) = node.ints(1) or [0]
    if node.attr("reverse", 0):
        return lambda x, *_: torch.cumsum(x.flip(axis), axis).flip(axis)
    return lambda x, *_: torch.cumsum(x, axis)


@operator("TopK")
def top(node: Node) -> Step:
    (count,) = node.ints(1) or [1]
    axis, largest, ordered = node.attr("axis", -1), bool(node.attr("largest", 1)), bool(node.attr("sorted", 1))
    return lambda x, *_: tuple(torch.topk(x, count, axis, largest, ordered))


@operator("Einsum")
def einsum(node: Node) -> Step:
    equation = node.attr("equation")
    return lambda *tensors: torch.einsum(equation, *tensors)
