"""Small ONNX graphs that measure ONNX Runtime rather than a model: a chain of tiny operators, one matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo.runtimes.base import Arrays

OPERATORS = 1  # per link of a chain
SIDE = 8  # of a link: a 1 × 1 convolution of 8 channels on 8 × 8 pixels
BLOCK = 32  # weights that share a scale in MatMulNBits


def write_chain(path: Path, length: int) -> Arrays:
    """Write `length` tiny convolutions in a row; returns an input. What they compute takes well under a microsecond."""
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(SIDE, dtype=np.float32).reshape(SIDE, SIDE, 1, 1), "w")
    nodes = [helper.make_node("Conv", [f"x{i}", "w"], [f"x{i + 1}"], name=f"conv{i}") for i in range(length)]
    shape = [1, SIDE, SIDE, SIDE]
    _write(path, nodes, {"x0": (1, shape)}, {f"x{length}": (1, shape)}, [weight])
    return {"x0": np.ones(shape, np.float32)}


def write_product(path: Path, number: str, rows: int, inner: int, columns: int) -> Arrays:
    """Write [rows, inner] × a constant [inner, columns] in `number`: fp32 (MatMul), int8 (MatMulInteger) or int4
    (MatMulNBits, float activations); returns an input."""
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    if number == "fp32":
        weights = [numpy_helper.from_array(rng.standard_normal((inner, columns), np.float32), "w")]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    elif number == "int8":
        weights = [numpy_helper.from_array(rng.integers(-127, 128, (inner, columns), np.int8), "w")]
        node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    else:
        packed = rng.integers(0, 256, (columns, inner // BLOCK, BLOCK // 2), np.uint8)
        scales = np.full((columns, inner // BLOCK), 2.0**-7, np.float32)
        weights = [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales, "s")]
        sizes: dict[str, Any] = {"K": inner, "N": columns, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **sizes)
    kind, result = (2, 6) if number == "int8" else (1, 1)
    _write(path, [node], {"x": (kind, [rows, inner])}, {"y": (result, [rows, columns])}, weights)
    if number == "int8":
        return {"x": rng.integers(0, 256, (rows, inner), np.uint8)}
    return {"x": rng.standard_normal((rows, inner), np.float32)}


def _write(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: list[Any]) -> None:
    from onnx import helper

    values = [[helper.make_tensor_value_info(key, *kind) for key, kind in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "tiny", values[0], values[1], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
