"""Octavo's quantiser in torchao's own flow gives the graph that Octavo makes, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.compress.pt2e import octavo_quantizer
from octavo.compress.static import quantise
from tests.compress.static_nets import Mixed, batches, outputs, program, simulated


@pytest.mark.parametrize("how", ["minmax", "mse"])
def test_prepare_and_convert_give_our_graphs_outputs(how: str) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    exported = program(Mixed())
    made = quantise(exported, batches(), observer=how, equalise="none", adjust="none")
    prepared = prepare_pt2e(exported.module(), octavo_quantizer(how=how))
    for sample in batches():
        prepared(torch.from_numpy(sample["x"]))
    converted = convert_pt2e(prepared)
    held = batches(10, seed=7)
    assert np.array_equal(outputs(converted, held), outputs(simulated(made), held))
