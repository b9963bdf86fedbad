"""Binding: every use of a float weight in the graph becomes a use of its codes and scales.

    MatMul(x, Wᵀ), Gemm     → MatMulNBits(x, codes, scale): int8 activations against packed codes, never a float weight
    Gather(W, ids)          → the rows' bytes gathered, unpacked and scaled: only the rows that are asked for
    Conv(x, W)              → DequantizeLinear(codes, scale) → Conv
    anything else           → the whole tensor unpacked and scaled (ONNX Runtime folds it when it loads the file)

A tied weight is one pair of initializers that both kinds of use read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.core.manifest import Carried
from octavo.core.model import CompressedModel
from octavo.core.scheme import SCHEMES
from octavo.errors import OctavoError
from octavo.runtimes.onnx.integers import constant
from octavo.runtimes.onnx.layout import FLOATS, Layout, layout_of, stored_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

ACCURACY = 4  # int8 activations: 2 to 100 times faster than the float paths, relative error 5e-3 to 8e-3
MICROSOFT = "com.microsoft"


def bind(made: ir.Model, model: CompressedModel, carried: tuple[Carried, ...]) -> None:
    """Rewire `made` (from `float_graph`) in place: afterwards its extra inputs are the initializers of `carried.at`.

    Raises OctavoError when a tensor of the model has no place in the graph.
    """
    inputs = {value.name: value for value in made.graph.inputs}
    made.opset_imports.setdefault(MICROSOFT, 1)
    for item in carried:
        value = inputs.get(item.name)
        if value is None:
            continue  # the program does not use it; it lies in the file all the same
        if not item.shape and value.uses():
            raise OctavoError(f"{item.name}: a scalar cannot be a tensor of the file.")
        _Binder(made.graph, item, value).bind()


class _Binder:
    """Rewires the uses of one weight."""

    def __init__(self, graph: ir.Graph, item: Carried, value: ir.Value) -> None:
        self.graph, self.item, self.value = graph, item, value
        self.layout: Layout = layout_of(item.scheme, item.shape, item.role)
        self.repeated: ir.Value | None = None
        self.count = 0

    def bind(self) -> None:
        if self.layout.kind == "float":
            self._float()
            return
        codes_shape, scale_shape = stored_shapes(self.item.scheme, self.item.shape, self.layout)
        integer = "UINT8" if self.layout.kind == "blocks" else f"INT{self.layout.bits}"
        self.codes = self._input(self.item.at[0], integer, codes_shape)
        self.scale = self._input(self.item.at[1], self.layout.scale, scale_shape)
        for node, index in self.value.uses():
            self._use(node, index)
        self.graph.inputs.remove(self.value)

    def _float(self) -> None:
        """A half-precision tensor is cast when the file is loaded; the arithmetic is float32 everywhere."""
        import onnx_ir as ir

        if self.item.scheme == "fp32":
            return
        self.graph.inputs.remove(self.value)
        uses = list(self.value.uses())
        stored = self._input(self.item.name, FLOATS[self.item.scheme], self.item.shape)
        self.value.name = f"{self.item.name}.float"
        if uses:
            cast = self._node(uses[0][0], "Cast", [stored], {"to": ir.DataType.FLOAT.value})
            for node, index in uses:
                node.replace_input_with(index, cast)

    def _use(self, node: ir.Node, index: int) -> None:
        """Dispatch one use; whatever is not recognised gets the whole tensor in float."""
        blocks = self.layout.kind == "blocks"
        if blocks and node.op_type == "Transpose" and self._transposed(node):
            return
        if blocks and node.op_type == "Gemm" and index == 1 and _gemm(node) == (1, 1.0, 1.0):
            self._multiply(node, node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None)
            return
        if blocks and node.op_type == "Gather" and index == 0 and _integer(node, "axis", 0) == 0:
            _replace(node, self._rows(node, node.inputs[1]))
            return
        if not blocks and node.op_type == "Transpose" and len(self.item.shape) == 2:
            self._dequantized_columns(node)
            return
        whole = self._rows(node, None) if blocks else self._dequantized(node)
        node.replace_input_with(index, whole)

    def _transposed(self, node: ir.Node) -> bool:
        """Wᵀ that is only ever multiplied with: each MatMul(x, Wᵀ) becomes a MatMulNBits."""
        users = list(node.outputs[0].uses())
        permutation = node.attributes.get("perm")
        if permutation is not None and tuple(permutation.as_ints()) != (1, 0):
            return False
        if not users or any(user.op_type != "MatMul" or place != 1 for user, place in users):
            return False
        for user, _ in users:
            self._multiply(user, user.inputs[0], None)
        self.graph.remove(node, safe=True)
        return True

    def _multiply(self, node: ir.Node, x: Any, bias: Any) -> None:
        rows, columns = self.item.shape
        attributes = {
            "K": columns, "N": rows, "bits": self.layout.bits, "block_size": self.layout.block,
            "accuracy_level": ACCURACY,
        }  # fmt: skip
        inputs = [x, self.codes, self._block_scale()]
        product = self._node(node, "MatMulNBits", inputs, attributes, MICROSOFT)
        _replace(node, product if bias is None else self._node(node, "Add", [product, bias]))

    def _block_scale(self) -> ir.Value:
        """The scale as float32 [N, K/block]: cast, and repeated where a row or the tensor has one."""
        if self.repeated is None:
            start = next(iter(self.graph))  # before every use of it, whichever is bound first
            shape, groups = stored_shapes(self.item.scheme, self.item.shape, self.layout)
            self.repeated = self._cast(start, self.scale)
            if groups != shape[:2]:
                repeats = self._constant(np.array(shape[:2], np.int64))
                self.repeated = self._node(start, "Expand", [self.repeated, repeats])
        return self.repeated

    def _rows(self, node: ir.Node, ids: Any) -> ir.Value:
        """Rows `ids` of the tensor in float32 [*ids, K]; all of them when ids is None."""
        columns, block, bits = self.item.shape[1], self.layout.block, self.layout.bits
        granularity = SCHEMES[self.item.scheme].granularity
        codes, scale = self.codes, self.scale
        if ids is not None:
            codes = self._node(node, "Gather", [codes, ids], {"axis": 0})
            scale = scale if granularity == "tensor" else self._node(node, "Gather", [scale, ids], {"axis": 0})
        fields = codes if bits == 8 else self._fields(node, codes)
        values = self._cast(node, fields)
        values = self._node(node, "Sub", [values, self._constant(np.float32(self.layout.zero))])
        # Zeros keep the leading axes, whatever they are; the blocks and what is in them follow.
        lead = [0] * (len(ids.shape) if ids is not None else 1)
        scale = self._cast(node, scale)
        if granularity == "group":
            values = self._reshape(node, values, [*lead, -1, block])
            scale = self._node(node, "Unsqueeze", [scale, self._constant(np.array([-1], np.int64))])
            return self._reshape(node, self._node(node, "Mul", [values, scale]), [*lead, columns])
        padded = -(-columns // block) * block
        values = self._reshape(node, values, [*lead, padded])
        if padded != columns:
            ends = [np.array([end], np.int64) for end in (0, columns, -1)]
            values = self._node(node, "Slice", [values, *(self._constant(end) for end in ends)])
        return self._node(node, "Mul", [values, scale])

    def _fields(self, node: ir.Node, codes: ir.Value) -> ir.Value:
        """Bytes [..., n] to the codes in them [..., n, 8 / bits], low bits first."""
        bits, last = self.layout.bits, self._constant(np.array([-1], np.int64))
        parts = []
        for place in range(0, 8, bits):
            part = codes
            if place:
                part = self._node(node, "BitShift", [part, self._constant(np.uint8(place))], {"direction": "RIGHT"})
            if place + bits < 8:
                part = self._node(node, "BitwiseAnd", [part, self._constant(np.uint8((1 << bits) - 1))])
            parts.append(self._node(node, "Unsqueeze", [part, last]))
        return self._node(node, "Concat", parts, {"axis": -1})

    def _dequantized(self, node: ir.Node) -> ir.Value:
        """DequantizeLinear of the whole tensor, one scale per output channel or one for all."""
        return self._dequantize(node, self.codes, 0)

    def _dequantized_columns(self, node: ir.Node) -> None:
        """Wᵀ of a static matrix: the codes are transposed, not their floats, so that the product can be fused."""
        codes = self._node(node, "Transpose", [self.codes], {"perm": [1, 0]})
        _replace(node, self._dequantize(node, codes, 1))

    def _dequantize(self, node: ir.Node, codes: ir.Value, axis: int) -> ir.Value:
        inputs = [codes, self._cast(node, self.scale)]
        if self.layout.scale == "FLOAT":  # of a static model: see integers.py
            shape = stored_shapes(self.item.scheme, self.item.shape, self.layout)[1]
            inputs.append(self._constant(np.zeros(shape, np.int8)))
        return self._node(node, "DequantizeLinear", inputs, {"axis": axis})

    def _cast(self, node: ir.Node, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        if value.dtype == ir.DataType.FLOAT:
            return value
        return self._node(node, "Cast", [value], {"to": ir.DataType.FLOAT.value})

    def _reshape(self, node: ir.Node, value: ir.Value, shape: list[int]) -> ir.Value:
        return self._node(node, "Reshape", [value, self._constant(np.array(shape, np.int64))])

    def _node(
        self, before: ir.Node, op: str, inputs: list[Any], attributes: dict[str, Any] | None = None, domain: str = ""
    ) -> ir.Value:
        """A node inserted before another one, its output named after the tensor."""
        import onnx_ir as ir

        self.count += 1
        made = ir.node(op, inputs, attributes or {}, domain=domain, name=f"{self.item.name}/{op}.{self.count}")
        made.outputs[0].name = f"{self.item.name}/{op}.{self.count}"
        self.graph.insert_before(before, made)
        return made.outputs[0]

    def _constant(self, array: Any) -> ir.Value:
        """A small initializer of the graph itself."""
        self.count += 1
        return constant(self.graph, f"{self.item.name}/constant.{self.count}", array)

    def _input(self, name: str, dtype: str, shape: tuple[int, ...]) -> ir.Value:
        """Where an initializer of the file will be: a graph input until the file is written."""
        import onnx_ir as ir

        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType[dtype]))
        self.graph.inputs.append(value)
        return value


def _gemm(node: ir.Node) -> tuple[int, float, float]:
    """transB, alpha, beta; transA counts as no match."""
    alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
    if _integer(node, "transA", 0):
        return (-1, 0.0, 0.0)
    return (
        _integer(node, "transB", 0),
        alpha.as_float() if alpha is not None else 1.0,
        beta.as_float() if beta is not None else 1.0,
    )


def _integer(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Let `value` take the place of the node's only output, its name and type too if the graph returns it."""
    old = node.outputs[0]
    value.shape, value.type, returned = old.shape, old.type, old.is_graph_output()
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    if returned:
        value.name, old.name = old.name, f"{old.name}.replaced"
    assert node.graph is not None
    node.graph.remove(node, safe=True)
