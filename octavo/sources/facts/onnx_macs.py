"""Multiply-accumulates of ONNX operators, from shapes and attributes; and what kind of product each is."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from octavo.core.facts import OperatorKind
from octavo.sources.facts.network import Shape

ShapeOf = Callable[[str], Shape]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
WEIGHT_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}


def macs_of(
    node: Any, kind: OperatorKind, shape: ShapeOf, is_constant: Callable[[str], bool]
) -> tuple[int, OperatorKind]:
    """(multiply-accumulates, kind made precise): depthwise convolutions, and products of two activations."""
    given = {item.name: item for item in node.attribute}
    if kind == "conv":
        return _convolution(node, given, shape)
    if kind == "matmul":
        macs = _product(node, given, shape)
        first, second = node.input[0], node.input[WEIGHT_AT.get(node.op_type, 1)] if len(node.input) > 1 else ""
        return macs, "matmul" if is_constant(second) or is_constant(first) else "attention"
    if kind == "attention":
        return _attention(node, given, shape), kind
    if node.op_type in GATES:
        return _recurrent(node, given, shape), kind
    return 0, kind


def _convolution(node: Any, given: dict[str, Any], shape: ShapeOf) -> tuple[int, OperatorKind]:
    """Weights [M, C/groups, k…]; a transposed convolution's are [C, M/groups, k…] and run once per input element."""
    weight = shape(node.input[WEIGHT_AT.get(node.op_type, 1)])
    if len(weight) < 3:
        return 0, "conv"
    groups = given["group"].i if "group" in given else 1
    transposed = node.op_type == "ConvTranspose"
    macs = prod(shape(node.input[0]) if transposed else shape(node.output[0])) * prod(weight[1:])
    channels = weight[0] // max(groups, 1) if transposed else weight[1]
    return macs, "depthwise" if groups > 1 and channels == 1 else "conv"


def _product(node: Any, given: dict[str, Any], shape: ShapeOf) -> int:
    op, out = node.op_type, prod(shape(node.output[0]))
    if op == "Einsum":
        sizes: dict[str, int] = {}
        terms = given["equation"].s.decode().replace(" ", "").split("->")[0].split(",")
        for term, name in zip(terms, node.input, strict=False):
            sizes |= dict(zip(reversed(term), reversed(shape(name)), strict=False))
        return prod(sizes.values()) if len(terms) > 1 else 0
    if op == "MatMulNBits":
        return out * int(given["K"].i)
    first = shape(node.input[0])
    flipped = any(key in given and given[key].i for key in ("transA",))
    return out * (first[-2] if flipped and len(first) > 1 else first[-1]) if first else 0


def _recurrent(node: Any, given: dict[str, Any], shape: ShapeOf) -> int:
    """X [steps, batch, I], W [directions, gates·H, I], R [directions, gates·H, H]; layout=1 puts the batch first."""
    x, w = shape(node.input[0]), shape(node.input[1])
    if len(x) != 3 or "hidden_size" not in given:
        return 0
    hidden, both = int(given["hidden_size"].i), "direction" in given and given["direction"].s == b"bidirectional"
    directions = w[0] if len(w) == 3 else 1 + both
    return x[0] * x[1] * directions * GATES[node.op_type] * hidden * (x[2] + hidden)


def _attention(node: Any, given: dict[str, Any], shape: ShapeOf) -> int:
    """QKᵀ and AV: each costs (query elements) · (positions seen); packed projections inside are counted too."""
    query = shape(node.input[0])
    if len(query) < 3:
        return 0
    if node.op_type in ("Attention", "QAttention") and node.domain == "com.microsoft":
        batch, steps, width = query[:3]
        weight = shape(node.input[1])
        return batch * steps * prod(weight) + 2 * batch * steps * steps * (weight[-1] // 3 if weight else width)
    past = shape(node.input[3]) if node.op_type == "GroupQueryAttention" and len(node.input) > 3 else ()
    if node.op_type == "Attention" and len(node.input) > 4:
        past = shape(node.input[4])
    key = shape(node.input[1]) if len(node.input) > 1 and node.input[1] else query
    seen = (key[-2] if len(key) >= 3 else query[-2]) + (past[2] if len(past) == 4 else 0)
    elements = prod(query)
    if node.op_type == "GroupQueryAttention" and not (len(node.input) > 1 and node.input[1]):
        heads, shared = int(given["num_heads"].i), int(given["kv_num_heads"].i)
        elements = elements * heads // (heads + 2 * shared)
    return 2 * elements * seen
