"""The tables that profiles share: energies by node and type, bodies and platforms, and what names a wrong row."""

from __future__ import annotations

import itertools

import pytest

from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan import profile_tables as tables

NODES = ("45nm", "28nm", "16nm", "8nm", "7nm", "6nm", "5nm", "4nm", "3nm")
TYPES = ("fp32", "fp16", "int8", "int4")


def joules(node: str, unit: str, number: str) -> float:
    found = tables.operation_energy("here", node, unit, number)
    assert found.value is not None
    return found.value


def test_arithmetic_at_45_nm_is_what_horowitz_printed() -> None:
    """Half of a multiplication and an addition: (3.7 + 0.9) / 2 pJ in fp32, (0.2 + 0.03) / 2 in int8, by the scaling up
    from 7 nm within a third."""
    energy = tables.table("energy")
    for number, printed in {"fp32": 2.3, "fp16": 0.75, "int8": 0.115}.items():
        scaled = energy["arithmetic"][number]["value"] * energy["process"]["45nm"]["value"]
        assert scaled == pytest.approx(printed, rel=0.34)


@pytest.mark.parametrize("unit", ["cpu", "gpu", "npu", "dsp"])
def test_a_narrower_type_and_a_newer_node_never_cost_more(unit: str) -> None:
    for wide, narrow in itertools.pairwise(TYPES):
        assert joules("5nm", unit, narrow) <= joules("5nm", unit, wide)
    for old, new in itertools.pairwise(NODES):
        assert joules(new, unit, "int8") <= joules(old, unit, "int8")


def test_every_energy_says_that_it_is_scaled_and_has_an_interval() -> None:
    for node, unit, number in itertools.product(NODES, ("cpu", "gpu", "npu", "dsp"), TYPES):
        found = tables.operation_energy("here", node, unit, number)
        assert found.kind is Kind.ESTIMATED
        assert "Horowitz" in found.source
        assert found.low is not None
        assert found.high is not None
        assert found.low < (found.value or 0) < found.high


def test_a_row_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"mine\.toml: unknown process '4 nm'.*4nm"):
        tables.operation_energy("mine.toml", "4 nm", "cpu", "fp32")
    with pytest.raises(BadInput, match=r"unknown memory 'lpddr6'.*lpddr5"):
        tables.dram_energy("mine.toml", "lpddr6")
    with pytest.raises(BadInput, match=r"unknown 'phone-androit'.*phone-android"):
        tables.entry("mine.toml: body", "bodies", "phone-androit")


def test_a_share_of_an_unknown_ram_is_unknown() -> None:
    share = Quantity(0.5, "1", Kind.ESTIMATED, 0.4, 0.6, source="a guess", date="2026-01-01")
    assert tables.share_of(Quantity(None, "B", Kind.UNKNOWN), share).kind is Kind.UNKNOWN
    half = tables.share_of(Quantity(10.0, "B", Kind.DATASHEET), share)
    assert (half.value, half.low, half.high) == (5, 4, 6)
