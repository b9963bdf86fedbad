"""The static form of a program: quantise and dequantise on every edge, integer codes for weights.

This is PT2E's "converted" graph (torchao.quantization.pt2e), built from what a compressed model holds and nothing else:
the one graph that ONNX, LiteRT, ExecuTorch and Core ML are all written from, and the simulation that they are compared
with. A value with an edge is seen through its eight (or sixteen) bits by all that use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from octavo.core.model import Edge, Program, TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput
from octavo.sources.torch import rebuild

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

Weights = Literal["codes", "fake", "outline"]
Made = tuple["GraphModule", tuple["torch.Tensor", ...]]
RANGES = {"int8": (-128, 127), "int16": (-32768, 32767)}


def valued(program: Program, tensors: Mapping[str, TensorValue]) -> Made:
    """(float graph with the decoded weights bound, example inputs): a GraphModule in eval mode. Raises BadInput."""
    exported = rebuild(program, {name: _decoded(value) for name, value in tensors.items()})
    return _module(exported), _examples(exported)


def outline(
    program: Program, edges: Iterable[Edge], tensors: Mapping[str, TensorValue] | None = None
) -> ExportedProgram:
    """The program with quantise → dequantise on every edge and its weights in float: zeros that take no memory when
    there are no `tensors`. The integers of an edge are the value `codes_name(edge)`.

    Raises BadInput for an edge that names no node of the program, or one that is no float.
    """
    exported = rebuild(program, None if tensors is None else {name: _decoded(value) for name, value in tensors.items()})
    _insert_edges(exported, edges)
    exported.graph_module.recompile()
    return exported


def codes_name(edge: Edge) -> str:
    """The node of an edge's integers in `outline`."""
    return f"{edge.name}_codes"


def static(
    program: Program,
    edges: Iterable[Edge],
    tensors: Mapping[str, TensorValue] | None = None,
    weights: Weights = "codes",
    schemes: Mapping[str, str] | None = None,
) -> Made:
    """(graph with quantise → dequantise on every edge, example inputs).

    `weights`: "codes" puts int8 codes → dequantize in the place of every quantised tensor; "fake" its decoded floats →
    quantize → dequantize (both give the same numbers); "outline" leaves floats. `schemes`: {tensor: scheme}; only those
    of a static scheme become integers, others are decoded. Raises BadInput as `outline`.
    """
    exported = outline(program, edges, tensors)
    examples = _examples(exported)
    module = _module(exported)
    if weights != "outline" and tensors is not None:
        chosen = {
            name: value
            for name, value in tensors.items()
            if isinstance(value, QuantizedTensor) and (schemes is None or SCHEMES[schemes[name]].activation)
        }
        _insert_weights(module, chosen, program.body["aliases"], fold=weights == "codes")
    return module, examples


def _decoded(value: TensorValue) -> Any:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value


def _module(exported: ExportedProgram) -> GraphModule:
    module: Any = exported.module(check_guards=False)
    return module  # type: ignore[no-any-return]


def _examples(exported: ExportedProgram) -> tuple[torch.Tensor, ...]:
    """Zeros in the shapes and types of the inputs."""
    import torch

    given = set(exported.graph_signature.user_inputs)
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder" and node.name in given]
    values = [node.meta["val"] for node in nodes]
    return tuple(torch.zeros([int(size) for size in value.shape], dtype=value.dtype) for value in values)


def _insert_edges(exported: ExportedProgram, edges: Iterable[Edge]) -> None:
    """Quantise → dequantise behind each named value, for all that use it, the program's own outputs included."""
    nodes = {node.name: node for node in exported.graph.nodes}
    for edge in edges:
        node = nodes.get(edge.name)
        if node is None or "val" not in node.meta or not hasattr(node.meta["val"], "is_floating_point"):
            raise BadInput(f"The edge '{edge.name}' names no value of the program.", "Compress the model again.")
        if edge.dtype not in RANGES or not node.meta["val"].is_floating_point() or not edge.scale > 0:
            raise BadInput(
                f"The edge '{edge.name}' is {edge.dtype} with scale {edge.scale}, on a {node.meta['val'].dtype}.",
                "Compress the model again.",
            )
        seen = _quantised(exported.graph, node, edge)
        node.replace_all_uses_with(seen, delete_user_cb=lambda user, first=seen.args[0]: user is not first)
        if node.op != "placeholder":  # whose name is the input's
            exported.graph_signature.replace_all_uses(node.name, seen.name)


def _quantised(graph: Any, node: Node, edge: Edge) -> Node:
    import torch

    from octavo.sources import decomposed

    kind = getattr(torch, edge.dtype)
    grid = (edge.scale, edge.zero_point, *RANGES[edge.dtype], kind)
    following = node.next
    while following.op == "placeholder":  # inputs come first, all of them
        following = following.next
    with graph.inserting_before(following):
        codes = graph.create_node(
            "call_function", decomposed.per_tensor("quantize"), (node, *grid), name=codes_name(edge)
        )
        seen: Node = graph.create_node(
            "call_function", decomposed.per_tensor("dequantize"), (codes, *grid), name=f"{edge.name}_seen"
        )
    value = node.meta["val"]
    codes.meta["val"], seen.meta["val"] = value.to(kind), value
    return seen


def _insert_weights(
    module: GraphModule, tensors: Mapping[str, QuantizedTensor], aliases: Mapping[str, str], *, fold: bool
) -> None:
    """Integer codes behind every use of a quantised tensor."""
    for node in list(module.graph.nodes):
        name = aliases.get(str(node.target), str(node.target)) if node.op == "get_attr" else ""
        if name in tensors:
            _insert_weight(module, node, tensors[name], fold)
    module.graph.lint()
    module.recompile()


def _insert_weight(module: GraphModule, node: Node, value: QuantizedTensor, fold: bool) -> None:
    import torch

    from octavo.sources import decomposed

    target, low, high = str(node.target), value.range.low, value.range.high
    per_tensor = value.scale.size == 1 and value.shape[0] != 1
    if per_tensor:
        how: tuple[Any, ...] = (float(value.scale.reshape(-1)[0]), 0)
    else:
        scale, zero = torch.from_numpy(value.scale.reshape(-1).copy()), torch.zeros(value.shape[0], dtype=torch.int64)
        how = (*(_attribute(module, node, target, part, held) for part, held in (("scale", scale), ("zero", zero))), 0)
    ending = (low, high, torch.int8)
    kind = decomposed.per_tensor if per_tensor else decomposed.per_channel
    users = list(node.users)
    if fold:
        _replace_parameter(module, target, torch.from_numpy(np.array(value.codes, np.int8)))
        codes = node
    with module.graph.inserting_before(users[0] if users else node.next):
        if not fold:
            codes = module.graph.call_function(kind("quantize"), (node, *how, *ending))
        seen = module.graph.call_function(kind("dequantize"), (codes, *how, *ending))
    for user in users:
        user.replace_input_with(node, seen)


def _attribute(module: GraphModule, node: Node, target: str, part: str, held: torch.Tensor) -> Node:
    """A buffer beside the parameter `target`, and the node that reads it."""
    owner, _, leaf = target.rpartition(".")
    module.get_submodule(owner).register_buffer(f"{leaf}_{part}", held)
    with module.graph.inserting_after(node):
        found: Node = module.graph.get_attr(f"{target}_{part}")
    return found


def _replace_parameter(module: GraphModule, target: str, codes: torch.Tensor) -> None:
    owner, _, leaf = target.rpartition(".")
    place = module.get_submodule(owner)
    if leaf in place._parameters or (leaf in place._buffers and place._buffers[leaf].dtype != codes.dtype):  # type: ignore[union-attr]
        delattr(place, leaf)
        place.register_buffer(leaf, codes)
