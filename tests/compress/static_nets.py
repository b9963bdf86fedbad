"""Small nets for the tests of static quantisation, and what runs their integer form."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from octavo.compress.static import StaticResult
from octavo.sources import qdq
from octavo.sources.torch import capture, describe, rebuild


class Mixed(nn.Module):
    """Depthwise, joins, a residual, pools, ReLU6, a gate and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.p, self.q, self.r = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(12, 12, 1)
        self.l, self.o = nn.Linear(48, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.a(x)), 2)
        x = nn.functional.relu6(self.d(x))
        y = torch.cat([torch.relu(self.p(x)), self.q(x)], 1)
        y = torch.relu(y + torch.relu(self.r(y)))
        y = self.l(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))
        return self.o(y * torch.sigmoid(y)).softmax(-1)


class Depthwise(nn.Module):
    """Pointwise and depthwise layers whose channels span orders of magnitude, as BatchNorm leaves them."""

    def __init__(self, spread: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a = nn.Conv2d(3, 16, 1)
        self.d = nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.p = nn.Conv2d(16, 16, 1)
        self.e = nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.q = nn.Conv2d(16, 10, 1)
        chain = [self.a, self.d, self.p, self.e, self.q]
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
            for first, then in pairwise(chain):
                factor = torch.exp(torch.randn(16, generator=generator) * spread)
                first.weight.mul_(factor.reshape(-1, 1, 1, 1))
                first.bias.mul_(factor)
                depthwise = then.groups > 1
                then.weight.div_(factor.reshape(-1, 1, 1, 1) if depthwise else factor.reshape(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.a, self.d, self.p, self.e):
            x = torch.relu(layer(x))
        return self.q(x).mean((2, 3))


def program(net: nn.Module, shape: tuple[int, ...] = (1, 3, 12, 12)) -> Any:
    torch.set_num_threads(1)
    return capture(net.eval(), (torch.zeros(shape),))


def batches(count: int = 40, shape: tuple[int, ...] = (1, 3, 12, 12), seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def coloured(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Samples that differ in colour more than from pixel to pixel, as pictures do."""
    rng = np.random.default_rng(seed)
    both = [(rng.standard_normal((1, 3, 12, 12)), rng.standard_normal((1, 3, 1, 1))) for _ in range(count)]
    return [{"x": (0.5 * grain + 2 * colour).astype(np.float32)} for grain, colour in both]


def simulated(result: StaticResult) -> torch.fx.GraphModule:
    """The compressed model's own graph, through its JSON, with every edge."""
    program, tensors = describe(result.exported)
    values = {name: result.weights.get(name, array) for name, array, _ in tensors}
    return qdq.static(program, result.edges, values)[0]


def through_json(exported: Any) -> Any:
    """Serialised and read back."""
    described, tensors = describe(exported)
    return rebuild(described, {name: array for name, array, _ in tensors})


def outputs(module: Any, samples: list[dict[str, Any]]) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(sample["x"])).numpy() for sample in samples])


def db(plain: np.ndarray, noisy: np.ndarray) -> float:
    return float(10 * np.log10((plain**2).sum() / ((plain - noisy) ** 2).sum()))
