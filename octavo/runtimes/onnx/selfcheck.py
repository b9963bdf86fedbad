"""Does ONNX Runtime work here? A model of one node, of the kind that our files are made of, opened and run."""

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
    """Run `one_node` in a worker, since a broken build may abort. Returns what is wrong, nothing if all is well."""
    try:
        with Worker(threads=1) as worker:
            found = worker.call("octavo.runtimes.onnx.selfcheck:one_node", timeout=SECONDS).arrays["y"].tolist()
    except OctavoError as error:
        return f"It cannot run a model of one node: {error.message}"
    expected = [[WIDTH * SCALE]]
    return "" if found == expected else f"A model of one node gives {found}, not {expected}."


def one_node(
    params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A worker's target: ones [1, 32] times a row of 8-bit codes of 1 with scale 0.5. Returns y float32 [1, 1]."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    held: dict[str, NDArray[Any]] = {
        "codes": np.full((1, 1, WIDTH), 129, np.uint8),
        "scale": np.full((1, 1), SCALE, np.float32),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", *held], ["y"], domain="com.microsoft", K=WIDTH, N=1, bits=8, block_size=WIDTH,
        accuracy_level=4,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", WIDTH), ("y", 1))]
    initializers = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph([node], "check", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return {}, {"y": session.run(None, {"x": np.ones((1, WIDTH), np.float32)})[0]}
