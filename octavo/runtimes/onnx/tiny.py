"""Small ONNX graphs that measure ONNX Runtime rather than a model: a chain of tiny operators, one matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from octavo.runtimes.base import Arrays

OPERATORS = 3  # per link of a chain
SIDE = 8  # of a link: a 1 × 1 convolution of 8 channels on 8 × 8 pixels, a difference, a sum
# How much faster Octavo's exports are read than what `write_layers` writes: 1.5 (w8) and 1.6 (w4g32), medians of five
# rounds in turn, exports of 45 and 105 million random weights, ONNX Runtime 1.32, one thread. Why is not known.
EXPORTS_PACE = 1.5
BLOCK = 32  # weights that share a scale in MatMulNBits


def write_chain(path: Path, length: int) -> Arrays:
    """Write `length` links, each a dear operator and two cheap ones, as graphs have them; returns an input.

    What they compute takes well under a microsecond, and gives the input back.
    """
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(SIDE, dtype=np.float32).reshape(SIDE, SIDE, 1, 1), "w")
    nodes = []
    for i in range(length):
        nodes.append(helper.make_node("Conv", [f"x{i}", "w"], [f"c{i}"], name=f"conv{i}"))
        nodes.append(helper.make_node("Sub", [f"c{i}", f"x{i}"], [f"d{i}"], name=f"sub{i}"))
        nodes.append(helper.make_node("Add", [f"d{i}", f"x{i}"], [f"x{i + 1}"], name=f"add{i}"))
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


def write_layers(path: Path, bits: int, layers: int, width: int, inner: int, head: int = 16384) -> tuple[int, int]:
    """Write the products of a decoder in a row, its head last: MatMulNBits of `bits`, 4 in blocks of 32 or 8 of 256,
    for an input x0 [rows, width]; returns (weights, operators).

    They are read more slowly than an exported decoder's (EXPORTS_PACE).
    """
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    block = 32 if bits == 4 else 256
    shapes = [(width, width), (width, width), (inner, width), (width, inner)] * layers + [(head, width)]
    nodes, weights = [], []
    for i, (rows, columns) in enumerate(shapes):
        packed = rng.integers(0, 256, (rows, -(-columns // block), block * bits // 8), np.uint8)
        scales = np.full(packed.shape[:2], 2.0**-13, np.float32)
        weights += [numpy_helper.from_array(packed, f"w{i}"), numpy_helper.from_array(scales, f"s{i}")]
        sizes: dict[str, Any] = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 4}
        inputs = [f"x{i}", f"w{i}", f"s{i}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"x{i + 1}"], domain="com.microsoft", **sizes))
    outputs = {f"x{len(shapes)}": (1, ["rows", head])}
    _write(path, nodes, {"x0": (1, ["rows", width])}, outputs, weights)
    return sum(rows * columns for rows, columns in shapes), len(shapes)


# Networks of a few building blocks, each (operator, output channels, kernel, stride): conv, depthwise (and a 1 × 1
# after it), fire (a squeeze, two expansions, joined), residual (two convs and an addition), pool, dense, tokens (pixels
# in a row), encode (a transformer's layer, its inner width given).
Block = tuple[str, int, int, int]
NETWORKS: dict[str, tuple[int, tuple[Block, ...]]] = {
    "convs 56": (56, (("conv", 32, 3, 1),) * 5),
    "convs 112": (112, (("conv", 16, 3, 2), ("conv", 32, 3, 1), ("conv", 64, 3, 2), ("conv", 64, 3, 1))),
    "convs 28": (28, (("conv", 128, 1, 1), ("conv", 128, 3, 1), ("conv", 128, 3, 1), ("conv", 256, 3, 2))),
    "points 28": (28, (("conv", 192, 1, 1),) * 8),
    "points 14": (14, (("conv", 384, 1, 1),) * 8),
    "depthwise 56": (56, (("conv", 48, 1, 1), *(("depthwise", 64, 3, 1),) * 6)),
    "depthwise 28": (112, (("conv", 32, 3, 4), *(("depthwise", 160, 3, 1),) * 8)),
    "fires 56": (112, (("conv", 32, 3, 2), *(("fire", 96, 3, 1),) * 4)),
    "fires 28": (56, (("conv", 64, 3, 2), *(("fire", 256, 3, 1),) * 5, ("pool", 0, 3, 2), ("fire", 256, 3, 1))),
    "residuals 32": (
        32,
        (("conv", 24, 3, 1), *(("residual", 24, 3, 1),) * 3, ("pool", 0, 2, 2), ("residual", 24, 3, 1)),
    ),
    "residuals 56": (112, (("conv", 64, 3, 2), *(("residual", 64, 3, 1),) * 3)),
    "pools 112": (112, (("conv", 64, 3, 1), ("pool", 0, 3, 2), ("conv", 64, 1, 1), ("pool", 0, 3, 2))),
    "small": (16, (("conv", 8, 3, 1), *(("conv", 8, 1, 1),) * 20)),
    "tokens 16": (4, (("conv", 96, 1, 1), ("tokens", 0, 0, 0), *(("encode", 192, 0, 0),) * 2)),
    "tokens 49": (28, (("conv", 192, 4, 4), ("tokens", 0, 0, 0), *(("encode", 768, 0, 0),) * 2)),
    "tokens 196": (56, (("conv", 64, 4, 4), ("tokens", 0, 0, 0), *(("encode", 256, 0, 0),) * 3)),
    "dense": (8, (("conv", 16, 3, 1), ("dense", 512, 0, 0), ("dense", 1024, 0, 0), ("dense", 1024, 0, 0))),
}


def write_network(path: Path, side: int, blocks: Sequence[Block]) -> Arrays:
    """Write a float network for images [1, 3, side, side], relu after every product; returns an input."""
    made = _Network()
    x, shape = "x", (3, side, side)
    for kind, channels, kernel, stride in blocks:
        x, shape = getattr(made, kind)(x, shape, channels, kernel, stride)
    _write(path, made.nodes, {"x": (1, [1, 3, side, side])}, {x: (1, [1, *shape])}, made.weights)
    return {"x": np.random.default_rng(1).standard_normal((1, 3, side, side), np.float32)}


class _Network:
    """The graph as it grows; every block takes (name, shape [C, H, W] or [C]) and returns them of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.rng = np.random.default_rng(0)

    def conv(self, x: str, shape: Any, channels: int, kernel: int, stride: int, groups: int = 1) -> tuple[str, Any]:
        weight = self._weight((channels, shape[0] // groups, kernel, kernel))
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        y = self._node("Conv", [x, weight, self._weight((channels,))], **sizes)
        side = (shape[1] + 2 * (kernel // 2) - kernel) // stride + 1
        return self._node("Relu", [y]), (channels, side, side)

    def depthwise(self, x: str, shape: Any, channels: int, kernel: int, stride: int) -> tuple[str, Any]:
        x, shape = self.conv(x, shape, shape[0], kernel, stride, groups=shape[0])
        return self.conv(x, shape, channels, 1, 1)

    def fire(self, x: str, shape: Any, channels: int, kernel: int, stride: int) -> tuple[str, Any]:
        x, shape = self.conv(x, shape, channels // 8, 1, 1)
        left, right = self.conv(x, shape, channels // 2, 1, 1), self.conv(x, shape, channels // 2, kernel, 1)
        return self._node("Concat", [left[0], right[0]], axis=1), (channels, *shape[1:])

    def residual(self, x: str, shape: Any, channels: int, kernel: int, stride: int) -> tuple[str, Any]:
        y, _ = self.conv(x, shape, channels, kernel, 1)
        y, _ = self.conv(y, shape, channels, kernel, 1)
        return self._node("Add", [x, y]), shape

    def pool(self, x: str, shape: Any, channels: int, kernel: int, stride: int) -> tuple[str, Any]:
        y = self._node("MaxPool", [x], kernel_shape=[kernel] * 2, strides=[stride] * 2)
        side = (shape[1] - kernel) // stride + 1
        return y, (shape[0], side, side)

    def dense(self, x: str, shape: Any, channels: int, kernel: int, stride: int) -> tuple[str, Any]:
        flat = x if len(shape) == 1 else self._node("Flatten", [x])
        y = self._node(
            "Gemm", [flat, self._weight((channels, int(np.prod(shape)))), self._weight((channels,))], transB=1
        )
        return self._node("Relu", [y]), (channels,)

    def tokens(self, x: str, shape: Any, channels: int, kernel: int, stride: int) -> tuple[str, Any]:
        places = shape[1] * shape[2]
        flat = self._node("Reshape", [x, self._constant(np.array([1, shape[0], places], np.int64))])
        return self._node("Transpose", [flat], perm=[0, 2, 1]), (places, shape[0])

    def encode(self, x: str, shape: Any, channels: int, kernel: int, stride: int) -> tuple[str, Any]:
        width = shape[1]
        normed = self._norm(x, width)
        q, k, v = (self._product(normed, width, width) for _ in range(3))
        scores = self._node("MatMul", [q, self._node("Transpose", [k], perm=[0, 2, 1])])
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), v])
        x = self._node("Add", [x, self._product(mixed, width, width)])
        inner = self._node("Relu", [self._product(self._norm(x, width), width, channels)])
        return self._node("Add", [x, self._product(inner, channels, width)]), shape

    def _product(self, x: str, rows: int, columns: int) -> str:
        weight = self._constant((self.rng.standard_normal((rows, columns)) / rows**0.5).astype(np.float32))
        return self._node("Add", [self._node("MatMul", [x, weight]), self._weight((columns,))])

    def _norm(self, x: str, width: int) -> str:
        one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self._node("LayerNormalization", [x, self._constant(one), self._constant(zero)], axis=-1)

    def _constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def _weight(self, shape: tuple[int, ...]) -> str:
        return self._constant(self.rng.standard_normal(shape, np.float32) / np.float32(max(1, prod(shape[1:])) ** 0.5))

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name


def _write(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: list[Any]) -> None:
    from onnx import helper

    values = [[helper.make_tensor_value_info(key, *kind) for key, kind in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "tiny", values[0], values[1], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
