"""Fewer operators for the same numbers: what the converter's layout pass leaves between channels first and last.

Every step is exact: values move or are padded the same way. On an NPU a stray TRANSPOSE is an island on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.runtimes.tflite.graph import Graph

PADDED = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1}  # operators that can pad by themselves, and where their kernel is
SAME, VALID = 0, 1


def tidy(graph: Graph) -> None:
    """Apply the steps until none applies."""
    steps = (
        _drop_identity,
        _merge_transposes,
        _pad_before_transpose,
        _mean_of_transposed,
        _pad_between_reshapes,
        _pad_inside,
        _transpose_to_reshape,
        _merge_reshapes,
    )
    while any(step(graph, operator) for step in steps for operator in list(graph.operators)):
        continue


def axes_of_transpose(graph: Graph, operator: Any) -> tuple[int, ...] | None:
    """The constant permutation of a TRANSPOSE."""
    if graph.kind(operator) != "TRANSPOSE":
        return None
    values = graph.values(int(operator.inputs[1]))
    return None if values is None else tuple(int(axis) for axis in values.reshape(-1))


def _ends(operator: Any) -> tuple[int, int]:
    return int(operator.inputs[0]), int(operator.outputs[0])


def _before(graph: Graph, operator: Any) -> Any | None:
    return graph.producers().get(int(operator.inputs[0]))


def _drop_identity(graph: Graph, operator: Any) -> bool:
    """A RESHAPE to the same shape, a TRANSPOSE that moves nothing."""
    source, result = _ends(operator)
    axes = axes_of_transpose(graph, operator)
    same = graph.kind(operator) == "RESHAPE" and graph.shape(source) == graph.shape(result)
    if not same and (axes is None or axes != tuple(range(len(axes)))):
        return False
    if result in graph.outputs and (source in graph.inputs or source in graph.outputs):
        return False  # an input that is handed out has to be a tensor of its own
    graph.remove(operator)
    graph.replace_uses(result, source)
    return True


def _merge_transposes(graph: Graph, operator: Any) -> bool:
    """A TRANSPOSE of a TRANSPOSE is one of the first's input."""
    axes = axes_of_transpose(graph, operator)
    first = _before(graph, operator) if axes is not None else None
    inner = axes_of_transpose(graph, first) if first is not None else None
    if axes is None or inner is None or first is None:
        return False
    joined = np.asarray([inner[axis] for axis in axes], np.int32)
    operator.inputs = np.asarray([_ends(first)[0], graph.add_tensor("axes", "INT32", joined.shape, joined)], np.int32)
    _remove_unread(graph, first)
    return True


def _pad_before_transpose(graph: Graph, operator: Any) -> bool:
    """A PAD of a TRANSPOSE's result is the TRANSPOSE of a PAD: beside another one it goes away."""
    first = _before(graph, operator) if graph.kind(operator) == "PAD" else None
    axes = axes_of_transpose(graph, first) if first is not None else None
    pads = graph.values(int(operator.inputs[1])) if axes is not None else None
    if axes is None or pads is None or first is None:
        return False
    source, result = _ends(first)[0], int(operator.outputs[0])
    inside = np.ascontiguousarray(pads[np.argsort(axes)])
    shape = [size + int(before) + int(after) for size, (before, after) in zip(graph.shape(source), inside, strict=True)]
    padded = graph.add_tensor("padded", graph.type(result), shape)
    graph.tensors[padded].quantization = graph.tensors[result].quantization
    pad = graph.add_tensor("pads", graph.type(int(operator.inputs[1])), inside.shape, inside)
    operator.inputs = np.asarray([source, pad], np.int32)
    operator.outputs = np.asarray([padded], np.int32)
    graph.add_operator(
        "TRANSPOSE", [padded, int(first.inputs[1])], [result], graph.place(operator) + 1, "TransposeOptions"
    )
    _remove_unread(graph, first)
    return True


def _pad_between_reshapes(graph: Graph, operator: Any) -> bool:
    """A PAD between two RESHAPEs that only move axes of size one, as around a map of one channel."""
    first = _before(graph, operator) if graph.kind(operator) == "PAD" else None
    users = graph.users(int(operator.outputs[0]))
    if first is None or graph.kind(first) != "RESHAPE" or [graph.kind(user) for user in users] != ["RESHAPE"]:
        return False
    source, result, pads = _ends(first)[0], int(users[0].outputs[0]), graph.values(int(operator.inputs[1]))
    before, within, after = graph.shape(source), graph.shape(int(operator.inputs[0])), graph.shape(result)
    if pads is None or len(before) != len(after) or int(operator.outputs[0]) in graph.outputs:
        return False
    wide = [[axis for axis, size in enumerate(shape) if size != 1] for shape in (before, within)]
    if [before[axis] for axis in wide[0]] != [within[axis] for axis in wide[1]]:
        return False
    inside = np.zeros((len(before), 2), pads.dtype)
    inside[wide[0]] = pads[wide[1]]
    if inside.sum() != pads.sum() or tuple(inside.sum(1) + before) != after:
        return False
    pad = graph.add_tensor("pads", graph.type(int(operator.inputs[1])), inside.shape, inside)
    operator.inputs, operator.outputs = np.asarray([source, pad], np.int32), np.asarray([result], np.int32)
    graph.remove(users[0])
    _remove_unread(graph, first)
    return True


def _transpose_to_reshape(graph: Graph, operator: Any) -> bool:
    """A TRANSPOSE that only moves axes of size one."""
    axes, (source, result) = axes_of_transpose(graph, operator), _ends(operator)
    if axes is None:
        return False
    shape = graph.shape(source)
    moved = [axis for axis in axes if shape[axis] != 1]
    if moved != sorted(moved):
        return False
    place = graph.place(operator)
    graph.remove(operator)
    _add_reshape(graph, source, result, place)
    return True


def _merge_reshapes(graph: Graph, operator: Any) -> bool:
    """A RESHAPE of a RESHAPE is one of the first's input."""
    first = _before(graph, operator) if graph.kind(operator) == "RESHAPE" else None
    if first is None or graph.kind(first) != "RESHAPE":
        return False
    operator.inputs = np.asarray([_ends(first)[0], *operator.inputs[1:]], np.int32)
    _remove_unread(graph, first)
    return True


def _mean_of_transposed(graph: Graph, operator: Any) -> bool:
    """A MEAN over axes of a TRANSPOSE's result is one over other axes of its input, if what is left keeps its order."""
    first = _before(graph, operator) if graph.kind(operator) == "MEAN" else None
    axes = axes_of_transpose(graph, first) if first is not None else None
    over = graph.values(int(operator.inputs[1])) if axes is not None else None
    if axes is None or over is None or first is None:
        return False
    source, result = _ends(first)[0], int(operator.outputs[0])
    rank = len(axes)
    reduced = {axes[int(axis) % rank] for axis in over.reshape(-1)}
    left = [axis for axis in axes if axis not in reduced]
    if left != sorted(left):
        return False
    inside = np.asarray(sorted(reduced), np.int32)
    operator.inputs = np.asarray([source, graph.add_tensor("axes", "INT32", inside.shape, inside)], np.int32)
    if operator.builtinOptions.keepDims:
        shape = [1 if axis in reduced else size for axis, size in enumerate(graph.shape(source))]
        if tuple(shape) != graph.shape(result):
            _reshape_after(graph, operator, shape)
    _remove_unread(graph, first)
    return True


def _reshape_after(graph: Graph, operator: Any, shape: list[int]) -> None:
    """Let `operator` give `shape`, and a RESHAPE its old result."""
    result = int(operator.outputs[0])
    made = graph.add_tensor("mean", graph.type(result), shape)
    graph.tensors[made].quantization = graph.tensors[result].quantization
    operator.outputs = np.asarray([made], np.int32)
    _add_reshape(graph, made, result, graph.place(operator) + 1)


def _add_reshape(graph: Graph, source: int, result: int, place: int) -> None:
    shape = np.asarray(graph.shape(result), np.int32)
    target = graph.add_tensor("shape", "INT32", shape.shape, shape)
    made = graph.add_operator("RESHAPE", [source, target], [result], place, "ReshapeOptions")
    made.builtinOptions.newShape = shape


def _pad_inside(graph: Graph, operator: Any) -> bool:
    """A PAD before a convolution without padding, by just what SAME would pad."""
    at = PADDED.get(graph.kind(operator))
    first = _before(graph, operator) if at is not None else None
    if at is None or first is None or graph.kind(first) != "PAD" or operator.builtinOptions.padding != VALID:
        return False
    source = _ends(first)[0]
    pads, options = graph.values(int(first.inputs[1])), operator.builtinOptions
    shape, kernel = graph.shape(source), graph.shape(int(operator.inputs[at]))[1:3]
    if pads is None or pads.shape != (4, 2) or pads[[0, 3]].any():
        return False
    strides, dilations = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    for size, width, stride, dilation, pad in zip(shape[1:3], kernel, strides, dilations, pads[1:3], strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        if list(pad) != [total // 2, total - total // 2]:
            return False
    options.padding = SAME
    operator.inputs = np.asarray([source, *operator.inputs[1:]], np.int32)
    _remove_unread(graph, first)
    return True


def _remove_unread(graph: Graph, operator: Any) -> None:
    """Take an operator out when nothing reads its result any more."""
    result = int(operator.outputs[0])
    if not graph.users(result) and result not in graph.outputs:
        graph.remove(operator)
