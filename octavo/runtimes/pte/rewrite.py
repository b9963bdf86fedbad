"""Operators in the form that XNNPACK takes: the same function, where only the form would send it elsewhere.

mean over height and width     keeps its dimensions, which a reshape then drops
adaptive average pooling       an average pooling, where the sizes divide; a mean where one pixel is left
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

SPATIAL = [2, 3]


def rewrite(module: GraphModule) -> None:
    """Rewrite what can be, in place; values that are quantised stay so, with their own scale and zero point."""
    changed = False
    for node in list(module.graph.nodes):
        value = node.meta.get("val") if node.op == "call_function" else None
        parts = str(node.target).split(".")
        if value is None or len(parts) < 2 or not hasattr(value, "shape"):
            continue
        if parts[1] == "mean" and _spatial_mean(node):
            changed = _keep_dimensions(module, node) or changed
        elif parts[1] == "adaptive_avg_pool2d":
            changed = _plain_pool(module, node) or changed
    if changed:
        module.graph.lint()
        module.recompile()


def _spatial_mean(node: Node) -> bool:
    """A mean over the last two of four axes that drops them."""
    before = _shape(node.args[0])
    if len(before) != 4 or len(node.args) < 2 or not isinstance(node.args[1], (list, tuple)) or node.kwargs:
        return False
    axes = sorted(int(axis) % 4 for axis in node.args[1] if isinstance(axis, int))
    return axes == SPATIAL and not (len(node.args) > 2 and node.args[2])


def _keep_dimensions(module: GraphModule, node: Node) -> bool:
    """mean → …   becomes   mean, keeping dimensions → reshape → …; quantised before the reshape as after it."""
    import torch

    users = list(node.users)
    quantised = [user for user in users if "quantize_per_tensor" in str(user.target)]
    shape = list(_shape(node))
    node.args = (node.args[0], SPATIAL, True)
    after: Node = node
    if len(users) == 1 and quantised:
        ending = quantised[0].args[1:]
        operators = torch.ops.quantized_decomposed
        with module.graph.inserting_after(node):
            codes = module.graph.call_function(operators.quantize_per_tensor.default, (node, *ending))
        with module.graph.inserting_after(codes):
            after = module.graph.call_function(operators.dequantize_per_tensor.default, (codes, *ending))
    with module.graph.inserting_after(after):
        flat = module.graph.call_function(torch.ops.aten.reshape.default, (after, shape))
    flat.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, flat)
    return True


def _plain_pool(module: GraphModule, node: Node) -> bool:
    """An adaptive average pooling as a mean (to one pixel) or as an average pooling. False where the sizes differ."""
    import torch

    before, after = _shape(node.args[0]), _shape(node)
    if len(before) != 4 or any(b % a for b, a in zip(before[2:], after[2:], strict=True)):
        return False
    window = [b // a for b, a in zip(before[2:], after[2:], strict=True)]
    source = node.args[0]
    if tuple(after[2:]) == (1, 1):
        node.target, node.args = torch.ops.aten.mean.dim, (source, SPATIAL, True)
    else:
        node.target, node.args = torch.ops.aten.avg_pool2d.default, (source, window, window)
    return True


def _shape(node: Any) -> tuple[int, ...]:
    """The shape of a node's value; nothing where it is not static."""
    value = node.meta.get("val") if hasattr(node, "meta") else None
    sizes = tuple(getattr(value, "shape", ()))
    return sizes if all(isinstance(size, int) for size in sizes) else ()
