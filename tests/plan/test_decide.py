"""Device, cloud or split: the worked answer, the rule, doubts, and what flips a verdict."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from octavo.core.quantity import Kind, Quantity
from octavo.plan.decide import Limits, Question, decide
from octavo.plan.flip import break_even, flips, headline
from octavo.plan.radio import Radio, published
from octavo.plan.reckon import given, scaled, total
from octavo.plan.split import Cut

SILENT = Radio(given(0, "J/B"), given(0, "J/B"), given(0, "J"))


def question(**changes: Any) -> Question:
    """50 queries a day for 100 million users: 120 ms and 0.5 J on the device, 40 + 25 ms and $0.0002 in the cloud."""
    base = Question(
        given(120, "ms"), given(0.5, "J"), given(40, "ms"), given(25, "ms"),
        price=Decimal("0.0002"), queries=Decimal(50), users=Decimal(100_000_000), radio=SILENT,
    )  # fmt: skip
    return replace(base, **changes)


def test_the_worked_answer() -> None:
    verdict = decide(question())
    device, cloud = verdict.path("device"), verdict.path("cloud")
    assert cloud.cost.value == Decimal("1000000")
    assert cloud.cost.quantity(365, "USD").value == 365_000_000.0
    assert (cloud.latency_ms.value, device.latency_ms.value) == (65.0, 120.0)
    assert (device.battery_j.value, device.battery_j.unit) == (25.0, "J")
    assert (device.cost.value, verdict.chosen, verdict.doubts) == (0, "device", ())
    even = break_even(question(), verdict)
    assert even.round_trip_ms == 95.0


def test_money_is_exact_where_floats_are_not() -> None:
    cost = decide(question(price=Decimal("0.1"), queries=Decimal(3), users=Decimal(1))).path("cloud").cost
    assert cost.value == Decimal("0.3") != Decimal(0.1 * 3)


def test_a_latency_limit_sends_it_to_the_cloud_and_the_nearest_change_brings_it_back() -> None:
    limited = question(limits=Limits(latency_ms=Decimal(100)))
    verdict = decide(limited)
    assert verdict.chosen == "cloud"
    found = {flip.input: flip for flip in flips(limited, verdict)}
    assert found["device_ms"].end == 100.0
    assert found["round_trip_ms"].end == 75.0
    assert found["server_ms"].end == 60.0
    told = headline(flips(limited, verdict))
    assert told is not None
    assert (told.input, told.chosen) == ("device_ms", "device")
    assert told.change == pytest.approx(-1 / 6)


def test_without_a_limit_only_free_servers_or_a_new_limit_flip_it() -> None:
    found = flips(question(), decide(question()))
    assert [(flip.input, flip.end, flip.chosen) for flip in found] == [
        ("price", 0.0, "cloud"),
        ("latency_ms", None, "cloud"),
    ]
    told = headline(found)
    assert told is not None
    assert "under 120 ms" in told.text


@pytest.mark.parametrize("requirement", ["private", "offline"])
def test_data_that_may_not_leave_and_work_offline_rule_the_cloud_out(requirement: str) -> None:
    asked = question(price=Decimal(0), limits=Limits(**{requirement: True}))  # type: ignore[arg-type]
    verdict = decide(asked)
    assert verdict.chosen == "device"
    assert verdict.path("cloud").surely_out
    assert [(flip.input, flip.chosen) for flip in flips(asked, verdict)] == [(requirement, "cloud")]


def test_no_path_left_is_said() -> None:
    verdict = decide(question(limits=Limits(latency_ms=Decimal(100), private=True)))
    assert verdict.chosen is None
    assert all(path.out for path in verdict.paths)


def test_a_model_that_does_not_fit_leaves_the_cloud() -> None:
    verdict = decide(question(device_out="does not fit: 3.0 GB in a slice of 2 GB"))
    assert verdict.chosen == "cloud"


def test_break_even_price_and_volume_with_a_cost_of_the_device_build() -> None:
    asked = question(device_cost=Decimal(36_500_000))  # $100,000 a day
    even = break_even(asked, decide(asked))
    assert even.price == pytest.approx(0.00002)
    assert even.queries == pytest.approx(5)
    at_price = decide(replace(asked, price=Decimal("0.000019")))
    below_volume = decide(replace(asked, queries=Decimal("4.9")))
    assert (decide(asked).chosen, at_price.chosen, below_volume.chosen) == ("device", "cloud", "cloud")
    assert headline(flips(asked, decide(asked))).input in ("price", "queries", "users")  # type: ignore[union-attr]


def test_a_server_slower_than_the_device_has_no_break_even_round_trip() -> None:
    asked = question(server_ms=given(500, "ms"))
    even = break_even(asked, decide(asked))
    assert even.round_trip_ms is None
    assert "500 ms" in even.reasons["round_trip_ms"]


def test_bytes_take_time_on_the_link_and_energy_in_the_radio() -> None:
    radio = Radio(given(5e-6, "J/B"), given(1e-6, "J/B"), given(0.1, "J"))
    asked = question(
        up_bytes=Decimal(100_000),
        down_bytes=Decimal(1000),
        uplink=Decimal(10_000_000),
        downlink=Decimal(20_000_000),
        radio=radio,
    )
    cloud = decide(asked).path("cloud")
    assert cloud.latency_ms.value == pytest.approx(65 + 80 + 0.4)
    assert cloud.battery_j.value == pytest.approx(50 * (0.5 + 0.001 + 0.1))


def test_battery_is_a_share_of_a_charge() -> None:
    path = decide(question(battery=given(15, "Wh"))).path("device")
    assert path.battery.value == pytest.approx(25 / (15 * 3600))


def test_an_interval_across_the_limit_is_a_doubt_whichever_way_it_falls() -> None:
    limits = Limits(latency_ms=Decimal(100))
    kept = decide(question(device_ms=Quantity(90, "ms", Kind.ESTIMATED, 70, 130), limits=limits))
    lost = decide(question(device_ms=Quantity(110, "ms", Kind.ESTIMATED, 90, 130), limits=limits))
    sure = decide(question(device_ms=Quantity(80, "ms", Kind.ESTIMATED, 70, 100), limits=limits))
    assert (kept.chosen, bool(kept.doubts)) == ("device", True)
    assert (lost.chosen, bool(lost.doubts)) == ("cloud", True)
    assert (sure.chosen, sure.doubts) == ("device", ())


def test_unknown_energy_is_never_taken_for_none() -> None:
    asked = question(device_j=Quantity(None, "J", Kind.UNKNOWN), limits=Limits(battery=Decimal("0.01")))
    verdict = decide(asked)
    assert verdict.path("device").battery_j.kind is Kind.UNKNOWN
    assert any("battery per day is unknown" in doubt for doubt in verdict.doubts)


def test_the_published_radio_is_an_estimate_with_an_interval_and_a_source() -> None:
    radio = published(uplink=6e6)
    lte_up = (438.39 + 1288.04 / 6) * 8e-9
    assert radio.per_byte_up.value == pytest.approx(lte_up)
    for figure in (radio.per_byte_up, radio.per_byte_down, radio.per_query):
        assert figure.kind is Kind.ESTIMATED
        assert "MobiSys 2012" in figure.source
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.high
    cloud = decide(question(radio=radio)).path("cloud").battery_j
    assert cloud.kind is Kind.ESTIMATED
    assert cloud.high == pytest.approx(50 * (1.2107 * 0.2601 + 1.06 * 11.576))


def test_kinds_never_improve_and_units_never_mix() -> None:
    measured, estimated = Quantity(1, "ms", Kind.MEASURED), Quantity(2, "ms", Kind.ESTIMATED, 1, 4)
    summed = total("ms", [measured, estimated])
    assert (summed.kind, summed.low, summed.value, summed.high) == (Kind.ESTIMATED, 2, 3, 5)
    assert total("ms", [measured, Quantity(None, "ms", Kind.UNKNOWN)]).kind is Kind.UNKNOWN
    with pytest.raises(ValueError, match="J added to a sum in ms"):
        total("ms", [measured, given(1, "J")])


CUTS = (
    Cut(0, "", 600_000, 4000, ("x",), 0.0, 1.0),
    Cut(1, "conv1", 20_000, 4000, ("a",), 0.1, 0.9),
    Cut(2, "conv2", 90_000, 4000, ("b",), 0.6, 0.4),
    Cut(3, "head", 0, 0, (), 1.0, 0.0),
)


def test_a_split_wins_where_both_ends_are_too_slow() -> None:
    asked = question(
        cuts=CUTS, uplink=Decimal(8_000_000), up_bytes=Decimal(600_000), limits=Limits(latency_ms=Decimal(110))
    )
    verdict = decide(asked)
    split = verdict.path("split")
    assert verdict.chosen == "split"
    assert split.cut == CUTS[1]
    assert split.latency_ms.value == pytest.approx(12 + 40 + 20 + 4 + 22.5)
    assert (split.cost.low, split.cost.high) == (900_000, 1_000_000)
    assert verdict.path("cloud").latency_ms.value == pytest.approx(665)


amounts = st.floats(1, 1000)


@settings(deadline=None, max_examples=40)
@drawn(amounts, amounts, amounts, st.floats(0.01, 100), st.floats(0, 1e6), st.one_of(st.none(), amounts))
@example(120.0, 40.0, 25.0, 0.0002, 0.0, 100.0)
def test_no_smaller_change_of_any_input_flips_the_verdict(
    device: float, trip: float, server: float, price: float, own: float, limit: float | None
) -> None:
    limits = Limits(latency_ms=None if limit is None else Decimal(limit))
    asked = question(
        device_ms=given(device, "ms"), round_trip_ms=given(trip, "ms"), server_ms=given(server, "ms"),
        price=Decimal(price), users=Decimal(10), device_cost=Decimal(own), limits=limits,
    )  # fmt: skip
    verdict = decide(asked)
    found = {flip.input: flip for flip in flips(asked, verdict) if flip.change is not None}
    for name in ("device_ms", "round_trip_ms", "server_ms"):
        bound = abs(found[name].change or 0) if name in found else 0.99
        assume(bound > 0.01)  # the end is told in six digits
        for part in (-0.999, -0.6, -0.3, 0.3, 0.6, 0.999):
            factor = 1 + part * bound
            changed = replace(asked, **{name: scaled(getattr(asked, name), factor)})
            assert decide(changed).chosen == verdict.chosen, (name, factor)
        if name in found and found[name].end:
            across = (found[name].change or 0) * 1.01
            assert decide(replace(asked, **{name: scaled(getattr(asked, name), 1 + across)})).chosen != verdict.chosen
