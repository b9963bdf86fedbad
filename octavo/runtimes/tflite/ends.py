"""A file's inputs and outputs: their names, their type (float or integer) and the place of their channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from octavo.runtimes.tflite.graph import Graph
from octavo.runtimes.tflite.tidy import axes_of_transpose

Io = Literal["float", "int8"]
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
INTEGERS = ("INT8", "INT16")


def float_ends(graph: Graph) -> None:
    """Quantise float inputs and dequantise outputs in the graph, where the converter left integers at its ends."""
    for index in graph.inputs:
        if graph.type(index) in INTEGERS and graph.quantization(index) is not None:
            made = graph.add_tensor("input", "FLOAT32", graph.shape(index))
            graph.set_inputs([made if other == index else other for other in graph.inputs])
            graph.add_operator("QUANTIZE", [made], [index], 0, "QuantizeOptions", version=_version(graph, index))
    for index in dict.fromkeys(graph.outputs):
        if graph.type(index) in INTEGERS and graph.quantization(index) is not None:
            made = graph.add_tensor("output", "FLOAT32", graph.shape(index))
            graph.set_outputs([made if other == index else other for other in graph.outputs])
            end = len(graph.operators)
            graph.add_operator("DEQUANTIZE", [index], [made], end, "DequantizeOptions", version=_version(graph, index))


def _version(graph: Graph, index: int) -> int:
    return 2 if graph.type(index) == "INT8" else 3


def channels_last(graph: Graph) -> tuple[list[str], list[str]]:
    """Take the TRANSPOSE away from behind inputs and before outputs; the layout of each: "NHWC", or "" as it was."""
    layouts: tuple[list[str], list[str]] = ([], [])
    for index in graph.inputs:
        users = graph.users(index)
        moves = [axes_of_transpose(graph, user) for user in users]
        layouts[0].append("NHWC" if users and set(moves) == {LAST} else "")
        if layouts[0][-1]:
            kept = int(users[0].outputs[0])
            for user in users:
                graph.replace_uses(int(user.outputs[0]), kept)
                graph.remove(user)
            graph.set_inputs([kept if other == index else other for other in graph.inputs])
    for index in graph.outputs:
        maker = graph.producers().get(index)
        moved = maker is not None and axes_of_transpose(graph, maker) == FIRST and graph.outputs.count(index) == 1
        layouts[1].append("NHWC" if moved else "")
        if moved and maker is not None:
            graph.set_outputs([int(maker.inputs[0]) if other == index else other for other in graph.outputs])
            if not graph.users(index):
                graph.remove(maker)
    return layouts


def described(
    graph: Graph, names: tuple[Sequence[str], Sequence[str]], layouts: tuple[list[str], list[str]], io: str
) -> dict[str, Any]:
    """What a caller must know of the ends: {"io", "inputs": {name: {type, shape, scale, zero_point, layout}}, …}."""
    found: dict[str, Any] = {"io": io}
    ends = ("inputs", "outputs"), names, (graph.inputs, graph.outputs), layouts
    for which, called, indices, kinds in zip(*ends, strict=True):
        found[which] = {}
        for name, index, layout in zip(called, indices, kinds, strict=True):
            entry: dict[str, Any] = {"type": graph.type(index).lower(), "shape": list(graph.shape(index))}
            held = graph.quantization(index)
            if held is not None:
                entry |= {"scale": float(np.float32(held[0][0])), "zero_point": int(held[1][0])}
            if layout:
                entry["layout"] = layout
            found[which][name] = entry
    return found
