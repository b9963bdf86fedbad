"""torch operators that are registered only when their module is imported, and buffers beside parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node


def per_channel() -> Any:
    """quantized_decomposed::dequantize_per_channel(codes, scales, zero points, axis, low, high, dtype)."""
    import torch
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed.dequantize_per_channel.default


def torchao(name: str) -> Any:
    """An operator of torchao, which ExecuTorch brings with it. Raises Missing without."""
    import logging

    import torch

    from octavo.errors import Missing

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it remarks on every library of its own that this machine does not need
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise Missing("Weight-only schemes for ExecuTorch need torchao.", "pip install 'octavo[executorch]'") from error
    finally:
        logging.disable(before)
    return getattr(torch.ops.torchao, name).default


def attribute(module: GraphModule, node: Node, part: str, held: torch.Tensor) -> Node:
    """A buffer beside the parameter that `node` reads, and the node that reads it."""
    target = str(node.target)
    owner, _, leaf = target.rpartition(".")
    module.get_submodule(owner).register_buffer(f"{leaf}_{part}", held)
    with module.graph.inserting_before(node):
        found: Node = module.graph.get_attr(f"{target}_{part}")
    return found
