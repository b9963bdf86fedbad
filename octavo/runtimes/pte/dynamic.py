"""Weight-only schemes: integer codes in place of a linear layer's weight, int8 activations made as it runs.

XNNPACK multiplies integer weights with integer activations only. Given codes and a float activation, ExecuTorch's
partitioner drops the scales without a word; so each such layer's input is quantised dynamically: int8, asymmetric, one
scale and zero point per row, chosen from the row itself. The codes and scales are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.core.model import CompressedModel
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused
from octavo.runtimes.pte.embedding import look_up

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

FOUR_BITS, EIGHT_BITS = (-8, 7), (-127, 127)


def bind(module: GraphModule, model: CompressedModel) -> None:
    """Put the codes of every weight-only tensor into `module`, whose weights are decoded.

    Raises Refused for a tensor that something else than a linear layer uses.
    """
    wanted = {record.name: record for record in model.tensors if _weight_only(record.scheme)}
    aliases = model.program.body["aliases"]
    changed = False
    for node in list(module.graph.nodes):
        name = aliases.get(str(node.target), str(node.target)) if node.op == "get_attr" else ""
        if name not in wanted:
            continue
        value = model.tensor(name)
        assert isinstance(value, QuantizedTensor)
        if wanted[name].role == "embedding":
            look_up(module, node, name, value)
            changed = True
            continue
        layers = _linear_layers(module, node, name)
        codes = _decoder(module, node, value, SCHEMES[wanted[name].scheme].group)
        for layer in layers:
            layer.update_arg(0, _quantised_input(module, layer.args[0], value.shape[1]))
            layer.update_arg(1, codes)
        changed = True
    if changed:
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()


def _weight_only(scheme: str) -> bool:
    grid = SCHEMES.get(scheme)
    return grid is not None and not grid.is_float and grid.activation is None


def _linear_layers(module: GraphModule, node: Node, name: str) -> list[Node]:
    """The aten.linear nodes that use the weight; products with its transpose become such nodes."""
    found: list[Node] = []
    for user in list(node.users):
        kind = _operator(user)
        if kind == "linear" and user.args[1] is node and user.args[0] is not node:
            found.append(user)
        elif kind in ("t", "transpose", "permute") and len(node.users) > 0:
            found += [_as_linear(module, product, user, node, name) for product in list(user.users)]
        else:
            raise Refused(
                f"{name}: {kind or user.name} uses it, and XNNPACK takes integer weights in linear layers only.",
                "Keep it in fp32 (--allow-skip), use w8a8, or another runtime.",
            )
    return found


def _as_linear(module: GraphModule, product: Node, transposed: Node, weight: Node, name: str) -> Node:
    import torch

    kind = _operator(product)
    if kind in ("mm", "matmul") and product.args[1] is transposed:
        args: tuple[Any, ...] = (product.args[0], weight)
    elif kind == "addmm" and product.args[2] is transposed and not product.kwargs:
        args = (product.args[1], weight, product.args[0])
    else:
        raise Refused(f"{name}: {kind or product.name} uses its transpose; XNNPACK takes linear layers only.")
    with module.graph.inserting_before(product):
        layer: Node = module.graph.call_function(torch.ops.aten.linear.default, args)
    layer.meta = dict(product.meta)
    product.replace_all_uses_with(layer)
    return layer


def _decoder(module: GraphModule, node: Node, value: QuantizedTensor, group: int | None) -> Node:
    """The node that dequantises the codes: XNNPACK recognises it by its operator and its range."""
    import torch

    from octavo.runtimes.pte.operators import attribute, per_channel, torchao

    rows = value.shape[0]
    low, high = EIGHT_BITS if value.range.bits == 8 else FOUR_BITS
    codes = attribute(module, node, "codes", torch.from_numpy(np.ascontiguousarray(value.codes)))
    if group:
        scale = attribute(module, node, "scale", torch.from_numpy(value.scale.copy()))
        zero = attribute(module, node, "zero", torch.zeros(value.scale.shape, dtype=torch.int8))
        with module.graph.inserting_before(node.next):
            return module.graph.call_function(  # type: ignore[no-any-return]
                torchao("dequantize_affine"), (codes, [1, group], scale, zero, torch.int8, low, high)
            )
    each = np.broadcast_to(value.scale.reshape(-1), (rows,)).copy()
    scale = attribute(module, node, "scale", torch.from_numpy(each))
    zero = attribute(module, node, "zero", torch.zeros(rows, dtype=torch.int64))
    with module.graph.inserting_before(node.next):
        return module.graph.call_function(per_channel(), (codes, scale, zero, 0, low, high, torch.int8))  # type: ignore[no-any-return]


def _quantised_input(module: GraphModule, node: Any, columns: int) -> Node:
    """Quantise → dequantise per row behind `node`, for one layer."""
    import torch

    from octavo.runtimes.pte.operators import torchao

    block = [1] * (node.meta["val"].dim() - 1) + [columns]
    graph = module.graph
    with graph.inserting_after(node):
        chosen = graph.call_function(
            torchao("choose_qparams_affine"), (node, "ASYMMETRIC", block, torch.int8, -128, 127, None, None, torch.int8)
        )
    with graph.inserting_after(chosen):
        scale = graph.call_function(_getitem(), (chosen, 0))
    with graph.inserting_after(scale):
        zero = graph.call_function(_getitem(), (chosen, 1))
    with graph.inserting_after(zero):
        codes = graph.call_function(torchao("quantize_affine"), (node, block, scale, zero, torch.int8, -128, 127))
    with graph.inserting_after(codes):
        return graph.call_function(  # type: ignore[no-any-return]
            torchao("dequantize_affine"), (codes, block, scale, zero, torch.int8, -128, 127)
        )


def _getitem() -> Any:
    import operator

    return operator.getitem


def _operator(node: Node) -> str:
    parts = str(node.target).split(".")
    return parts[1] if len(parts) > 1 else ""
