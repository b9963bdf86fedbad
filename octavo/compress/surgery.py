"""Changing an exported program: a copy, new parameters, new values. Nothing here changes the program it is given."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node


def duplicate(exported: ExportedProgram, values: Mapping[str, torch.Tensor] | None = None) -> ExportedProgram:
    """A program of its own graph and signature; its tensors are the same ones, except for `values` {name: tensor}."""
    import torch
    from torch.export import ExportedProgram

    given = dict(values or {})
    state = dict(exported.state_dict)
    for name in list(given):
        if name in state:
            tensor = given.pop(name)
            state[name] = (
                torch.nn.Parameter(tensor, requires_grad=False)
                if isinstance(state[name], torch.nn.Parameter)
                else tensor
            )
    graph = copy.deepcopy(exported.graph)
    for old, new in zip(exported.graph.nodes, graph.nodes, strict=True):
        new.name = old.name  # copying renames what is called like a Python builtin ("input")
    return ExportedProgram(
        root=exported.graph_module,
        graph=graph,
        graph_signature=copy.deepcopy(exported.graph_signature),
        state_dict=state,
        range_constraints=dict(exported.range_constraints),
        module_call_graph=copy.deepcopy(exported.module_call_graph),
        example_inputs=exported.example_inputs,
        constants={**exported.constants, **given},
        verifiers=exported.verifiers,
    )


def add_parameter(exported: ExportedProgram, near: Node, name: str, tensor: torch.Tensor) -> Node:
    """A new parameter `name` (made unique) of the program, and the placeholder that stands for it."""
    import torch
    from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

    taken = {str(spec.target) for spec in exported.graph_signature.input_specs} | set(exported.state_dict)
    while name in taken:
        name += "_"
    first = next(node for node in exported.graph.nodes if node.op == "placeholder")
    with exported.graph.inserting_before(first):
        node: Node = exported.graph.placeholder("p_" + re.sub(r"\W", "_", name))
    mode = near.meta["val"].fake_mode
    node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
    spec = InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), target=name, persistent=None)
    exported.graph_signature.input_specs.insert(0, spec)
    exported.state_dict[name] = torch.nn.Parameter(tensor, requires_grad=False)
    return node


def set_value(exported: ExportedProgram, name: str, tensor: torch.Tensor) -> None:
    """Other numbers, of the same shape, for the tensor `name` of a program that is our own copy."""
    import torch

    if name in exported.state_dict:
        parameter = isinstance(exported.state_dict[name], torch.nn.Parameter)
        exported.state_dict[name] = torch.nn.Parameter(tensor, requires_grad=False) if parameter else tensor
    else:
        exported.constants[name] = tensor


def set_argument(node: Node, index: int, item: Any) -> None:
    """Argument `index` of a call, with None for those before it that are not given; a keyword of that place goes."""
    args = list(node.args)
    kwargs = dict(node.kwargs)
    kwargs.pop("bias", None)
    node.args = (*args[:index], *[None] * (index - len(args)), item, *args[index + 1 :])
    node.kwargs = kwargs


def bias_name(weight: str) -> str:
    """What a layer's bias is called where it has none yet."""
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}_bias"


def call(exported: ExportedProgram, after: Node, target: Any, *args: Any) -> Node:
    """A new call behind `after`, with the value that it would have."""
    import torch

    with exported.graph.inserting_after(after):
        node: Node = exported.graph.call_function(target, args)
    held = torch.fx.node.map_arg(args, lambda item: item.meta["val"])
    mode = after.meta["val"].fake_mode
    with mode, torch.no_grad():
        node.meta["val"] = target(*held)
    return node


def replace(exported: ExportedProgram, old: Node, new: Node) -> None:
    """Let all that used `old` use `new`, the program's outputs included, and remove `old`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    exported.graph_signature.replace_all_uses(old.name, new.name)
    if not old.users:
        exported.graph.erase_node(old)


def tidy(exported: ExportedProgram) -> ExportedProgram:
    """Drop what nothing uses: dead calls, and parameters without a reader. Returns the program, checked by torch."""
    exported.graph.eliminate_dead_code()
    dead = [node for node in exported.graph.nodes if node.op == "placeholder" and not node.users]
    specs = exported.graph_signature.input_specs
    for node in dead:
        found = next(spec for spec in specs if getattr(spec.arg, "name", None) == node.name)
        if found.target is None:
            continue  # an input of the model that nothing reads stays an input
        specs.remove(found)
        exported.graph.erase_node(node)
        if not any(spec.target == found.target for spec in specs):
            exported.state_dict.pop(str(found.target), None)
    exported.graph.lint()
    exported.graph_module.graph = exported.graph
    exported.graph_module.recompile()
    exported.validate()  # type: ignore[no-untyped-call]
    return exported
