"""Transforms keep the function; equalisation gives back what one scale per tensor loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from octavo.compress.batchnorm import fold_batchnorm
from octavo.compress.canonical import canonical, with_bias
from octavo.compress.channels import Classes
from octavo.compress.equalise import absorb, channel_peaks, equalise, equalise_activations
from octavo.compress.nodes import layers, operator, tensors
from octavo.compress.static import quantise
from tests.compress.static_nets import Depthwise, Mixed, batches, coloured, outputs, program, simulated, through_json


class Normed(nn.Module):
    """BatchNorm before, behind and apart from layers; products with constants; numbers in arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.b, self.e = nn.BatchNorm2d(3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, groups=8)
        self.w, self.offset = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5))
        self.l = nn.Linear(5, 4, bias=False)
        for norm in (self.pre, self.b, self.e):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.normal_()
            norm.bias.data.normal_()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.b(self.c(self.pre(x))))
        x = nn.functional.avg_pool2d(self.e(self.d(x)).clamp(0, 6), 8).flatten(1)
        x = self.l((x @ self.w + self.offset) * 2 - 1) / 3
        return 1 - x, torch.addmm(self.offset, x @ torch.ones(4, 8), self.w)


def difference(before: object, after: object) -> float:
    """Largest difference of any output over that output's largest value."""
    torch.manual_seed(1)
    x = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        pairs = [module.module()(x) for module in (before, after)]  # type: ignore[attr-defined]
    first, then = (pair if isinstance(pair, tuple) else (pair,) for pair in pairs)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(first, then, strict=True))


def test_folding_and_spelling_change_no_value_and_leave_no_batch_norm() -> None:
    torch.manual_seed(0)
    exported = program(Normed())
    made = with_bias(canonical(fold_batchnorm(exported)))
    assert difference(exported, made) < 1e-5
    names = {operator(node) for node in made.graph.nodes}
    assert not names & {"batch_norm", "addmm", "rsub", "div", "avg_pool2d"}
    assert all(layer.bias is not None for layer in layers(made))
    assert [layer.bias for layer in layers(made)].count("c.bias") == 1
    arithmetic = [node for node in made.graph.nodes if operator(node) in ("add", "sub", "mul")]
    assert all(not isinstance(item, int | float) for node in arithmetic for item in node.args)
    again = through_json(made)
    assert [node.name for node in again.graph.nodes] == [node.name for node in made.graph.nodes]
    assert difference(made, again) == 0


def test_transforms_leave_the_program_they_are_given_alone() -> None:
    torch.manual_seed(0)
    exported = program(Normed())
    before = {name: value.clone() for name, value in tensors(exported).items()}
    graph = str(exported.graph)
    equalise(with_bias(canonical(fold_batchnorm(exported))))
    assert str(exported.graph) == graph
    assert all(torch.equal(value, before[name]) for name, value in tensors(exported).items())


@pytest.mark.parametrize("net", [Mixed, Depthwise])
def test_equalisation_changes_no_value(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    exported = program(net())
    assert difference(exported, equalise(exported)) < 1e-5
    assert difference(exported, equalise_activations(exported, channel_peaks(exported, batches(4)))) < 1e-5


def test_ranges_meet_in_the_middle_as_nagels_equation_11_says() -> None:
    exported = program(Depthwise())
    made = tensors(equalise(exported))
    rows = made["a.weight"].flatten(1).abs().amax(1)
    columns = made["d.weight"].flatten(1).abs().amax(1)
    assert torch.allclose(rows, columns, rtol=2e-2)


def test_channels_that_a_nonlinearity_or_an_output_reads_stay() -> None:
    torch.manual_seed(0)
    ends = {end.layer.weight: end for end in Classes(program(Mixed())).ends()}
    assert not ends["d.weight"].rows.any()  # ReLU6
    assert not ends["l.weight"].rows.any()  # a gate
    assert ends["a.weight"].rows.all()
    assert (ends["r.weight"].rows == ends["r.weight"].columns).all()  # a residual ties them
    assert not ends["o.weight"].rows.any()


def test_absorbing_moves_what_is_always_there_into_the_next_bias() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([20.0, 30, 0, 0, 25, -3]))
    exported = program(net)
    made, moved = absorb(exported, [{"input": batch["x"]} for batch in batches(8)])
    assert moved == 3
    assert float(tensors(made)["0.bias"].abs().max()) < 20
    assert difference(exported, made) < 1e-5


def test_one_scale_per_tensor_collapses_and_equalisation_or_channel_scales_bring_it_back() -> None:
    exported = program(Depthwise())
    calibration, held = coloured(48), coloured(200, seed=9)
    plain = outputs(exported.module(), held)
    energy = float(np.square(plain - plain.mean(axis=0)).sum())

    def lost(scheme: str, equalised: str) -> float:
        result = quantise(exported, calibration, scheme=scheme, equalise=equalised, adjust="none")
        return float(np.square(outputs(simulated(result), held) - plain).sum()) / energy

    collapsed = lost("w8ta8", "none")
    assert collapsed > 0.5
    assert lost("w8ta8", "weights") < 0.05 * collapsed
    assert lost("w8a8", "none") < 0.05 * collapsed


def test_equalising_values_mends_what_channel_scales_of_weights_cannot() -> None:
    exported = program(Depthwise(spread=2.0))
    calibration, held = coloured(48), coloured(100, seed=9)
    plain = outputs(exported.module(), held)
    errors = {
        how: float(
            np.square(
                outputs(simulated(quantise(exported, calibration, equalise=how, adjust="none")), held) - plain
            ).sum()
        )
        for how in ("none", "activations", "best")
    }
    assert errors["activations"] < 0.05 * errors["none"]
    assert errors["best"] <= errors["activations"] * 1.05
