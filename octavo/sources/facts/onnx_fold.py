"""Arithmetic on sizes, done ahead: with the inputs' shapes given, most integers in an ONNX graph are constants.

onnx's shape inference follows only part of it (it does not reach through a Range, nor choose the branch of an If).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = dict[str, NDArray[Any]]
LARGEST = 4096  # elements of a value worth knowing


def fold(graph: Any, known: Values | None = None) -> bool:
    """Turn nodes whose integers are known into constants, and inline the branch of an If whose condition is known, in
    place; whether anything changed."""
    from onnx import numpy_helper

    values = dict(known or {})
    for tensor in graph.initializer:
        if tensor.data_type in INTEGERS and prod(tensor.dims) <= LARGEST:
            _learn(values, tensor.name, numpy_helper.to_array(tensor))
    shapes = _known_shapes(graph)
    changed = False
    for node in list(graph.node):
        given = {item.name: item for item in node.attribute}
        if node.op_type == "Constant" and "value" in given and given["value"].t.data_type in INTEGERS:
            _learn(values, node.output[0], numpy_helper.to_array(given["value"].t))
        elif node.op_type == "Constant":
            continue
        elif node.op_type == "If" and node.input[0] in values:
            _inline(graph, node, given["then_branch" if values[node.input[0]].any() else "else_branch"].g)
            return True  # what was spliced in has no shapes yet
        else:
            result = _evaluate(node, given, values, shapes)
            if result is not None:
                values[node.output[0]] = result
                _make_constant(node, result)
                changed = True
            for item in node.attribute:
                if item.HasField("g") and node.op_type == "If":
                    changed = fold(item.g, values) or changed
    return changed


def _learn(values: Values, name: str, array: NDArray[Any]) -> None:
    if array.size <= LARGEST:
        values[name] = array


def _known_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for item in (*graph.input, *graph.value_info, *graph.output):
        tensor = item.type.tensor_type
        known = item.type.HasField("tensor_type") and tensor.HasField("shape")
        if known and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[item.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return found


def _evaluate(
    node: Any, given: dict[str, Any], values: Values, shapes: dict[str, tuple[int, ...]]
) -> NDArray[Any] | None:
    """The value of a node's only output, or None when it is not known, too large, or no integer."""
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    if node.op_type in ("Shape", "Size"):
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(prod(shape), np.int64)
        start = given["start"].i if "start" in given else 0
        return np.array(shape[start : given["end"].i if "end" in given else None], np.int64)
    rule = RULES.get(node.op_type)
    if rule is None or not node.input or any(name and name not in values for name in node.input):
        return None
    try:
        result = np.asarray(rule([values.get(name) for name in node.input], given))
    except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, AttributeError):
        return None  # a graph that makes no sense here: shape inference will say so
    return result if result.size <= LARGEST and result.dtype.kind in "ib" else None


def _make_constant(node: Any, value: NDArray[Any]) -> None:
    from onnx import helper, numpy_helper

    name = node.output[0]
    del node.input[:], node.attribute[:]
    node.op_type, node.domain = "Constant", ""
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.ascontiguousarray(value), name)))


def _inline(graph: Any, node: Any, branch: Any) -> None:
    """Put the nodes of `branch` where the If was; its outputs go by the If's names."""
    from onnx import helper

    at = next(index for index, other in enumerate(graph.node) if other is node or other == node)
    inside = list(branch.node)
    ends = [
        helper.make_node("Identity", [inner.name], [outer], name=f"{node.name or 'If'}.{outer}")
        for inner, outer in zip(branch.output, node.output, strict=True)
    ]
    constants, types = list(branch.initializer), list(branch.value_info)
    after = list(graph.node)[at + 1 :]
    before = list(graph.node)[:at]
    made = [type(node).FromString(other.SerializeToString()) for other in (*before, *inside, *ends, *after)]
    held = [type(tensor).FromString(tensor.SerializeToString()) for tensor in constants]
    named = [type(item).FromString(item.SerializeToString()) for item in types]
    del graph.node[:]
    graph.node.extend(made)
    graph.initializer.extend(held)
    graph.value_info.extend(named)


def _axes(inputs: list[Any], given: dict[str, Any]) -> tuple[int, ...] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(int(axis) for axis in inputs[1].ravel())
    return tuple(given["axes"].ints) if "axes" in given else None


def _unsqueeze(inputs: list[Any], given: dict[str, Any]) -> Any:
    return np.expand_dims(inputs[0], _axes(inputs, given) or ())


def _slice(inputs: list[Any], given: dict[str, Any]) -> Any:
    data, starts, ends = inputs[0], inputs[1].ravel(), inputs[2].ravel()
    axes = inputs[3].ravel() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4].ravel() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    place: list[slice] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -(2**31) else int(end)
        place[int(axis)] = slice(int(start), stop, int(step))
    return data[tuple(place)]


def _divide(inputs: list[Any], given: dict[str, Any]) -> Any:
    """Integers are cut towards zero."""
    first, second = inputs
    if np.any(second == 0):
        raise ZeroDivisionError
    return (np.sign(first) * np.sign(second) * (np.abs(first) // np.abs(second))).astype(first.dtype)


def _cast(inputs: list[Any], given: dict[str, Any]) -> Any:
    return inputs[0].astype({6: np.int32, 7: np.int64, 9: np.bool_}[given["to"].i])


def _constant_of_shape(inputs: list[Any], given: dict[str, Any]) -> Any:
    from onnx import numpy_helper

    value = numpy_helper.to_array(given["value"].t)
    if prod(inputs[0].tolist()) > LARGEST:
        raise ValueError
    return np.full(inputs[0].tolist(), value.ravel()[0], value.dtype)


def _range(inputs: list[Any], given: dict[str, Any]) -> Any:
    start, stop, step = (value.item() for value in inputs)
    if abs(stop - start) > LARGEST * abs(step):
        raise ValueError
    return np.arange(start, stop, step, inputs[0].dtype)


INTEGERS = (6, 7, 9)  # int32, int64, bool
RULES: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "Squeeze": lambda x, a: np.squeeze(x[0], _axes(x, a)),
    "Unsqueeze": _unsqueeze,
    "Identity": lambda x, a: x[0],
    "Gather": lambda x, a: np.take(x[0], x[1], a["axis"].i if "axis" in a else 0),
    "Concat": lambda x, a: np.concatenate(x, a["axis"].i),
    "Slice": _slice,
    "Add": lambda x, a: x[0] + x[1],
    "Sub": lambda x, a: x[0] - x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Div": _divide,
    "Mod": lambda x, a: np.fmod(x[0], x[1]) if "fmod" in a and a["fmod"].i else np.mod(x[0], x[1]),
    "Neg": lambda x, a: -x[0],
    "Abs": lambda x, a: np.abs(x[0]),
    "Min": lambda x, a: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Max": lambda x, a: np.maximum.reduce(np.broadcast_arrays(*x)),
    "Equal": lambda x, a: x[0] == x[1],
    "Less": lambda x, a: x[0] < x[1],
    "Greater": lambda x, a: x[0] > x[1],
    "LessOrEqual": lambda x, a: x[0] <= x[1],
    "GreaterOrEqual": lambda x, a: x[0] >= x[1],
    "And": lambda x, a: x[0] & x[1],
    "Or": lambda x, a: x[0] | x[1],
    "Not": lambda x, a: ~x[0],
    "Where": lambda x, a: np.where(x[0], x[1], x[2]),
    "Cast": _cast,
    "Reshape": lambda x, a: x[0].reshape([n or x[0].shape[i] for i, n in enumerate(x[1].tolist())]),
    "Transpose": lambda x, a: np.transpose(x[0], tuple(a["perm"].ints) if "perm" in a else None),
    "Expand": lambda x, a: np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, tuple(x[1].tolist()))),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ReduceProd": lambda x, a: np.prod(
        x[0], axis=_axes(x, a), keepdims=bool(a["keepdims"].i) if "keepdims" in a else True
    ),
}
