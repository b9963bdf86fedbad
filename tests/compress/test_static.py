"""Static quantisation end to end: the graph it makes, its promises, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from octavo.compress.annotate import annotate
from octavo.compress.bias import scales, snap
from octavo.compress.nodes import layers, tensors
from octavo.compress.rules import rules, targets
from octavo.compress.sensitivity import sensitivity
from octavo.compress.static import StaticResult, quantise
from octavo.core.grid import to_bfloat16
from octavo.errors import BadInput, Refused
from tests.compress.static_nets import Depthwise, Mixed, batches, coloured, db, outputs, program, simulated


@pytest.fixture(scope="module")
def mixed() -> Any:
    torch.manual_seed(0)
    return program(Mixed())


@pytest.fixture(scope="module")
def made(mixed: Any) -> StaticResult:
    return quantise(mixed, batches())


def edges(result: StaticResult) -> dict[str, Any]:
    return {edge.name: edge for edge in result.edges}


def test_the_integer_graph_gives_the_float_graphs_answers(mixed: Any, made: StaticResult) -> None:
    held = batches(30, seed=5)
    assert db(outputs(mixed.module(), held), outputs(simulated(made), held)) > 35


def test_edges_name_nodes_of_the_program_that_is_stored(made: StaticResult) -> None:
    names = {node.name for node in made.exported.graph.nodes}
    assert {edge.name for edge in made.edges} <= names
    order = [node.name for node in made.exported.graph.nodes]
    assert [edge.name for edge in made.edges] == sorted(edges(made), key=order.index)


def test_values_that_only_move_share_a_scale_and_fused_ones_have_none(made: StaticResult) -> None:
    found = edges(made)
    shared = ("relu_1", "conv2d_3", "cat")
    assert len({(found[name].scale, found[name].zero_point) for name in shared}) == 1
    assert found["relu"].scale == found["max_pool2d"].scale
    assert found["adaptive_avg_pool2d"].scale == found["flatten"].scale
    assert not {"conv2d", "conv2d_1", "conv2d_2", "conv2d_4", "add"} & set(found)  # each computed with its ReLU
    assert (found["sigmoid"].scale, found["sigmoid"].zero_point) == (1 / 256, -128)
    assert (found["softmax"].scale, found["softmax"].zero_point) == (1 / 256, -128)
    assert {"x", "mul", "linear", "linear_1"} <= set(found)


def test_every_bias_divides_back_to_its_code_in_float32_and_float64(made: StaticResult) -> None:
    held = tensors(made.exported)
    count = 0
    for layer in layers(made.exported):
        scale = scales(layer, edges(made), made.weights[layer.weight])
        assert layer.bias is not None
        assert scale is not None
        bias = held[layer.bias].detach().numpy()
        wide = bias.astype(np.float64) / scale
        assert np.abs(wide - np.rint(wide)).max() < 0.3
        assert (np.rint(bias / scale.astype(np.float32)) == np.rint(wide)).all()
        count += 1
    assert count == 7


def test_biases_of_any_size_keep_their_code_however_a_runtime_divides() -> None:
    rng = np.random.default_rng(0)
    parts = to_bfloat16(np.exp(rng.uniform(-9, 0, (2, 3000))).astype(np.float32)).astype(np.float64)
    scale = parts[0] * parts[1]
    codes = np.sign(rng.standard_normal(3000)) * np.exp2(rng.uniform(0, 24, 3000))
    bias = (codes * scale).astype(np.float32)
    made = snap(bias, scale)
    assert made.wide == made.clipped == 0
    for back in (made.values.astype(np.float64) / scale, made.values / scale.astype(np.float32)):
        assert (np.rint(back.astype(np.float64)) == made.codes).all()
    assert (np.abs(made.codes - codes) <= 0.5 + np.abs(codes) * 2e-7 + 8 * (np.abs(codes) > 2**22)).all()


def test_a_bias_beyond_int32_is_cut_and_counted() -> None:
    made = snap(np.array([1e9, 1.0], np.float32), np.array([2.0**-10, 2.0**-10]))
    assert made.clipped == 1
    assert 2**31 - 2**12 < made.codes[0] < 2**31


def test_learned_rounding_and_biases_beat_nearest_on_samples_not_seen() -> None:
    exported = program(Depthwise())
    calibration, held = coloured(64), coloured(100, seed=9)
    plain = outputs(exported.module(), held)
    found = {
        how: db(plain, outputs(simulated(quantise(exported, calibration, equalise="none", adjust=how)), held))
        for how in ("none", "bias", "learned")
    }
    assert found["bias"] > found["none"]
    assert found["learned"] > found["none"] + 0.3


def test_sixteen_bit_activations_are_symmetric_and_much_closer(mixed: Any) -> None:
    made = quantise(mixed, batches(), scheme="w8a16", adjust="none", equalise="none")
    assert all(edge.dtype == "int16" and edge.zero_point == 0 for edge in made.edges)
    held = batches(30, seed=5)
    plain = outputs(mixed.module(), held)
    narrow = quantise(mixed, batches(), adjust="none", equalise="none")
    assert db(plain, outputs(simulated(made), held)) > db(plain, outputs(simulated(narrow), held)) + 2


def test_kept_layers_stay_float_with_their_activation(mixed: Any) -> None:
    made = quantise(mixed, batches(), keep=["d"], adjust="none", equalise="none")
    assert "d.weight" not in made.weights
    assert set(made.kept) == {"conv2d_1"}
    assert {"conv2d_1", "relu6"} <= {item["node"] for item in made.lineage["in_float"]}
    assert "relu6" in edges(made)  # for the layers that read it
    with pytest.raises(BadInput, match="nothing"):
        quantise(mixed, batches(), keep=["nothing.*"])


def test_two_runs_give_the_same_model(mixed: Any) -> None:
    first, then = (quantise(mixed, batches(8), equalise="weights") for _ in range(2))
    assert first.edges == then.edges
    assert all(first.weights[name].digest() == then.weights[name].digest() for name in first.weights)
    assert all(np.array_equal(first.biases[name], then.biases[name]) for name in first.biases)


def test_sensitivity_finds_the_layer_that_was_spoilt() -> None:
    made = quantise(program(Depthwise()), coloured(16), equalise="none", adjust="none")
    spoilt = dict(made.weights)
    held = spoilt["p.weight"]
    spoilt["p.weight"] = type(held)(np.sign(held.codes) * np.int8(64), held.scale, held.block, held.range)
    found = sensitivity(made.exported, made.edges, spoilt, coloured(4, seed=3))
    assert found.keep[0] == "p.weight"
    assert found.layers[1].upto > found.layers[2].upto + 10
    assert found.layers[-1].upto == pytest.approx(found.whole, abs=1)
    assert found.record()["keep"][0] == "p.weight"


def test_a_batch_of_several_samples_is_cut_up(mixed: Any) -> None:
    single = batches(8)
    joined = [{"x": np.concatenate([item["x"] for item in single])}]
    found = [quantise(mixed, data, adjust="none", equalise="none").edges for data in (joined, single)]
    assert found[0] == found[1]


def test_bad_calibration_data_is_named(mixed: Any) -> None:
    good = batches(3)
    with pytest.raises(BadInput, match="no calibration samples"):
        quantise(mixed, [])
    bad = good[0]["x"].copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(BadInput, match="sample 3: 1 of 432 values of 'x' are NaN"):
        quantise(mixed, [*good, {"x": bad}])
    with pytest.raises(BadInput, match="layout"):
        quantise(mixed, [{"x": np.zeros((1, 12, 12, 3), np.float32)}])
    with pytest.raises(BadInput, match="no 'x'; it has image"):
        quantise(mixed, [{"image": good[0]["x"]}])
    with pytest.raises(BadInput, match="w8 quantises no activations"):
        quantise(mixed, good, scheme="w8")


def test_few_samples_dead_channels_and_constant_values_are_recorded() -> None:
    torch.manual_seed(0)
    net = Mixed()
    with torch.no_grad():
        net.a.weight[2] = 0
        net.a.bias[2] = 0
        net.r.weight.zero_()
        net.r.bias.fill_(-1)
    exported = program(net)
    made = quantise(exported, batches(5), equalise="none")
    notes = " | ".join(made.lineage["notes"])
    assert "5 calibration samples" in notes
    assert "a.weight: 1 of its output channels are all zero" in notes
    assert "always zero on calibration data: relu_2" in notes
    held = batches(10, seed=4)
    assert db(outputs(exported.module(), held), outputs(simulated(made), held)) > 30


class Scales(nn.Module):
    """What the tables have to get right besides layers: constants, joins of prescribed scales, a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.l = nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Linear(8, 8)
        self.slope, self.norm = nn.PReLU(4), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.slope(self.up(x)).mean((2, 3))
        y = torch.cat([torch.sigmoid(y), torch.tanh(y)], 1) * 0.5
        return self.l(self.norm(y)).chunk(2, -1)[0]


def test_constants_joins_and_float_operators() -> None:
    torch.manual_seed(0)
    exported = program(Scales())
    made = quantise(exported, batches())
    found = edges(made)
    assert found["p_up_weight"].zero_point == 0
    assert "p_slope_weight" in found
    assert (found["tanh"].scale, found["tanh"].zero_point) == (1 / 128, 0)
    assert found["cat"].scale not in (1 / 128, 1 / 256)
    assert any("cat" in note for note in made.lineage["notes"])
    assert any(item["node"].startswith("layer_norm") and "int8" in item["reason"] for item in made.lineage["in_float"])
    assert "layer_norm" in found  # what the next layer reads
    held = batches(20, seed=2)
    assert db(outputs(exported.module(), held), outputs(simulated(made), held)) > 25


def test_every_table_reads_and_refuses_types_it_has_not(mixed: Any) -> None:
    assert {"common", "litert", "xnnpack", "ethos-u", "hexagon", "coreml"} <= set(targets())
    for name in targets():
        table = rules(name)
        assert not table.free & table.shared
        assert not table.weighted & (table.free | table.shared)
        assert table.joining <= table.shared
        assert annotate(mixed.graph, name).groups
    with pytest.raises(Refused, match="int8"):
        quantise(mixed, batches(2), scheme="w8a16", target="xnnpack")
    with pytest.raises(BadInput, match="common"):
        quantise(mixed, batches(2), target="comon")
