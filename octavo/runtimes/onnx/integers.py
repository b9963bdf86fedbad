"""The form of a static graph that ONNX Runtime fuses into integer kernels; the numbers stay what they were.

What ONNX Runtime 1.32 was seen to need on x86-64 (optimised graphs looked at, not assumed):
    unsigned activations    signed ones are converted at load, and not where two operators read the same value: half of
                            a residual network then stays in float. So code + 128 (+ 32768) with that zero point: an
                            exact move. Qualcomm's provider wants them unsigned too
    zero points on weights  without one a Gemm is not fused
    GlobalAveragePool       a ReduceMean over height and width has no integer kernel, it has; and the
                            Gather has to go that torch's exporter writes behind an adaptive pool
    pads of convolutions    a Pad of its own is computed in float
    input channels by fours a convolution of 16 or more outputs then has a kernel without im2col; an image's three
                            channels get a fourth of zeros: 0.6 ms of SqueezeNet's 3. Concat is what both this and
                            Qualcomm's provider run on integers; a Pad they do not
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.core.model import Edge
from octavo.runtimes.onnx.layout import EDGE_CODES

if TYPE_CHECKING:
    import onnx_ir as ir

# An edge's type in the file, and what is added to its codes and zero point there.
UNSIGNED = {"int8": ("uint8", 128), "int16": ("uint16", 32768)}
PACKED, OUTPUTS = 4, 16  # channels that the direct kernel takes at a time, and the fewest outputs that it is there for
WINDOW = 16  # weights per channel pair; with larger windows im2col is as fast


def prepare(made: ir.Model, edges: Iterable[Edge]) -> None:
    """Rewrite `made` in place: its QuantizeLinear nodes give EDGE.codes, its weights are inputs still."""
    graph = made.graph
    nodes = {node.outputs[0].name: node for node in graph if node.op_type == "QuantizeLinear"}
    for edge in edges:
        _unsigned(graph, nodes[edge.name + EDGE_CODES], edge)
    for node in list(graph):
        if node.op_type == "ReduceMean":
            _pooled(graph, node)
        elif node.op_type == "Gather":
            _contiguous(graph, node)
        elif node.op_type == "Pad":
            _absorbed(graph, node)


def widen(made: ir.Model) -> None:
    """Give convolutions of one to three input channels four, the others zero; `made` is bound to its codes already."""
    for node in list(made.graph):
        if node.op_type == "Conv" and node.inputs[0] is not None and node.inputs[1] is not None:
            x, weight = node.inputs[0].producer(), node.inputs[1].producer()
            if x is not None and weight is not None and _gains(node, x, weight):
                _widened(made.graph, node, x, weight)


def _gains(node: ir.Node, x: ir.Node, weight: ir.Node) -> bool:
    """Whether a convolution is one of integers that has the faster kernel with more channels."""
    import onnx_ir as ir

    if x.op_type != "DequantizeLinear" or weight.op_type != "DequantizeLinear":
        return False
    sizes, codes, group = node.inputs[0].shape, weight.inputs[0], node.attributes.get("group")  # type: ignore[union-attr]
    if codes is None or codes.shape is None or sizes is None or not all(isinstance(size, int) for size in sizes):
        return False
    kernel = codes.shape.numpy()
    few = kernel[1] < PACKED and kernel[0] >= OUTPUTS and prod(kernel[2:]) <= WINDOW
    one_byte = x.inputs[2] is not None and x.inputs[2].dtype == ir.DataType.UINT8
    return len(kernel) == 4 and few and one_byte and (group is None or group.as_int() == 1)


def _widened(graph: ir.Graph, node: ir.Node, x: ir.Node, weight: ir.Node) -> None:
    import onnx_ir as ir

    def added(op: str, inputs: list[Any], **attributes: Any) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=f"{node.name}/{op}.{len(names)}")
        names.append(str(made.name))
        made.outputs[0].name = f"{made.name}.widened"
        graph.insert_before(node, made)
        return made.outputs[0]

    names: list[str] = []
    batch, channels, *size = node.inputs[0].shape.numpy()  # type: ignore[union-attr]
    lacking, quantiser = PACKED - channels, list(x.inputs[1:])
    shape = constant(graph, f"{node.name}.zeros.shape", np.array([batch, lacking, *size], np.int64))
    pads = constant(graph, f"{node.name}.pads", np.array([0, 0, 0, 0, 0, lacking, 0, 0], np.int64))
    zeros = added("DequantizeLinear", [added("Expand", [x.inputs[2], shape]), *quantiser])  # folded at load, as is Pad
    codes = added("QuantizeLinear", [added("Concat", [node.inputs[0], zeros], axis=1), *quantiser])
    wide = added("Pad", [weight.inputs[0], pads])
    node.replace_input_with(0, added("DequantizeLinear", [codes, *quantiser]))
    node.replace_input_with(1, added("DequantizeLinear", [wide, *weight.inputs[1:]], axis=0))
    if not weight.outputs[0].uses():
        graph.remove(weight, safe=True)


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


def _contiguous(graph: ir.Graph, node: ir.Node) -> None:
    """Reshape to one axis and Gather of every element in its order, to the shape that there was: nothing."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    index = node.inputs[1].const_value if node.inputs[1] is not None else None
    if before is None or before.op_type != "Reshape" or index is None or before.inputs[0] is None:
        return
    value, order = before.inputs[0], index.numpy()
    same = value.shape is not None and tuple(value.shape) == order.shape
    if not same or not np.array_equal(order.reshape(-1), np.arange(order.size)):
        return
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if not before.outputs[0].uses():
        graph.remove(before, safe=True)


def _absorbed(graph: ir.Graph, node: ir.Node) -> None:
    """Zeros around the input of convolutions, quantised like that input: the convolutions' own padding."""
    import onnx_ir as ir

    value, widths = node.inputs[0], _constant_of(node, 1)
    quantise = _only_user(node.outputs[0], "QuantizeLinear")
    before = value.producer() if value is not None else None
    if value is None or widths is None or quantise is None or before is None or before.op_type != "DequantizeLinear":
        return
    kind, zero = node.attributes.get("mode"), _constant_of(node, 2)
    plain = (kind is None or kind.as_string() == "constant") and (zero is None or not zero.any())
    alike = all(np.array_equal(_constant_of(before, i), _constant_of(quantise, i)) for i in (1, 2))  # type: ignore[arg-type]
    ends = widths.reshape(2, -1)
    if not (plain and alike and len(node.inputs) < 4 and ends.min() >= 0 and not ends[:, :2].any()):
        return
    floats = [user.outputs[0] for user, _ in quantise.outputs[0].uses()]
    convolutions = [use for item in floats for use in item.uses()]
    if any(user.op_type != "Conv" or place != 0 or "pads" not in user.attributes for user, place in convolutions):
        return
    for user, _ in convolutions:
        pads = np.array(user.attributes["pads"].as_ints()) + ends[:, 2:].reshape(-1)
        user.attributes["pads"] = ir.AttrInt64s("pads", pads.tolist())
    quantise.replace_input_with(0, value)
    for item in (quantise.outputs[0], *floats):
        item.shape = value.shape
    graph.remove(node, safe=True)


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    users = list(value.uses())
    return users[0][0] if len(users) == 1 and users[0][0].op_type == op and not value.is_graph_output() else None


def _constant_of(node: ir.Node, index: int) -> Any:
    """The array that an input is, or None."""
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


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
    codes, how = quantize.outputs[0], list(quantize.inputs[1:])
    users = list(codes.uses())
    quantize.replace_input_with(0, pooled)
    again: ir.Value | None = None
    for user, place in users:
        if again is None:  # not a Reshape of bare codes: Qualcomm's provider would lose their scale
            seen = _node(graph, user, "DequantizeLinear", [codes, *how], f"{result.name}.seen", result)
            flat = dropped(user, seen, str(result.name))
            again = _node(graph, user, "QuantizeLinear", [flat, *how], f"{result.name}.again", codes)
        user.replace_input_with(place, again)


def _node(graph: ir.Graph, before: ir.Node, op: str, inputs: list[Any], name: str, like: ir.Value) -> ir.Value:
    """A node inserted before another one, whose output has the type of `like`."""
    import onnx_ir as ir

    made = ir.node(op, inputs, name=name)
    made.outputs[0].name, made.outputs[0].type = name, like.type
    graph.insert_before(before, made)
    return made.outputs[0]


def constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """A small initializer of the graph itself."""
    import onnx_ir as ir

    held = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=held, shape=ir.Shape(array.shape), type=ir.TensorType(held.dtype))
    graph.initializers[name] = value
    return value
