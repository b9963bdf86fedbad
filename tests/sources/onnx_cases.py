"""ONNX nodes as test cases: small graphs of one operator, and their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
rng = np.random.default_rng(7)


def f(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    """Random float32 of this shape."""
    return rng.uniform(low, high, shape).astype(np.float32)


def i(*values: int) -> Array:
    """int64 values."""
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One node. `inputs`: what the model is given; `constants`: initializers, at their place among the node's inputs
    (None: absent)."""

    op: str
    inputs: Sequence[Array]
    constants: Mapping[int, Array | None] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    domain: str = ""

    def __str__(self) -> str:
        said = ",".join(
            f"{key}={value}" for key, value in self.attributes.items() if not isinstance(value, onnx.TensorProto)
        )
        return f"{self.op}-{self.opset}-{said}-{'x'.join(map(str, self.inputs[0].shape)) if self.inputs else ''}"

    def feed(self) -> dict[str, Array]:
        return {f"x{place}": value for place, value in enumerate(self.inputs)}

    def model(self) -> onnx.ModelProto:
        """The graph of this one node."""
        names: list[str] = []
        given = iter(range(len(self.inputs)))
        for place in range(len(self.inputs) + len(self.constants)):
            if place in self.constants:
                names.append("" if self.constants[place] is None else f"c{place}")
            else:
                names.append(f"x{next(given)}")
        made = [f"y{place}" for place in range(self.outputs)]
        node = helper.make_node(self.op, names, made, name="the node", domain=self.domain, **self.attributes)
        stored = [numpy_helper.from_array(value, f"c{at}") for at, value in self.constants.items() if value is not None]
        return graph_of([node], self.feed(), made, stored, self.opset)


def graph_of(
    nodes: list[Any], feed: Mapping[str, Array], outputs: Sequence[str], stored: Sequence[Any] = (), opset: int = 17
) -> onnx.ModelProto:
    """A model of these nodes, its inputs of the shapes in `feed`."""
    entries = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    exits = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    graph = helper.make_graph(nodes, "graph", entries, exits, list(stored))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8 if opset < 21 else 10)
    inferred = onnx.shape_inference.infer_shapes(model)
    for out, known in zip(model.graph.output, inferred.graph.output, strict=True):
        kind = known.type.tensor_type.elem_type or TensorProto.FLOAT
        out.CopyFrom(helper.make_tensor_value_info(out.name, kind, None))
    return model


def save(model: onnx.ModelProto, directory: Path) -> Path:
    path = directory / "m.onnx"
    onnx.save(model, str(path))
    return path


def in_onnxruntime(path: Path, feed: Mapping[str, Array], *, optimised: bool = False) -> list[Array]:
    """The oracle: ONNX Runtime, without its optimisations unless asked for.

    They are needed for MatMulNBits with scales that are computed: without, ONNX Runtime 1.32 answers zeros.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feed))]


UNARY = (
    "Neg", "Abs", "Exp", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Erf",
    "Reciprocal", "Tanh", "Sigmoid", "Relu", "Softplus", "Softsign", "IsNaN", "IsInf", "HardSwish", "LeakyRelu", "Elu",
    "Selu", "Celu", "HardSigmoid", "ThresholdedRelu", "Identity", "Shrink", "Mish",
)  # fmt: skip
ELEMENTWISE = [
    *(Case(op, [f(2, 3)], opset=18) for op in UNARY),
    *(Case(op, [f(2, 3, low=0.1, high=0.9)]) for op in ("Sqrt", "Log", "Asin", "Acos", "Atanh")),
    Case("Acosh", [f(2, 3, low=1.1, high=3.0)]),
    Case("Not", [np.array([True, False])]),
    Case("Gelu", [f(3, 4)], opset=20), Case("Gelu", [f(3, 4)], attributes={"approximate": "tanh"}, opset=20),
    Case("HardSigmoid", [f(9)], attributes={"alpha": 1 / 6, "beta": 0.5}),
    *(Case(op, [f(2, 1, 3), f(4, 1)]) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    Case("PRelu", [f(2, 3, 4)], {1: f(3, 1)}), Case("PRelu", [f(2, 3)], {1: f(1)}),
    *(Case(op, [f(2, 3)], {1: f()}) for op in ("Add", "Sub", "Mul", "Div")),
    *(Case(op, [f(2, 3, low=0.5)], {0: np.float32(3.0).reshape(())}) for op in ("Add", "Sub", "Mul", "Div", "Pow")),
    Case("Div", [np.array([7, -7, 5], np.int64), np.array([2, 2, -3], np.int64)]),
    Case("Div", [np.array([7, -7, 5], np.int64)], {1: np.array(2, np.int64)}),
    Case("Pow", [f(2, 3)], {1: np.array(2, np.float32)}), Case("Pow", [f(2, 3)], {1: np.array(3, np.int64)}),
    Case("Pow", [f(2, 3, low=0.2)], {1: f(3)}),
    Case("Mod", [np.array([7, -7, 5]), np.array([3, 3, -3])]),
    Case("Mod", [f(4), f(4, low=0.5)], attributes={"fmod": 1}),
    *(Case(op, [np.array([1.0, 2.0, 3.0], np.float32), np.array([2.0, 2.0, 2.0], np.float32)])
      for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    *(Case(op, [np.array([True, False, True]), np.array([True, True, False])]) for op in ("And", "Or", "Xor")),
    Case("Where", [np.array([[True], [False]]), f(2, 3), f(1, 3)]),
    Case("Max", [f(3), f(3), f(3)]), Case("Mean", [f(3), f(3), f(3)]), Case("Sum", [f(2, 3)]),
    Case("Clip", [f(9)], {1: np.float32(-0.5).reshape(()), 2: np.float32(0.5).reshape(())}),
    Case("Clip", [f(9)], {1: None, 2: np.float32(0.5).reshape(())}), Case("Clip", [f(9)]),
    *(Case(op, [f(2, 3, 4)], opset=opset) for op in ("Softmax", "LogSoftmax", "Hardmax") for opset in (11, 13)),
    *(Case("Softmax", [f(2, 3, 4)], attributes={"axis": axis}, opset=opset)
      for axis in (0, 1, -1) for opset in (12, 17)),
]  # fmt: skip
REDUCTIONS = [
    *(Case(op, [f(2, 3, 4, low=0.2)], attributes={"axes": [1, -1]}, opset=12)
      for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                 "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")),
    *(Case(op, [f(2, 3, 4)], {1: i(0, 2)}, {"keepdims": 0}, 18)
      for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2")),
    Case("ReduceSum", [f(2, 3)]), Case("ReduceMean", [f(2, 3)], attributes={"keepdims": 0}),
    Case("ReduceSum", [f(2, 3)], attributes={"noop_with_empty_axes": 1}),
    *(Case(op, [f(3, 4)], attributes={"axis": 1, "keepdims": keep, "select_last_index": last})
      for op in ("ArgMax", "ArgMin") for keep in (0, 1) for last in (0, 1)),
    Case("CumSum", [f(3, 4)], {1: np.array(1, np.int64)}),
    Case("CumSum", [f(3, 4)], {1: np.array(0, np.int64)}, {"reverse": 1}),
    Case("TopK", [f(3, 8)], {1: i(3)}, outputs=2),
    Case("TopK", [f(3, 8)], {1: i(2)}, {"axis": 0, "largest": 0}, outputs=2),
    Case("Einsum", [f(2, 3, 4), f(2, 4, 5)], attributes={"equation": "bij,bjk->bik"}),
]  # fmt: skip
SHAPES = [
    Case("Reshape", [f(2, 3, 4)], {1: i(0, -1)}), Case("Reshape", [f(2, 3, 4)], {1: i(4, 6)}),
    *(Case("Flatten", [f(2, 3, 4)], attributes={"axis": axis}) for axis in (0, 1, 2, 3, -1)),
    Case("Transpose", [f(2, 3, 4)]), Case("Transpose", [f(2, 3, 4)], attributes={"perm": [1, 2, 0]}),
    Case("Squeeze", [f(1, 3, 1)]), Case("Squeeze", [f(1, 3, 1)], {1: i(-1)}),
    Case("Squeeze", [f(1, 3, 1)], attributes={"axes": [0]}, opset=11),
    Case("Unsqueeze", [f(2, 3)], {1: i(0, -1)}), Case("Unsqueeze", [f(2, 3)], attributes={"axes": [1, 2]}, opset=12),
    Case("Concat", [f(2, 3), f(2, 1)], attributes={"axis": -1}),
    Case("Concat", [f(2, 3)], {1: f(2, 2)}, {"axis": 1}),
    Case("Split", [f(2, 6)], attributes={"axis": 1, "split": [1, 5]}, opset=11, outputs=2),
    Case("Split", [f(2, 6)], {1: i(2, 4)}, {"axis": 1}, outputs=2),
    Case("Split", [f(6, 2)], outputs=3), Case("Split", [f(7, 2)], attributes={"num_outputs": 3}, opset=18, outputs=3),
    Case("Slice", [f(5, 6)], {1: i(1, 0), 2: i(4, 5)}),
    Case("Slice", [f(5, 6)], {1: i(-3), 2: i(2**62), 3: i(1), 4: i(2)}),
    Case("Slice", [f(5, 6)], {1: i(-1), 2: i(-(2**62)), 3: i(0), 4: i(-1)}),
    Case("Slice", [f(5, 6)], {1: i(4), 2: i(0), 3: i(-1), 4: i(-2)}),
    Case("Slice", [f(5, 6)], {1: i(4), 2: i(2), 3: i(0)}),
    Case("Gather", [f(5, 6)], {1: i(0, -1, 2)}, {"axis": 1}), Case("Gather", [f(5, 6)], {1: np.array(-2, np.int64)}),
    Case("Gather", [f(5, 6)], {1: np.array([[0, 1], [2, 3]])}),
    Case("Gather", [f(5, 6), np.array([[1], [-1]])], attributes={"axis": 1}),
    Case("Gather", [np.array([[1, 3], [0, 2]])], {0: f(5, 6)}), Case("Gather", [np.array(3)], {0: f(5, 6)}),
    Case("GatherElements", [f(3, 4), np.array([[0, -1], [1, 2], [0, 0]])], attributes={"axis": 1}),
    Case("GatherND", [f(3, 4, 2), np.array([[0, 1], [2, 3]])]),
    Case("ScatterND", [f(5, 2), np.array([[0], [3]]), f(2, 2)]),
    Case("ScatterElements", [f(3, 4), np.array([[0, 1], [1, -1]]), f(2, 2)], attributes={"axis": 1}),
    Case("Expand", [f(3, 1)], {1: i(2, 1, 4)}), Case("Expand", [f(3, 4)], {1: i(1, 1)}),
    Case("Tile", [f(2, 3)], {1: i(2, 2)}),
    Case("Cast", [f(4)], attributes={"to": TensorProto.INT64}),
    Case("Cast", [f(4)], attributes={"to": TensorProto.BOOL}),
    Case("Cast", [np.arange(4)], attributes={"to": TensorProto.FLOAT}), Case("CastLike", [f(4), np.arange(4)]),
    Case("Dropout", [f(4)], {1: np.float32(0.5).reshape(())}),
    Case("Pad", [f(2, 3)], {1: i(0, 1, 2, 0)}),
    Case("Pad", [f(2, 3)], {1: i(0, 1, 0, 2), 2: np.float32(1.5).reshape(())}),
    Case("Pad", [f(2, 3)], {1: i(0, -1, 0, 1)}),
    *(Case("Pad", [f(1, 2, 4, 5)], {1: i(0, 0, 1, 2, 0, 0, 2, 1)}, {"mode": mode}) for mode in ("reflect", "edge")),
    Case("Pad", [f(2, 5)], {1: i(0, 2, 0, 1)}, {"mode": "reflect"}),
    Case("Pad", [f(3, 4)], {1: i(1, 1), 2: np.float32(0).reshape(()), 3: i(-1)}, opset=18),
    Case("DepthToSpace", [f(1, 8, 2, 3)], attributes={"blocksize": 2}),
    Case("DepthToSpace", [f(1, 8, 2, 3)], attributes={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [f(1, 2, 4, 6)], attributes={"blocksize": 2}),
    Case("Trilu", [f(3, 4)]), Case("Trilu", [f(3, 4)], {1: np.array(-1, np.int64)}, {"upper": 0}),
    Case("OneHot", [np.array([0, 2, -1])], {1: np.array(4, np.int64), 2: np.array([0.5, 2.0], np.float32)}),
    Case("OneHot", [np.array([[0], [2]])], {1: np.array(3, np.int64), 2: np.array([0, 1], np.float32)}, {"axis": 0}),
]  # fmt: skip
LAYERS = [
    Case("Conv", [f(2, 4, 7, 8)], {1: f(6, 4, 3, 3), 2: f(6)}),
    Case("Conv", [f(1, 4, 7, 8)], {1: f(6, 2, 3, 2)}, {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 0]}),
    Case("Conv", [f(1, 4, 7, 8)], {1: f(4, 1, 3, 3)}, {"group": 4, "pads": [0, 1, 2, 1], "dilations": [1, 2]}),
    *(Case("Conv", [f(1, 2, 7, 8)], {1: f(3, 2, 3, 2)}, {"auto_pad": pad, "strides": [2, 2]})
      for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    Case("Conv", [f(1, 3, 9)], {1: f(4, 3, 3)}, {"pads": [2, 0]}),
    Case("Conv", [f(1, 2, 4, 5, 4)], {1: f(3, 2, 2, 3, 2)}),
    Case("Conv", [f(1, 2, 5, 5), f(3, 2, 3, 3)]),
    Case("ConvTranspose", [f(1, 3, 4, 5)], {1: f(3, 2, 3, 3), 2: f(2)}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("ConvTranspose", [f(1, 4, 4, 5)], {1: f(4, 1, 3, 3)},
      {"group": 2, "strides": [2, 2], "output_padding": [1, 0]}),
    Case("ConvTranspose", [f(1, 3, 4, 5)], {1: f(3, 2, 3, 3)}, {"pads": [0, 1, 1, 0], "strides": [2, 1]}),
    Case("ConvTranspose", [f(1, 3, 5)], {1: f(3, 2, 3)}, {"strides": [2], "output_shape": [10]}),
    Case("ConvTranspose", [f(1, 3, 5)], {1: f(3, 2, 3)}, {"strides": [2], "auto_pad": "SAME_UPPER"}),
    Case("Gemm", [f(3, 4)], {1: f(4, 5), 2: f(5)}), Case("Gemm", [f(3, 4)], {1: f(5, 4), 2: f(5)}, {"transB": 1}),
    Case("Gemm", [f(4, 3)], {1: f(5, 4), 2: f(3, 1)}, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [f(3, 4)], {1: f(4, 5)}), Case("Gemm", [f(3, 4)], {1: f(4, 5), 2: f(1)}),
    Case("Gemm", [f(3, 4), f(5, 4), f(5)], attributes={"transB": 1, "beta": 0.5}),
    Case("MatMul", [f(3, 4)], {1: f(4, 5)}), Case("MatMul", [f(2, 3, 4)], {1: f(4, 5)}),
    Case("MatMul", [f(4)], {1: f(4, 5)}),
    Case("MatMul", [f(2, 3, 4), f(2, 4, 5)]), Case("MatMul", [f(4, 2)], {0: f(3, 4)}),
    Case("MatMul", [f(2, 3, 4)], {1: f(2, 4, 5)}), Case("MatMul", [f(3, 4)], {1: f(4)}),
    Case("BatchNormalization", [f(2, 3, 4)], {1: f(3), 2: f(3), 3: f(3), 4: f(3, low=0.5)}, {"epsilon": 1e-3}),
    Case("InstanceNormalization", [f(2, 3, 4)], {1: f(3), 2: f(3)}),
    Case("LayerNormalization", [f(2, 3, 4)], {1: f(4), 2: f(4)}), Case("LayerNormalization", [f(2, 3, 4)], {1: f(4)}),
    Case("LayerNormalization", [f(2, 3, 4)], {1: f(3, 4), 2: f(3, 4)}, {"axis": 1}),
    Case("GroupNormalization", [f(2, 6, 3)], {1: f(2), 2: f(2)}, {"num_groups": 2}, 18),
    Case("GroupNormalization", [f(2, 6, 3)], {1: f(6), 2: f(6)}, {"num_groups": 2}, 21),
    Case("LRN", [f(1, 5, 3, 3)], attributes={"size": 3, "alpha": 0.01}),
    Case("LpNormalization", [f(3, 4)]), Case("LpNormalization", [f(3, 4)], attributes={"axis": 0, "p": 1}),
    Case("MeanVarianceNormalization", [f(2, 3, 4, 4)]),
    Case("GlobalAveragePool", [f(2, 3, 4, 5)]), Case("GlobalAveragePool", [f(2, 3, 5)]),
    Case("GlobalMaxPool", [f(2, 3, 4, 5)]),
]  # fmt: skip
POOLS = [
    Case(op, [f(1, 2, *size)], attributes={"kernel_shape": kernel, **more}, opset=19)
    for op in ("MaxPool", "AveragePool")
    for size, kernel, more in [
        ((7, 8), [2, 2], {"strides": [2, 2]}),
        ((7, 8), [3, 2], {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
        ((7, 8), [3, 3], {"strides": [2, 2], "ceil_mode": 1}),
        ((8, 8), [3, 3], {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
        ((7, 8), [3, 3], {"strides": [3, 2], "pads": [1, 0, 1, 2], "ceil_mode": 1}),
        ((7, 8), [3, 2], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((9,), [3], {"strides": [2], "pads": [2, 2]}),
        ((4, 5, 4), [2, 2, 2], {}),
    ]
] + [
    Case("MaxPool", [f(1, 2, 9, 9)], attributes={"kernel_shape": [3, 3], "dilations": [2, 2], "strides": [2, 2]}),
    *(Case("AveragePool", [f(1, 2, 8, 8)],
      attributes={"kernel_shape": [3, 3], "strides": [2, 2], "count_include_pad": 1, **more})
      for more in ({"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 1, 0]})),
]  # fmt: skip
RESIZES = [
    *(Case("Resize", [f(1, 2, 4, 5)], {1: None, 2: None, 3: i(1, 2, *size)},
      {"mode": mode, "coordinate_transformation_mode": where})
      for mode in ("nearest", "linear") for size in ((8, 10), (3, 3), (7, 4))
      for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")),
    *(Case("Resize", [f(1, 2, 4, 5)], {1: None, 2: np.array([1, 1, 2, 1.5], np.float32)}, {"mode": mode})
      for mode in ("nearest", "linear")),
    *(Case("Resize", [f(1, 1, 4, 4)], {1: None, 2: None, 3: i(1, 1, 9, 6)},
           {"nearest_mode": nearest, "coordinate_transformation_mode": "asymmetric"})
      for nearest in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")),
    *(Case("Resize", [f(1, 2, 4, 5)], {1: None, 2: None, 3: i(1, 2, 8, 10)},
           {"mode": "cubic", "coordinate_transformation_mode": where}) for where in ("half_pixel", "align_corners")),
    Case("Resize", [f(1, 2, 4, 5)], {1: None, 2: None, 3: i(8, 10)}, {"mode": "linear", "axes": [2, 3]}, 18),
    Case("Resize", [f(1, 2, 4)], {1: None, 2: np.array([1, 1, 2], np.float32)}, {"mode": "linear"}),
]  # fmt: skip


def recurrent(op: str, gates: int, ways: int = 1, bias: bool = True, state: bool = True, **attributes: Any) -> Case:
    """A layer of hidden size 3 over 4 steps of 2 sequences of 5 values."""
    w, r = f(ways, gates * 3, 5, low=-0.5, high=0.5), f(ways, gates * 3, 3, low=-0.5, high=0.5)
    b = f(ways, 2 * gates * 3, low=-0.5, high=0.5) if bias else None
    states = [f(ways, 2, 3)] * (2 if op == "LSTM" else 1) if state else []
    constants: dict[int, Array | None] = {1: w, 2: r, 3: b} | ({4: None} if state else {})
    outputs = 3 if op == "LSTM" else 2
    return Case(op, [f(4, 2, 5), *states], constants, {"hidden_size": 3, **attributes}, outputs=outputs)


RECURRENT = [
    recurrent(op, gates, ways, bias, state, direction=direction)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    for direction, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
    for bias, state in ((True, True), (False, False))
] + [recurrent("GRU", 3, linear_before_reset=1), recurrent("GRU", 3, bias=False, linear_before_reset=1)]
U8, S8 = np.array(3, np.uint8), np.array(-4, np.int8)
QUANTIZED = [
    *(Case("QuantizeLinear", [f(3, 4)], {1: np.float32(0.013).reshape(()), 2: zero}) for zero in (U8, S8)),
    Case("QuantizeLinear", [f(3, 4)], {1: f(4, low=0.01, high=0.1), 2: np.zeros(4, np.int8)}, {"axis": 1}),
    Case("QuantizeLinear", [f(3, 4)], {1: np.float32(0.5).reshape(())}),
    Case("DequantizeLinear", [np.arange(-6, 6, dtype=np.int8).reshape(3, 4)], {1: np.float32(0.1).reshape(()), 2: S8}),
    Case("DequantizeLinear", [np.arange(12, dtype=np.uint8).reshape(3, 4)], {1: f(3), 2: np.arange(3, dtype=np.uint8)},
         {"axis": 0}),
    Case("DequantizeLinear", [np.arange(12, dtype=np.int32)], {1: np.float32(0.1).reshape(())}),
    Case("DequantizeLinear", [np.arange(24, dtype=np.int8).reshape(3, 8)], {1: f(3, 2)},
      {"axis": 1, "block_size": 4}, 21),
    *(Case("MatMulNBits", [f(2, 64)], {1: rng.integers(0, 256, (6, 2, 32 * bits // 8), np.uint8), 2: f(12)},
           {"bits": bits, "block_size": 32, "N": 6, "K": 64}, domain="com.microsoft") for bits in (4, 8)),
    Case("MatMulNBits", [f(2, 64)], {1: rng.integers(0, 256, (6, 2, 16), np.uint8), 2: f(12),
      3: rng.integers(0, 256, 6, np.uint8)},
         {"bits": 4, "block_size": 32, "N": 6, "K": 64}, domain="com.microsoft"),
]  # fmt: skip
CASES = [*ELEMENTWISE, *REDUCTIONS, *SHAPES, *LAYERS, *POOLS, *RESIZES, *RECURRENT, *QUANTIZED]
# Known at import, so no graph of one node: they are tried inside graphs.
FOLDED = {"Shape", "Size", "Constant", "ConstantOfShape", "Range", "EyeLike", "NonZero"}
