"""Batch normalisation into the layer before it, or, where there is none, into a product and a sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.compress.nodes import Layer, layers, operator, parameters, tensors, value
from octavo.compress.surgery import add_parameter, bias_name, call, duplicate, replace, set_argument, set_value, tidy

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_batch_norm")


def fold_batchnorm(exported: ExportedProgram) -> ExportedProgram:
    """The same function without batch normalisation (in float64 underneath, so equal to about 1e-6)."""
    if not any(operator(node) in NORMS for node in exported.graph.nodes):
        return exported
    made = duplicate(exported)
    for node in list(made.graph.nodes):
        if operator(node) in NORMS:
            _fold(made, node)
    return tidy(made)


def _fold(exported: ExportedProgram, node: Node) -> None:
    terms = _terms(exported, node)
    if terms is None:
        return
    factor, offset = terms
    before: Any = node.args[0]
    target = _result(node)
    layer = next((item for item in layers(exported) if item.node is before), None)
    if layer is not None and len(before.users) == 1 and _own(layer, exported):
        _into(exported, layer, factor, offset)
        replace(exported, target, before)
    else:
        _apart(exported, node, target, factor, offset)


def _terms(exported: ExportedProgram, node: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(factor, offset) of each channel, float64 [C]; None where a statistic is no constant or it is in training."""
    import torch

    native = operator(node) == "_native_batch_norm_legit_no_training"
    args: list[Any] = list(node.args)
    named, held = parameters(exported), tensors(exported)
    if not native and args[5]:
        return None
    weight, bias, mean, var = args[1:5]
    parts = []
    for item in (weight, bias, mean, var):
        if item is not None and item.name not in named:
            return None
        parts.append(None if item is None else held[named[item.name]].detach().double())
    epsilon = float(args[6] if native else args[7])
    assert parts[2] is not None
    assert parts[3] is not None
    factor = torch.rsqrt(parts[3] + epsilon)
    if parts[0] is not None:
        factor = factor * parts[0]
    offset = -parts[2] * factor
    return factor, offset if parts[1] is None else offset + parts[1]


def _result(node: Node) -> Node:
    """The node that holds the normalised values: the operator itself, or its first result."""
    if operator(node) == "batch_norm":
        return node
    return next(user for user in node.users if operator(user) == "getitem" and user.args[1] == 0)


def _own(layer: Layer, exported: ExportedProgram) -> bool:
    """Whether nobody else reads the layer's weight and bias."""
    nodes = [node for node in (layer.weight_node, layer.bias_node) if node is not None]
    names = list(parameters(exported).values())
    shared = any(names.count(name) > 1 for name in (layer.weight, layer.bias) if name is not None)
    return not shared and all(len(node.users) == 1 for node in nodes)


def _into(exported: ExportedProgram, layer: Layer, factor: torch.Tensor, offset: torch.Tensor) -> None:
    held = tensors(exported)
    weight = held[layer.weight].detach()
    scaled = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    set_value(exported, layer.weight, scaled.float())
    if layer.bias is not None:
        bias = held[layer.bias].detach().double() * factor + offset
        set_value(exported, layer.bias, bias.float())
        return
    added = add_parameter(exported, layer.node, bias_name(layer.weight), offset.float())
    set_argument(layer.node, 2, added)


def _apart(exported: ExportedProgram, node: Node, target: Node, factor: torch.Tensor, offset: torch.Tensor) -> None:
    """x · factor + offset, as constants [C, 1, …]."""
    import torch

    before: Any = node.args[0]
    shape = (-1, *[1] * (value(before).dim() - 2))
    mean: Any = node.args[3]
    owner = parameters(exported)[mean.name].rpartition(".")[0] or node.name
    held = [
        add_parameter(exported, before, f"{owner}.{name}", part.float().reshape(shape).contiguous())
        for name, part in (("factor", factor), ("offset", offset))
    ]
    product = call(exported, target, torch.ops.aten.mul.Tensor, before, held[0])
    replace(exported, target, call(exported, product, torch.ops.aten.add.Tensor, product, held[1]))
