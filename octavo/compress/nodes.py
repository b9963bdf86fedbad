"""Reading a torch.export graph: operators by name, the layers that have weights, and what stands where a tensor is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSES = ("t", "transpose", "permute", "numpy_T")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer whose weight is a parameter: its node and the placeholders that it reads.

    `weight` is the tensor's own name; its axis 0 is the output channel. `groups` is 1 for linear layers.
    """

    node: Node
    input: Node
    weight_node: Node
    weight: str
    bias_node: Node | None
    bias: str | None
    groups: int = 1

    @property
    def convolution(self) -> bool:
        return operator(self.node) in CONVOLUTIONS

    @property
    def channel_axis(self) -> int:
        """Which axis of the layer's output is the channel."""
        return value(self.node).dim() - len(spatial(self)) - 1 if self.convolution else value(self.node).dim() - 1


def spatial(layer: Layer) -> tuple[int, ...]:
    """The kernel's sizes, empty for a linear layer."""
    return tuple(int(n) for n in value(layer.weight_node).shape[2:])


def operator(node: Node) -> str:
    """The operator's plain name ("conv2d", "add", "getitem"), without overload and in-place mark; "" for no call."""
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    name = str(schema.name).split("::")[-1] if schema is not None else getattr(node.target, "__name__", "")
    return name.rstrip("_")


def value(node: Node) -> torch.Tensor:
    """The tensor that stands for the node's value: its shape and type, no numbers."""
    found: torch.Tensor = node.meta["val"]
    return found


def is_float(node: Any) -> bool:
    """Whether the node's value is one floating-point tensor."""
    import torch

    held = getattr(node, "meta", {}).get("val")
    return isinstance(held, torch.Tensor) and held.is_floating_point()


def parameters(exported: ExportedProgram) -> dict[str, str]:
    """{placeholder's name: tensor's name} of everything that the graph takes besides its inputs."""
    specs = exported.graph_signature.input_specs
    return {spec.arg.name: str(spec.target) for spec in specs if spec.target is not None}


def tensors(exported: ExportedProgram) -> dict[str, torch.Tensor]:
    """{tensor's name: its value}."""
    held = {**exported.state_dict, **exported.constants}
    return {name: held[name] for name in parameters(exported).values()}


def inputs(exported: ExportedProgram) -> list[Node]:
    """The placeholders of the model's own inputs, in order."""
    given = set(exported.graph_signature.user_inputs)
    return [node for node in exported.graph.nodes if node.op == "placeholder" and node.name in given]


def placeholders(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.nodes if node.op == "placeholder"}


def layers(exported: ExportedProgram) -> Iterator[Layer]:
    """Every convolution and linear layer with a weight of its own, in order of execution."""
    named = parameters(exported)
    for node in exported.graph.nodes:
        parts = _parts(node)
        if parts is None:
            continue
        given, weight, bias, groups = parts
        if weight.name in named and given.name not in named and (bias is None or bias.name in named):
            bias_name = None if bias is None else named[bias.name]
            yield Layer(node, given, weight, named[weight.name], bias, bias_name, groups)


def _parts(node: Node) -> tuple[Any, Any, Any, int] | None:
    """(input, weight, bias, groups) of a node that may be a layer."""
    name = operator(node)
    args: list[Any] = list(node.args)
    if name == "linear":
        return args[0], args[1], args[2] if len(args) > 2 else None, 1
    if name in CONVOLUTIONS:
        if name == "convolution" and args[6]:
            return None
        at = 8 if name == "convolution" else 6
        groups: Any = args[at] if len(args) > at else node.kwargs.get("groups", 1)
        bias = args[2] if len(args) > 2 else node.kwargs.get("bias")
        return args[0], args[1], bias, int(groups or 1)
    return None


def matches(layer: Layer, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern (shell style) names the layer: its node, its weight, or the module that holds the weight."""
    from fnmatch import fnmatchcase

    names = (layer.node.name, layer.weight, layer.weight.rpartition(".")[0])
    return any(name and fnmatchcase(name, pattern) for name in names for pattern in patterns)
