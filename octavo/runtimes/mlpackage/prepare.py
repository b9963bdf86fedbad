"""What coremltools 9 trips over in a torch graph, said so that it does not; each was met in a real conversion."""

from __future__ import annotations

import operator
from typing import Any

POOLS = {"max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
CLAMPS = {"hardtanh", "clamp"}


def prepare(exported: Any) -> None:
    """Rewrite arguments in the graph of an ExportedProgram, in place; the numbers it computes stay."""
    _register_alias()
    _keep_constant_edges()
    for node in exported.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        name = str(node.target).split(".")[1] if "." in str(node.target) else ""
        if name in POOLS and (len(node.args) < 3 or not node.args[2]):
            node.args = (*node.args[:2], node.args[1], *node.args[3:])  # none said: the kernel's size
        elif name in CLAMPS:  # integer limits of a float value
            node.args = (node.args[0], *(_as_float(limit, node) for limit in node.args[1:]))
    exported.graph_module.recompile()


def _as_float(limit: Any, node: Any) -> Any:
    value = node.meta.get("val")
    return float(limit) if isinstance(limit, int) and value is not None and value.is_floating_point() else limit


def _register_alias() -> None:
    """torch's `alias` hands its input through; coremltools knows it under other names only."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op

    if "alias" in _TORCH_OPS_REGISTRY.name_to_func_mapping:
        return

    def alias(context: Any, node: Any) -> None:
        context.add(context[node.inputs[0]], torch_name=node.name)

    register_torch_op(alias)


def _keep_constant_edges() -> None:
    """A quantised constant stays float, quantize, dequantize: else it is folded, and its own values are gone."""
    from coremltools.converters.mil.mil.ops.defs.iOS17.quantization_ops import quantize

    quantize.value_inference = lambda self: None
