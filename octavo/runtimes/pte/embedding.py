"""Embeddings in integer codes: rows of codes and of scales are looked up, and multiplied.

Portable kernels do it, since XNNPACK looks nothing up; they take int8 rows as they are, so sub-byte codes are widened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def look_up(module: GraphModule, node: Node, name: str, value: QuantizedTensor) -> None:
    """Replace every aten.embedding of the weight `node` by code × scale. Raises Refused for any other use of it."""
    import torch

    from octavo.runtimes.pte.operators import attribute

    users = list(node.users)
    other = [
        user.name for user in users if user.target is not torch.ops.aten.embedding.default or user.args[0] is not node
    ]
    if other:
        raise Refused(
            f"{name}: {', '.join(other)} uses it besides embeddings; ExecuTorch would need two copies.",
            "Keep it in fp32 (--embedding fp32), or use another runtime.",
        )
    rows, columns = value.shape
    groups = value.scale.shape[1] if value.block[0] == 1 else 1
    scales = np.broadcast_to(value.scale.reshape(-1, groups), (rows, groups)).copy()
    codes = attribute(module, node, "codes", torch.from_numpy(np.ascontiguousarray(value.codes)))
    scale = attribute(module, node, "scale", torch.from_numpy(scales))
    graph, aten = module.graph, torch.ops.aten
    for user in users:
        at, shape = user.args[1], list(user.meta["val"].shape)
        with graph.inserting_before(user):
            found = graph.call_function(aten.embedding.default, (codes, at))
            found = graph.call_function(aten.to.dtype, (found, torch.float32))
            found = graph.call_function(aten.reshape.default, (found, [*shape[:-1], groups, columns // groups]))
            steps = graph.call_function(aten.embedding.default, (scale, at))
            steps = graph.call_function(aten.reshape.default, (steps, [*shape[:-1], groups, 1]))
            whole = graph.call_function(aten.mul.Tensor, (found, steps))
            whole = graph.call_function(aten.reshape.default, (whole, shape))
        whole.meta = dict(user.meta)
        user.replace_all_uses_with(whole)
