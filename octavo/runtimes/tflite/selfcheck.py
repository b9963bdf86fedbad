"""Does LiteRT work here? A model of one operator, of the kind that our files are made of, opened and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OctavoError
from octavo.workers.local import Worker

WIDTH, SCALE = 32, 0.5
SECONDS = 120  # a cold start of a slow disk, no more


def check() -> str:
    """Run `one_operator` in a worker, since a broken build may abort. Returns what is wrong, nothing if all is well."""
    try:
        with Worker(threads=1) as worker:
            found = worker.call("octavo.runtimes.tflite.selfcheck:one_operator", timeout=SECONDS).arrays["y"].tolist()
    except OctavoError as error:
        return f"It cannot run a model of one operator: {error.message}"
    expected = [[WIDTH * SCALE]]
    return "" if np.allclose(found, expected, rtol=1e-2) else f"A model of one operator gives {found}, not {expected}."


def one_operator(
    params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A worker's target: ones [1, 32] times a row of int8 codes of 1 with scale 0.5. Returns y float32 [1, 1]."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_content=tiny(), num_threads=1)
    found.allocate_tensors()
    found.set_tensor(found.get_input_details()[0]["index"], np.ones((1, WIDTH), np.float32))
    found.invoke()
    return {}, {"y": found.get_tensor(found.get_output_details()[0]["index"])}


def tiny() -> bytes:
    """A FULLY_CONNECTED with int8 weights."""
    from octavo.runtimes.tflite.graph import Graph, schema

    made, body = schema().ModelT(), schema().SubGraphT()
    made.version, made.subgraphs, made.buffers, made.operatorCodes = 3, [body], [schema().BufferT()], []
    body.tensors, body.operators = [], []
    body.inputs, body.outputs = np.asarray([0], np.int32), np.asarray([2], np.int32)
    graph = Graph.of(made)
    graph.add_tensor("x", "FLOAT32", (1, WIDTH))
    weight = graph.add_tensor("w", "INT8", (1, WIDTH), np.ones((1, WIDTH), np.int8))
    graph.quantize(weight, np.asarray([SCALE], np.float32), np.zeros(1, np.int64))
    graph.add_tensor("y", "FLOAT32", (1, 1))
    graph.add_operator("FULLY_CONNECTED", [0, weight, -1], [2], 0, "FullyConnectedOptions", version=5)
    return graph.pack()
