"""Placement: what is a fallback, what is advised, and when a gate does not hold."""

from __future__ import annotations

import pytest

from octavo.core.placement import COMPILER, Placement, advice, asked_for, fallback_gates, fallbacks
from octavo.core.units import ETHOS_U, parse_units
from octavo.errors import BadInput


def test_units_are_kinds_or_targets_in_the_order_given() -> None:
    assert parse_units(None) == ("cpu",)
    assert parse_units("npu, gpu,cpu,npu") == ("npu", "gpu", "cpu")
    assert parse_units(["ethos-u85-2048"]) == ("ethos-u85-2048",)
    assert len(ETHOS_U) == 11


@pytest.mark.parametrize(("name", "near"), [("ethos-u55-129", "ethos-u55-128"), ("hexagn", "hexagon"), ("", "cpu")])
def test_an_unknown_unit_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(BadInput, match=near):
        parse_units(name)


def test_a_target_asks_for_its_kind() -> None:
    assert not Placement("CONV", "npu", asked="ethos-u55-128").fell_back
    assert Placement("CONV", "cpu", asked="ethos-u55-128").fell_back
    assert not Placement("CONV", "cpu").fell_back  # nobody asked


def test_what_fell_back_without_a_reason_gets_one() -> None:
    rows = asked_for([Placement("a", "cpu"), Placement("b", "npu"), Placement("c", "cpu", "too wide")], "npu", "no npu")
    assert [item.reason for item in rows] == ["no npu", "", "too wide"]
    assert all(item.asked == "npu" for item in rows)


def test_advice_names_another_type_a_replacement_and_the_way_to_accept() -> None:
    floats = Placement("SOFTMAX x", "cpu", "tensor with unsupported DataType Float32", "npu", source=COMPILER)
    assert "w8a8" in advice(floats)
    assert "hard-swish" in advice(Placement("GELU y", "cpu", "Unsupported opType", "npu"))
    assert "--io int8" in advice(Placement("x_q (QuantizeLinear)", "cpu", "", "npu"))
    assert "--fix" in advice(Placement("Conv", "cpu", "Cannot get shape", "npu"))
    assert all(
        "--no-fallback" in advice(Placement("Conv", "cpu", reason, "npu")) for reason in ("", "float", "dynamic")
    )


def test_the_gate_counts_names_and_holds_where_nothing_fell_back() -> None:
    rows = tuple(item.row() for item in asked_for([Placement("a", "npu"), Placement("b", "cpu")], "npu", "no form"))
    assert [row["op"] for row in fallbacks(rows)] == ["b"]
    assert fallback_gates(rows, no_fallback=False) == ()
    (gate,) = fallback_gates(rows, no_fallback=True)
    assert (gate["gate"], gate["code"]) == ("fallback", 5)
    assert "1 of 2 operators run on cpu, not npu: b" in gate["reason"]
    assert fallback_gates(rows[:1], no_fallback=True) == ()


def test_a_placement_that_nobody_knows_is_not_one_without_fallback() -> None:
    (gate,) = fallback_gates((), no_fallback=True)
    assert "unknown" in gate["reason"]


def test_rows_keep_the_contract_and_say_whose_word_it_is() -> None:
    row = Placement("a", "cpu", "why", "npu", 0.25, COMPILER).row()
    assert {"op", "unit", "reason", "asked", "share", "source", "do"} == set(row)
    assert "do" not in Placement("a", "cpu").row()
