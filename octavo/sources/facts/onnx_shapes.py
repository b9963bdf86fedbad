"""Shapes of every value of an ONNX graph, by onnx's shape inference on a copy that holds no large values.

Operators of com.microsoft are unknown to it; in the copy a standard one of the same shapes stands for each.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from octavo.errors import BadInput
from octavo.sources.facts.network import Shape

SMALL = 1024  # elements: shapes and axes, which inference needs, are far below
ROUNDS = 12  # of inference and folding; an If within an If takes two
NAMES = {
    1: "fp32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "fp16", 11: "fp64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bf16", 17: "fp8",
    18: "fp8", 19: "fp8", 20: "fp8", 21: "uint4", 22: "int4", 23: "fp4", 25: "uint2", 26: "int2",
}  # fmt: skip
BYTES = {
    "fp32": 4.0, "uint8": 1.0, "int8": 1.0, "uint16": 2.0, "int16": 2.0, "int32": 4.0, "int64": 8.0, "bool": 1.0,
    "fp16": 2.0, "fp64": 8.0, "uint32": 4.0, "uint64": 8.0, "complex64": 8.0, "complex128": 16.0, "bf16": 2.0,
    "fp8": 1.0, "uint4": 0.5, "int4": 0.5, "fp4": 0.5, "uint2": 0.25, "int2": 0.25,
}  # fmt: skip
AS_FIRST = (  # com.microsoft operators whose first output has the shape and type of their first input
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization",
    "BiasGelu", "FastGelu", "QuickGelu", "Gelu", "RotaryEmbedding", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAdd",
    "QLinearMul", "QLinearSoftmax", "MultiHeadAttention", "GroupQueryAttention",
)  # fmt: skip
PRODUCTS = {"FusedMatMul": "MatMul", "FusedConv": "Conv", "FusedGemm": "Gemm", "NhwcConv": "Conv"}


def type_name(data_type: int) -> str:
    """Octavo's word for an ONNX element type."""
    return NAMES.get(data_type, f"type {data_type}")


def type_bytes(data_type: int) -> float:
    """Bytes per element; 0 for strings and what is unknown."""
    return BYTES.get(type_name(data_type), 0.0)


def inferred(model: Any, path: Path) -> Any:
    """A copy of `model` with the shapes of its values filled in and sizes computed ahead. Both lose their large values.

    Raises BadInput when shapes contradict each other.
    """
    import onnx

    from octavo.sources.facts.onnx_fold import fold

    _lighten(model.graph)  # before the copy: a second set of large weights would be held for nothing
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    originals: dict[str, Any] = {}
    added: set[str] = set()
    _stand_in(copy.graph, originals, added)
    for _ in range(ROUNDS):
        try:
            copy = onnx.shape_inference.infer_shapes(copy, check_type=False, strict_mode=False, data_prop=True)
        except Exception as error:  # onnx raises its own InferenceError and plain RuntimeErrors
            raise BadInput(f"{path}: its shapes do not fit together ({str(error).strip().splitlines()[0]}).") from error
        if not fold(copy.graph):
            break
    _restore(copy.graph, originals, added)
    return copy


def shapes_of(graph: Any, shapes: dict[str, Shape], guessed: set[str]) -> dict[str, tuple[Shape, float]]:
    """{value: (shape, bytes per element)}; `shapes` gains them all, `guessed` those with a size taken as 1."""
    found: dict[str, tuple[Shape, float]] = {}
    for item in (*graph.input, *graph.value_info, *graph.output):
        tensor = item.type.tensor_type
        if not item.type.HasField("tensor_type") or item.name in found:
            continue
        known = tensor.HasField("shape")
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if not known or None in sizes:
            guessed.add(item.name)
        shapes[item.name] = tuple(1 if size is None else size for size in sizes)
        found[item.name] = shapes[item.name], type_bytes(tensor.elem_type)
    for node in graph.node:
        for name in node.output:
            if name and name not in found:
                guessed.add(name)
                shapes[name] = (1,)
                found[name] = (1,), 4.0
    return found


def is_constant_node(node: Any) -> bool:
    return bool(node.op_type == "Constant" and not node.input)


def scalar_of(tensor: Any) -> float | None:
    """The value of a constant of one element (a trip count), else None."""
    if prod(tensor.dims) != 1 or tensor.data_location or type_name(tensor.data_type) not in ("int64", "int32"):
        return None
    if tensor.raw_data:
        return float(int.from_bytes(tensor.raw_data, "little", signed=True))
    values = tensor.int64_data or tensor.int32_data
    return float(values[0]) if values else None


def _lighten(graph: Any) -> None:
    """Drop the values of large initializers; inference looks at shapes only."""
    for tensor in graph.initializer:
        if prod(tensor.dims) > SMALL or tensor.data_location:
            for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(name)
            del tensor.external_data[:]
            tensor.ClearField("data_location")


def _stand_in(graph: Any, originals: dict[str, Any], added: set[str]) -> None:
    """Put a standard operator of the same shapes in place of each of com.microsoft's, in place; what was there goes to
    `originals` by its first output, weights made up for it to `added`."""
    import onnx

    for node in graph.node:
        for item in node.attribute:
            if item.HasField("g"):
                _stand_in(item.g, originals, added)
        if node.domain != "com.microsoft":
            continue
        given = {item.name: item for item in node.attribute}
        originals[node.output[0]] = onnx.NodeProto.FromString(node.SerializeToString())
        if node.op_type == "MatMulNBits":
            name = f"{node.output[0]}.shape"
            added.add(name)
            graph.initializer.append(onnx.TensorProto(name=name, data_type=1, dims=[given["K"].i, given["N"].i]))
            _become(node, "MatMul", [node.input[0], name])
        elif node.op_type in AS_FIRST:
            _become(node, "Identity", node.input[:1])
        elif node.op_type in PRODUCTS:
            kept = [item for item in node.attribute if item.name not in ("activation", "activation_params", "alpha")]
            _become(node, PRODUCTS[node.op_type], node.input[:3])
            if node.op_type != "MatMul":
                node.attribute.extend(kept)
        elif node.op_type == "GatherBlockQuantized":
            axis = given["gather_axis"].i if "gather_axis" in given else 0
            _become(node, "Gather", node.input[:2])
            node.attribute.append(onnx.helper.make_attribute("axis", axis))


def _become(node: Any, op: str, inputs: Any) -> None:
    kept, made = list(inputs), list(node.output[:1])
    del node.input[:], node.output[:], node.attribute[:]
    node.op_type, node.domain = op, ""
    node.input.extend(kept)
    node.output.extend(made)


def _restore(graph: Any, originals: dict[str, Any], added: set[str]) -> None:
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("g"):
                _restore(item.g, originals, added)
        if node.output and node.output[0] in originals:
            node.CopyFrom(originals[node.output[0]])
    kept = [tensor for tensor in graph.initializer if tensor.name not in added]
    if len(kept) < len(graph.initializer):
        held = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(held)
