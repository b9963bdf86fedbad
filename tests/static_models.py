"""Static int8 models made for tests in the plainest way: absmax weights, min-max activations, written out by hand.

`octavo.compress.static` has better ways; what a runtime carries must not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from octavo.core.grid import portable_scale
from octavo.core.model import CompressedModel, Edge, Program, TensorRecord, TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.sources.torch import capture, describe, rebuild
from tests.models import MemoryReader

LAYERS = ("conv2d", "linear", "add", "add_", "mul", "cat", "adaptive_avg_pool2d")
SHARED = ("max_pool2d", "flatten", "reshape", "view", "permute", "squeeze", "pad")
FOLLOWED_BY = ("relu", "relu_", "hardtanh", "clamp")


class ConvNet(nn.Module):
    """What a small vision network has: a padded and a strided convolution, a depthwise one with nine weights per
    channel, a residual addition, both kinds of pooling, a linear layer. [1, 3, 16, 16] → [1, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))
        x = nn.functional.max_pool2d(x, 2, 2)
        x = torch.relu(self.down(x)).mean((2, 3))
        return self.head(x)


def convnet(seed: int = 0) -> nn.Module:
    """A ConvNet with random weights, in eval mode."""
    torch.manual_seed(seed)
    return ConvNet().eval()


def static_model(
    module: nn.Module, example: tuple[torch.Tensor, ...], scheme: str = "w8a8", samples: int = 8, seed: int = 0
) -> CompressedModel:
    """`module` in a static scheme, calibrated on `samples` random inputs of the example's shape."""
    program, found = describe(capture(module, example))
    floats = {name: values for name, values, _ in found}
    roles = {name: role for name, _, role in found}
    values: dict[str, TensorValue] = {
        name: absmax(array, scheme) if roles[name] in ("conv", "matmul") else array for name, array in floats.items()
    }
    edges = _edges(program, floats, example, samples, seed, SCHEMES[scheme].activation or "int8")
    _snap_biases(program, values, {edge.name: edge.scale for edge in edges})
    records = tuple(
        TensorRecord(name, value.shape, roles[name], scheme, value.digest())
        if isinstance(value, QuantizedTensor)
        else TensorRecord(name, value.shape, roles[name], "fp32", float_digest(value))
        for name, value in values.items()
    )
    return CompressedModel(program, records, MemoryReader(values), edges)


def absmax(values: np.ndarray[Any, Any], scheme: str) -> QuantizedTensor:
    """Round to nearest on the scale of the largest weight, per output channel or tensor."""
    grid = SCHEMES[scheme]
    assert grid.range is not None
    block = grid.block(values.shape)
    axes = tuple(axis for axis, size in enumerate(block) if size > 1) or (1,)
    scale = portable_scale((np.abs(values).max(axes, keepdims=True) / 127).astype(np.float32))
    scale = scale.reshape(tuple(s // b for s, b in zip(values.shape, block, strict=True)))
    codes = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    return QuantizedTensor(codes, scale, block, grid.range)


def _edges(
    program: Program, floats: dict[str, Any], example: tuple[torch.Tensor, ...], samples: int, seed: int, dtype: str
) -> tuple[Edge, ...]:
    """Min-max of every value that an integer kernel hands on; what only moves values shares its input's."""
    exported = rebuild(program, floats)
    low, high = _extremes(exported, example, samples, seed)
    found: dict[str, Edge] = {}
    for node in exported.graph.nodes:
        name = node.name
        operator = str(node.target).split(".")[1] if node.op == "call_function" else ""
        followed = any(str(user.target).split(".")[1] in FOLLOWED_BY for user in node.users if user.op != "output")
        if name not in low or (operator in LAYERS and followed):
            continue
        if operator in SHARED:
            before = found[node.args[0].name]
            found[name] = Edge(name, before.scale, before.zero_point, dtype)
        else:
            found[name] = _edge(name, low[name], high[name], dtype)
    return tuple(found.values())


def _edge(name: str, low: float, high: float, dtype: str) -> Edge:
    low, high = min(low, 0.0), max(high, 0.0)
    if dtype == "int16":
        return Edge(name, float(np.float32(max(-low, high) / 32767)), 0, dtype)
    scale = float(np.float32((high - low) / 255))
    return Edge(name, scale, int(np.clip(round(-128 - low / scale), -128, 127)), dtype)


def _extremes(
    exported: Any, example: tuple[torch.Tensor, ...], samples: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Smallest and largest value of every float input and result of the program."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    given = set(exported.graph_signature.user_inputs)

    class Watch(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            value = super().run_node(node)
            watched = node.op == "call_function" or node.name in given
            if watched and isinstance(value, torch.Tensor) and value.is_floating_point():
                low[node.name] = min(low.get(node.name, 0.0), float(value.min()))
                high[node.name] = max(high.get(node.name, 0.0), float(value.max()))
            return value

    states = [
        _state(exported, name)
        for name in (
            str(spec.target) for spec in exported.graph_signature.input_specs if spec.kind.name != "USER_INPUT"
        )
    ]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        inputs = [torch.randn(x.shape, generator=generator) for x in example]
        Watch(exported.graph_module).run(*states, *inputs)
    return low, high


def _state(exported: Any, name: str) -> torch.Tensor:
    found: torch.Tensor = exported.state_dict.get(name, exported.constants.get(name))
    return found


def _snap_biases(program: Program, values: dict[str, TensorValue], scales: dict[str, float]) -> None:
    """Put every bias on its int32 grid: the input edge's scale times the weight's, product in float32."""
    exported = rebuild(program)
    targets = {spec.arg.name: str(spec.target) for spec in exported.graph_signature.input_specs if spec.target}
    for node in exported.graph.nodes:
        operator = str(node.target).split(".")[1] if node.op == "call_function" else ""
        if operator not in ("conv2d", "linear") or len(node.args) < 3 or node.args[2] is None:
            continue
        source, weight, bias = (argument.name for argument in node.args[:3])
        held, floats = values[targets[weight]], values[targets[bias]]
        assert isinstance(held, QuantizedTensor)
        assert isinstance(floats, np.ndarray)
        step = (np.float32(scales[source]) * held.scale.reshape(-1)).astype(np.float32)
        values[targets[bias]] = (np.rint(floats / step).astype(np.float32) * step).astype(np.float32)


def simulated(model: CompressedModel) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """The static graph run in torch: input array → first output."""
    from octavo.api.programs import ModelPrograms

    module, _ = ModelPrograms(model).static("codes")

    def run(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            found: np.ndarray[Any, Any] = module(torch.from_numpy(x)).numpy()
        return found

    return run
