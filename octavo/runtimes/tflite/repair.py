"""What the converter writes and LiteRT's kernels do not take: made right, number for number."""

from __future__ import annotations

import numpy as np

from octavo.runtimes.tflite.graph import Graph

WEIGHTS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}


def repair(graph: Graph) -> None:
    """Biases of int16 activations in int64; a scale per channel where a kernel wants it so."""
    for operator in graph.operators:
        at = WEIGHTS.get(graph.kind(operator))
        if at is None:
            continue
        weight = int(operator.inputs[at])
        if graph.kind(operator) == "DEPTHWISE_CONV_2D" and graph.type(weight) == "INT8":
            _per_channel(graph, weight, 3, graph.shape(weight)[3])
            if len(operator.inputs) > 2 and int(operator.inputs[2]) >= 0:
                _per_channel(graph, int(operator.inputs[2]), 0, graph.shape(weight)[3])
        into = int(operator.inputs[0 if at == 1 and graph.kind(operator) != "TRANSPOSE_CONV" else 2])
        bias = int(operator.inputs[-1]) if len(operator.inputs) > (3 if into == int(operator.inputs[2]) else 2) else -1
        if graph.type(into) == "INT16" and bias >= 0 and graph.type(bias) == "INT32":
            codes = graph.values(bias)
            if codes is not None:
                graph.set_data(bias, "INT64", codes.astype(np.int64).reshape(-1).view(np.uint8))


def _per_channel(graph: Graph, index: int, axis: int, channels: int) -> None:
    """Repeat the one scale of a weight or bias for each of its channels."""
    held = graph.quantization(index)
    if held is not None and len(held[0]) == 1 != channels:
        graph.quantize(index, np.repeat(held[0], channels), np.repeat(held[1], channels), axis)
