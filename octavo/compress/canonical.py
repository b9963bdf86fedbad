"""One spelling per thing before rules are applied: products with a constant are linear layers, a constant added to a
layer's result is its bias, and numbers in elementwise arithmetic are tensors, which can be quantised."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo.compress.nodes import TRANSPOSES, Layer, is_float, layers, operator, parameters, tensors, value
from octavo.compress.surgery import add_parameter, bias_name, call, duplicate, replace, set_argument, tidy

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

ARITHMETIC = ("add", "sub", "mul", "div", "rsub")


def canonical(exported: ExportedProgram) -> ExportedProgram:
    """The same function in the spelling that the tables know (equal to rounding)."""
    made = duplicate(exported)
    for step in (_products, _lift, _biases, _own_biases, _whole_pools):
        step(made)
    return tidy(made)


def with_bias(exported: ExportedProgram) -> ExportedProgram:
    """Every convolution and linear layer with a bias: zeros where there was none."""
    import torch

    without = [layer for layer in layers(exported) if layer.bias_node is None]
    if not without:
        return exported
    made = duplicate(exported)
    for layer in [layer for layer in layers(made) if layer.bias_node is None]:
        size = value(layer.weight_node).shape[0]
        set_argument(layer.node, 2, add_parameter(made, layer.node, bias_name(layer.weight), torch.zeros(size)))
    return tidy(made)


def _products(exported: ExportedProgram) -> None:
    """mm, addmm and matmul with a constant matrix → linear."""
    import torch

    for node in list(exported.graph.nodes):
        name, args = operator(node), list(node.args)
        if name not in ("mm", "matmul", "addmm") or node.kwargs:
            continue
        x, matrix = (args[1], args[2]) if name == "addmm" else (args[0], args[1])
        bias = args[0] if name == "addmm" else None
        named = parameters(exported)
        if x.name in named or (bias is not None and (bias.name not in named or value(bias).dim() != 1)):
            continue
        weight = _weight(exported, matrix, named)
        if weight is None or (bias is not None and value(bias).shape[0] != value(weight).shape[0]):
            continue
        rest = (bias,) if bias is not None else ()
        replace(exported, node, call(exported, node, torch.ops.aten.linear.default, x, weight, *rest))


def _weight(exported: ExportedProgram, matrix: Node, named: dict[str, str]) -> Node | None:
    """The placeholder of the matrix [out, in] whose transpose `matrix` is, made if need be; None for no constant."""
    if operator(matrix) in TRANSPOSES and value(matrix).dim() == 2:
        held: Node = matrix.args[0]  # type: ignore[assignment]
        if held.name in named and tuple(value(held).shape) == tuple(value(matrix).shape)[::-1]:
            return held
    if matrix.name not in named or value(matrix).dim() != 2 or not is_float(matrix):
        return None
    name = f"{named[matrix.name]}_transposed"
    made: Node | None = next((node for node in exported.graph.nodes if named.get(node.name) == name), None)
    if made is not None:
        return made
    return add_parameter(exported, matrix, name, tensors(exported)[named[matrix.name]].detach().t().contiguous())


def _biases(exported: ExportedProgram) -> None:
    """layer(x) + constant per channel → the layer's bias."""
    for node in list(exported.graph.nodes):
        if operator(node) != "add" or node.kwargs or len(node.args) != 2:
            continue
        for first, other in (node.args, node.args[::-1]):
            layer = next((item for item in layers(exported) if item.node is first), None)
            if layer is None or layer.bias_node is not None or len(layer.node.users) != 1:
                continue
            constant = _per_channel(exported, layer, other)
            if constant is not None:
                added = add_parameter(exported, layer.node, bias_name(layer.weight), constant)
                set_argument(layer.node, 2, added)
                replace(exported, node, layer.node)
                break


def _whole_pools(exported: ExportedProgram) -> None:
    """An average pool over the whole picture is a mean, whose result may have a finer scale than what it averages."""
    import torch

    for node in list(exported.graph.nodes):
        args: list[Any] = list(node.args)
        if operator(node) != "avg_pool2d" or node.kwargs:
            continue
        padding, divisor = args[3] if len(args) > 3 else (), args[6] if len(args) > 6 else None
        if any(padding) or divisor is not None:
            continue
        before, kernel = args[0], args[1]
        sizes = tuple(int(n) for n in value(before).shape[-2:])
        if tuple(kernel if len(kernel) == 2 else kernel * 2) == sizes:
            replace(exported, node, call(exported, node, torch.ops.aten.adaptive_avg_pool2d.default, before, [1, 1]))


def _own_biases(exported: ExportedProgram) -> None:
    """A bias of several layers becomes one each: its codes depend on the scale of the layer's input."""
    taken: set[str] = set()
    for layer in list(layers(exported)):
        if layer.bias is None or layer.bias_node is None:
            continue
        several = any(user is not layer.node for user in layer.bias_node.users)
        if several or layer.bias in taken:
            copied = tensors(exported)[layer.bias].detach().clone()
            set_argument(layer.node, 2, add_parameter(exported, layer.node, f"{layer.node.name}_bias", copied))


def _per_channel(exported: ExportedProgram, layer: Layer, node: Any) -> torch.Tensor | None:
    """The constant [O] that `node` adds to the layer's output channels, if that is what it does."""
    named = parameters(exported)
    if getattr(node, "name", None) not in named or not is_float(node):
        return None
    tensor = tensors(exported)[named[node.name]].detach()
    size, dims = int(value(layer.weight_node).shape[0]), value(layer.node).dim()
    if tensor.dim() > dims:
        return None
    want = [1] * dims
    want[layer.channel_axis] = size
    shape = [1] * (dims - tensor.dim()) + list(tensor.shape)
    return tensor.reshape(-1).clone() if shape == want else None


def _lift(exported: ExportedProgram) -> None:
    """Numbers in elementwise arithmetic become tensors [1]; dividing by one is multiplying."""
    import torch

    aten: Any = torch.ops.aten
    for node in list(exported.graph.nodes):
        name, args = operator(node), list(node.args)
        if name == "pow" and len(args) == 2 and args[1] == 2 and is_float(node):
            replace(exported, node, call(exported, node, aten.mul.Tensor, args[0], args[0]))
            continue
        if name not in ARITHMETIC or node.kwargs or len(args) != 2 or not is_float(node):
            continue
        if not hasattr(args[0], "meta") or isinstance(args[1], bool) or not isinstance(args[1], int | float):
            continue
        number = 1 / args[1] if name == "div" and args[1] else float(args[1])
        if not is_float(args[0]) or (name == "div" and not args[1]):
            continue
        constant = add_parameter(exported, node, f"{node.name}_constant", torch.tensor([number], dtype=torch.float32))
        made: Callable[..., Any] = {"add": aten.add.Tensor, "sub": aten.sub.Tensor, "rsub": aten.sub.Tensor}.get(
            name, aten.mul.Tensor
        )
        pair = (constant, args[0]) if name == "rsub" else (args[0], constant)
        replace(exported, node, call(exported, node, made, *pair))
