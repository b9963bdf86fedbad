"""Latency of networks: what is counted, and what is predicted from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from octavo.core.facts import EdgeFacts, ModelFacts, OperatorFacts, OperatorKind, WeightFacts
from octavo.core.quantity import Kind
from octavo.plan import profiles
from octavo.plan.device import Coefficients
from octavo.plan.features import TERMS, features
from octavo.plan.latency import estimate, predict

MOBILE = Path(__file__).parents[2] / "benchmarks" / "architectures.csv"
FITTED = Coefficients(
    runtime="tflite", unit="npu", precision="float",
    terms={"inference": 0.2, "dense_gmacs": 0.1, "conv_melements": 0.05, "softmax_melements": 0.5},
    low=0.8, high=1.5, median_error=0.1, p90_error=0.5, rows=20, models=20,
    ranges={"dense_gmacs": (0.1, 10.0), "conv_melements": (0.5, 30.0), "softmax_melements": (0.0, 0.0)},
    source="a test", date="2026-11-22",
)  # fmt: skip


class Graph:
    """A network drawn operator by operator."""

    def __init__(self, *given: int) -> None:
        self.edges, self.weights = [EdgeFacts("x", given, 4)], list[WeightFacts]()
        self.operators: list[OperatorFacts] = []

    def add(
        self, op: str, kind: OperatorKind, out: tuple[int, ...], *inputs: str, macs: int = 0,
        weight: tuple[int, ...] = (),
    ) -> str:  # fmt: skip
        name = f"{op}{len(self.operators)}"
        self.edges.append(EdgeFacts(name, out, 4))
        if weight:
            self.weights.append(WeightFacts(f"{name}.w", weight, "other", "fp32", 0))
        held = (f"{name}.w",) if weight else ()
        self.operators.append(OperatorFacts(name, op, kind, macs, held, inputs or (self.edges[-2].name,), (name,)))
        return name

    def facts(self) -> ModelFacts:
        weights, edges, operators = tuple(self.weights), tuple(self.edges), tuple(self.operators)
        return ModelFacts("drawn", "network", 0, 0, weights, operators, edges)


def test_dense_grouped_and_depthwise_convolutions_are_told_apart() -> None:
    graph = Graph(1, 32, 10, 10)
    graph.add("Conv", "conv", (1, 64, 10, 10), macs=10**9, weight=(64, 32, 3, 3))
    graph.add("Conv", "conv", (1, 64, 10, 10), macs=10**9, weight=(64, 16, 3, 3))
    graph.add("Conv", "depthwise", (1, 64, 10, 10), macs=10**9, weight=(64, 1, 3, 3))
    found = features(graph.facts())
    assert found["dense_gmacs"] == pytest.approx(1)
    assert found["narrow_gmacs"] == pytest.approx(1 + 10)
    assert found["mparameters"] == pytest.approx((64 * 32 * 9 + 64 * 16 * 9 + 64 * 9) / 1e6)
    assert found["hundred_operators"] == pytest.approx(0.03)


def test_channels_last_of_tflite_count_as_channels_second_of_the_others() -> None:
    last, second = Graph(1, 10, 10, 32), Graph(1, 32, 10, 10)
    last.add("CONV_2D", "conv", (1, 10, 10, 64), macs=10**9, weight=(64, 3, 3, 32))
    second.add("conv2d", "conv", (1, 64, 10, 10), macs=10**9, weight=(64, 32, 3, 3))
    assert features(last.facts()) == features(second.facts())


def test_a_batch_norm_behind_a_convolution_is_folded_and_a_lone_one_is_not() -> None:
    graph = Graph(1, 8, 10, 10)
    graph.add("conv2d", "conv", (1, 8, 10, 10), macs=10, weight=(8, 8, 1, 1))
    graph.add("batch_norm", "norm", (1, 8, 10, 10))
    folded = features(graph.facts())
    graph.add("cat", "move", (1, 16, 10, 10))
    graph.add("batch_norm", "norm", (1, 16, 10, 10))
    lone = features(graph.facts())
    assert folded["batchnorm_melements"] == 0
    assert folded["hundred_operators"] == pytest.approx(0.01)
    assert lone["batchnorm_melements"] == pytest.approx(1600 / 1e6)


def test_a_bias_is_part_of_its_matmul_and_a_position_added_is_not() -> None:
    graph = Graph(1, 16, 8)
    graph.add("MatMul", "matmul", (1, 16, 8), macs=16 * 64, weight=(8, 8))
    graph.add("Add", "elementwise", (1, 16, 8), weight=(8,))
    assert features(graph.facts())["elementwise_melements"] == 0
    graph.add("Gelu", "activation", (1, 16, 8))
    graph.add("Add", "elementwise", (1, 16, 8), weight=(1, 16, 8))
    assert features(graph.facts())["elementwise_melements"] == pytest.approx(128 / 1e6)


def test_silu_is_one_activation_whether_a_format_has_it_or_not() -> None:
    whole, parts = Graph(1, 8, 10, 10), Graph(1, 8, 10, 10)
    whole.add("silu", "activation", (1, 8, 10, 10))
    gate = parts.add("Sigmoid", "activation", (1, 8, 10, 10), "x")
    parts.add("Mul", "elementwise", (1, 8, 10, 10), "x", gate)
    assert features(whole.facts()) == features(parts.facts())


def test_a_fused_attention_counts_as_its_two_products_and_their_softmax() -> None:
    heads, length, width = 3, 16, 8
    shape, scores = (1, heads, length, width), (1, heads, length, length)
    half = heads * length * length * width
    fused, parts = Graph(*shape), Graph(*shape)
    fused.add("scaled_dot_product_attention", "attention", shape, "x", "x", "x", macs=2 * half)
    parts.add("MatMul", "attention", scores, "x", "x", macs=half)
    parts.add("Softmax", "softmax", scores)
    parts.add("MatMul", "attention", shape, "Softmax1", "x", macs=half)
    assert features(fused.facts()) == pytest.approx(features(parts.facts()))


def test_every_step_of_a_recurrent_layer_counts() -> None:
    graph = Graph(1, 50, 8)
    graph.add("lstm", "recurrent", (1, 50, 8), macs=10, weight=(32, 8))
    assert features(graph.facts())["hundred_operators"] == pytest.approx((1 + 12 * 50) / 100)


@pytest.mark.parametrize("name", ["dense_gmacs", "conv_melements", "softmax_melements"])
def test_more_of_anything_is_never_faster(name: str) -> None:
    few = {"inference": 1.0, "dense_gmacs": 1.0, "conv_melements": 1.0}
    values = [estimate(FITTED, few | {name: amount}).value or 0 for amount in (0.0, 0.5, 1, 20, 1000)]
    assert values == sorted(values)


def test_outside_the_fitted_range_the_interval_widens_and_the_source_says_so() -> None:
    within = estimate(FITTED, {"inference": 1.0, "dense_gmacs": 10.0, "conv_melements": 1.0})
    beyond = estimate(FITTED, {"inference": 1.0, "dense_gmacs": 100.0, "conv_melements": 1.0})
    unseen = estimate(FITTED, {"inference": 1.0, "dense_gmacs": 10.0, "conv_melements": 1.0, "softmax_melements": 1.0})
    ratios = [(one.high or 0) / (one.low or 1) for one in (within, beyond, unseen)]
    assert ratios[0] == pytest.approx(1.5 / 0.8)
    assert ratios[1] > 1.2 * ratios[0]
    assert ratios[2] > 1.2 * ratios[0]
    assert "outside" not in within.source
    assert "outside" in beyond.source
    assert "fitted 0.1 to 10" in beyond.source
    assert within.kind is Kind.ESTIMATED
    assert within.unit == "ms"
    assert within.n == 20


def test_a_shipped_profile_predicts_a_network_under_octavos_names_of_runtimes() -> None:
    graph = Graph(1, 3, 224, 224)
    graph.add("conv2d", "conv", (1, 64, 112, 112), macs=10**9, weight=(64, 3, 7, 7))
    device = profiles.load("galaxy-s24")
    found = predict(graph.facts(), device, "litert", "npu", "float")
    assert found is not None
    assert found.value is not None
    assert 0.05 < found.value < 5
    weights_only = predict(graph.facts(), device, "litert", "npu", "w8")
    assert weights_only is not None
    assert weights_only.value == found.value
    assert "none of w8" in weights_only.source
    assert predict(graph.facts(), device, "coreml", "npu", "float") is None
    assert predict(replace(graph.facts(), kind="size"), device, "litert", "npu", "float") is None


def test_where_what_was_measured_fell_back_the_accelerator_is_not_promised() -> None:
    graph = Graph(1, 3, 224, 224)
    graph.add("conv2d", "conv", (1, 64, 112, 112), macs=10**9, weight=(64, 3, 7, 7))
    device = replace(profiles.load("galaxy-s24"), coefficients=(replace(FITTED, unit="cpu"),))
    found = predict(graph.facts(), device, "litert", "npu", "float")
    assert found is not None
    assert found.source.startswith("asked for the npu, what was measured ran on the cpu")
    on_npu = replace(device, coefficients=(FITTED,))
    assert predict(graph.facts(), on_npu, "litert", "cpu", "float") is None


def test_a_table_of_architectures_and_a_graph_are_counted_alike(tmp_path: Path) -> None:
    """ResNet-18 drawn here through torch.export has the very features that the table says."""
    torch = pytest.importorskip("torch")
    import csv

    from octavo.sources.facts.pt2 import pt2_facts

    row = next(raw for raw in csv.DictReader(MOBILE.open(encoding="utf-8")) if raw["model"] == "resnet18")
    exported = torch.export.export(_resnet18(torch).eval(), (torch.zeros(1, 3, 224, 224),), strict=False)
    torch.export.save(exported, tmp_path / "resnet18.pt2")
    found = features(pt2_facts(tmp_path / "resnet18.pt2"))
    assert {name: pytest.approx(float(row[name]), rel=1e-4) for name in TERMS} == found


def _resnet18(torch: object) -> object:
    """He et al., 2016, table 1."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, given: int, width: int, stride: int) -> None:
            super().__init__()
            self.first, self.one = nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.second, self.two = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.short = nn.Identity()
            if stride > 1 or given != width:
                self.short = nn.Sequential(nn.Conv2d(given, width, 1, stride, bias=False), nn.BatchNorm2d(width))

        def forward(self, x: object) -> object:
            y = self.two(self.second(torch.relu(self.one(self.first(x)))))
            return torch.relu(y + self.short(x))

    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    given = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(given, width, stride), Block(width, width, 1)]
        given = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
