"""Graphs of torch.export: a trusted .pt2 and a compressed network, operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import BadInput
from octavo.sources.facts.compressed import source_facts
from octavo.sources.facts.open import read_facts

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def network() -> tuple[Any, tuple[Any, ...]]:
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.deep = nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.norm = nn.BatchNorm2d(8)
            self.linear = nn.Linear(4, 10)
            self.table = nn.Embedding(16, 8)
            self.lstm = nn.LSTM(8, 12, batch_first=True)

        def forward(self, x: Any, ids: Any) -> Any:
            y = torch.relu(self.norm(self.deep(self.conv(x))))
            y = self.up(y).mean((2, 3))
            seen, _ = self.lstm(self.table(ids))
            mixed = nn.functional.scaled_dot_product_attention(seen, seen, seen)
            return self.linear(y), mixed @ seen.transpose(1, 2)

    torch.manual_seed(0)
    return Net().eval(), (torch.zeros(1, 3, 16, 16), torch.zeros(1, 5, dtype=torch.long))


EXPECTED = {
    "conv2d": ("conv", 8 * 256 * 27),
    "conv2d_1": ("depthwise", 8 * 64 * 9),
    "conv_transpose2d": ("conv", 8 * 64 * 4 * 4),
    "linear": ("matmul", 40),
    "lstm": ("recurrent", 5 * 48 * (8 + 12)),
    "scaled_dot_product_attention": ("attention", 2 * 5 * 5 * 12),
    "matmul": ("attention", 5 * 5 * 12),
    "embedding": ("gather", 0),
    "batch_norm": ("norm", 0),
}


def test_a_trusted_pt2_is_read_operator_by_operator(network: Any, tmp_path: Path) -> None:
    module, inputs = network
    torch.export.save(torch.export.export(module, inputs), tmp_path / "net.pt2")
    facts = read_facts(tmp_path / "net.pt2", trust=True)
    found: dict[str, tuple[str, int]] = {}
    for operator in facts.operators:
        found[operator.op if operator.op not in found else operator.outputs[0]] = (operator.kind, operator.macs)
    for op, expected in EXPECTED.items():
        assert found[op] == expected, op
    floats = sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers() if b.dim())
    assert facts.parameters == floats
    assert facts.stored_bytes == 4 * floats
    assert facts.inputs == ("x", "ids")
    assert {edge.name: edge.shape for edge in facts.edges}["conv2d"] == (1, 8, 16, 16)
    assert facts.missing == ()


def test_a_compressed_network_has_its_schemes(network: Any, tmp_path: Path) -> None:
    import octavo

    module, inputs = network
    record = octavo.compress(module, scheme="w8", out=tmp_path / "c", example_inputs=inputs)
    facts = read_facts(tmp_path / "c")
    stored = {weight.name: weight.stored for weight in facts.weights}
    assert (stored["conv.weight"], stored["conv.bias"]) == ("w8", "fp32")
    assert facts.stored_bytes == record.bytes
    assert facts.kind == "network"
    from octavo.api.load import open_source

    plain = source_facts(open_source(module, example_inputs=inputs), "net")
    assert (plain.macs, plain.parameters) == (facts.macs, facts.parameters)
    assert plain.stored_bytes == 4 * plain.parameters


def test_weights_alone_are_no_program(network: Any, tmp_path: Path) -> None:
    torch.save(network[0].state_dict(), tmp_path / "w.pt")
    with pytest.raises(BadInput, match="no program"):
        read_facts(tmp_path / "w.pt", trust=True)


def test_tied_weights_are_counted_once() -> None:
    from torch import nn

    from octavo.sources.graph import open_module

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 8)
            self.head = nn.Linear(8, 16, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Any) -> Any:
            return self.head(self.table(ids))

    facts = source_facts(open_module(Tied().eval(), (torch.zeros(1, 3, dtype=torch.long),)), "tied")
    assert facts.parameters == 128
    assert [operator.weights for operator in facts.operators if operator.kind in ("gather", "matmul")] == [
        (facts.weights[0].name,)
    ] * 2
