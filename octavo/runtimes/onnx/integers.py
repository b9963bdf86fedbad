"""The form of a static graph that ONNX Runtime fuses into integer kernels; the numbers stay what they were.

What ONNX Runtime 1.32 was seen to need on x86-64 (optimised graphs looked at, not assumed):
    unsigned activations    signed ones are converted at load, and not where two operators read the same value: half of
                            a residual network then stays in float. So code + 128 (+ 32768) with that zero point: an
                            exact move. Qualcomm's provider wants them unsigned too
    zero points on weights  without one a Gemm is not fused
    GlobalAveragePool       a ReduceMean over height and width has no integer kernel, it has
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.core.model import Edge
from octavo.runtimes.onnx.layout import EDGE_CODES

if TYPE_CHECKING:
    import onnx_ir as ir

# An edge's type in the file, and what is added to its codes and zero point there.
UNSIGNED = {"int8": ("uint8", 128), "int16": ("uint16", 32768)}


def prepare(made: ir.Model, edges: Iterable[Edge]) -> None:
    """Rewrite `made` in place: its QuantizeLinear nodes give EDGE.codes, its weights are inputs still."""
    graph = made.graph
    nodes = {node.outputs[0].name: node for node in graph if node.op_type == "QuantizeLinear"}
    for edge in edges:
        _unsigned(graph, nodes[edge.name + EDGE_CODES], edge)
    for node in list(graph):
        if node.op_type == "ReduceMean":
            _pooled(graph, node)


def _unsigned(graph: ir.Graph, node: ir.Node, edge: Edge) -> None:
    import onnx_ir as ir

    dtype, offset = UNSIGNED[edge.dtype]
    codes = node.outputs[0]
    zero = constant(graph, f"{edge.name}.zero", np.array(edge.zero_point + offset, dtype))
    codes.type = ir.TensorType(ir.DataType[dtype.upper()])
    for place, _ in [(node, 0), *codes.uses()]:
        place.replace_input_with(2, zero)


def _pooled(graph: ir.Graph, node: ir.Node) -> None:
    """ReduceMean over the last two of four axes → GlobalAveragePool; what is quantised behind it is reshaped after."""
    import onnx_ir as ir

    value, result = node.inputs[0], node.outputs[0]
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if value is None or value.shape is None or len(value.shape) != 4 or axes is None:
        return
    if sorted(int(axis) % 4 for axis in np.atleast_1d(axes.numpy())) != [2, 3]:
        return
    pooled = ir.node("GlobalAveragePool", [value], name=node.name)
    pooled.outputs[0].name = f"{result.name}.pooled"
    pooled.outputs[0].type = result.type
    pooled.outputs[0].shape = ir.Shape([*list(value.shape)[:2], 1, 1])
    graph.insert_before(node, pooled)
    keep = node.attributes.get("keepdims")
    if keep is None or keep.as_int():
        result.replace_all_uses_with(pooled.outputs[0], replace_graph_outputs=True)
    else:
        _flattened(graph, node, pooled.outputs[0], result)
    graph.remove(node, safe=True)


def _flattened(graph: ir.Graph, node: ir.Node, pooled: ir.Value, result: ir.Value) -> None:
    """Drop the two axes of one behind the pool; behind its integers where it is quantised, or the pool is not fused."""
    import onnx_ir as ir

    def dropped(before: ir.Node, value: ir.Value, name: str) -> ir.Value:
        shape = constant(graph, f"{name}.shape", np.array([0, -1], np.int64))
        made = ir.node("Reshape", [value, shape], name=f"{name}/Reshape")
        made.outputs[0].name, made.outputs[0].type = f"{name}.flat", value.type
        graph.insert_before(before, made)
        return made.outputs[0]

    users = list(result.uses())
    quantized = [user for user, _ in users if user.op_type == "QuantizeLinear"]
    if len(quantized) != 1 or len(users) != 1:
        result.replace_all_uses_with(dropped(node, pooled, str(result.name)), replace_graph_outputs=True)
        return
    quantize = quantized[0]
    codes = quantize.outputs[0]
    for user, place in list(codes.uses()):
        user.replace_input_with(place, dropped(user, codes, f"{result.name}.{user.name}"))
    quantize.replace_input_with(0, pooled)


def constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """A small initializer of the graph itself."""
    import onnx_ir as ir

    held = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=held, shape=ir.Shape(array.shape), type=ir.TensorType(held.dtype))
    graph.initializers[name] = value
    return value
