"""Energy twice over: out of operations and bytes, and out of power and time; never more sure than either."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.quantity import Kind, Quantity
from octavo.plan.energy import energy
from octavo.plan.reckon import unknown


def q(value: float, unit: str, low: float | None = None, high: float | None = None) -> Quantity:
    return Quantity(value, unit, Kind.ESTIMATED, low, high)


def given_all(**changes: Quantity) -> dict[str, Quantity]:
    return {
        "per_operation": q(2e-12, "J/op", 1e-12, 4e-12), "per_byte": q(40e-12, "J/B", 20e-12, 80e-12),
        "power": q(3.0, "W", 2.0, 5.0), "battery": q(15.0, "Wh"),
    } | changes  # fmt: skip


def test_both_estimates_are_what_their_formulas_say_and_the_interval_spans_both():
    found = energy(2e9, 50e6, q(0.01, "s", 0.005, 0.02), **given_all())
    assert found.bottom_up.value == pytest.approx(2e9 * 2e-12 + 50e6 * 40e-12)  # 6 mJ
    assert found.top_down.value == pytest.approx(3.0 * 0.01)  # 30 mJ
    assert found.joules.low == pytest.approx(2e9 * 1e-12 + 50e6 * 20e-12)
    assert found.joules.high == pytest.approx(5.0 * 0.02)
    assert found.joules.value == pytest.approx((0.006 * 0.030) ** 0.5)
    assert found.joules.kind is Kind.ESTIMATED
    assert found.flag == ""


def test_estimates_over_ten_times_apart_are_flagged():
    found = energy(2e9, 50e6, q(0.1, "s"), **given_all())
    assert "50 times apart" in found.flag


def test_the_battery_share_of_a_thousand_and_of_an_hour():
    same = given_all(per_operation=q(1e-9, "J/op"), per_byte=q(0.0, "J/B"), power=q(2.0, "W"))
    found = energy(1e9, 0, q(0.5, "s"), **same)  # 1 J either way, 2 W
    assert found.joules.value == pytest.approx(1.0)
    assert found.battery_per_thousand.value == pytest.approx(1000 / (15 * 3600))
    assert found.battery_per_hour.value == pytest.approx(2 / 15)


def test_what_is_unknown_stays_unknown_and_is_said():
    one = energy(2e9, 50e6, q(0.01, "s"), **given_all(power=unknown("W")))
    assert one.top_down.kind is Kind.UNKNOWN
    assert one.joules.value == one.bottom_up.value
    assert "top-down" in one.flag
    other = energy(2e9, 50e6, q(0.01, "s"), **given_all(per_byte=unknown("J/B")))
    assert other.joules.value == other.top_down.value
    neither = energy(2e9, 50e6, unknown("s"), **given_all(per_operation=unknown("J/op")))
    assert neither.joules.kind is Kind.UNKNOWN
    assert neither.battery_per_hour.kind is Kind.UNKNOWN
    assert neither.flag
    assert energy(2e9, 50e6, q(0.01, "s"), **given_all(battery=unknown("Wh"))).battery_per_hour.value is None


@pytest.mark.parametrize("wrong", [
    {"per_operation": q(1, "J/B")}, {"per_byte": q(1, "J/op")}, {"power": q(1, "mW")}, {"battery": q(1, "J")},
])  # fmt: skip
def test_units_never_mix(wrong):
    with pytest.raises(ValueError, match="where"):
        energy(1, 1, q(1, "s"), **given_all(**wrong))
    with pytest.raises(ValueError, match="ms where s is meant"):
        energy(1, 1, q(1, "ms"), **given_all())


@given(st.floats(1, 1e12), st.floats(0, 1e10), st.floats(1e-6, 10), st.floats(1, 3), st.floats(1, 3))
def test_the_interval_always_holds_both_estimates(operations, moved, seconds, wide, wider):
    time = q(seconds, "s", seconds / wide, seconds * wide)
    found = energy(operations, moved, time, **given_all(power=q(3.0, "W", 3 / wider, 3 * wider)))
    low, high = found.joules.low, found.joules.high
    assert low is not None
    assert high is not None
    for estimate in (found.bottom_up, found.top_down):
        assert estimate.value is not None
        assert low * (1 - 1e-9) <= estimate.value <= high * (1 + 1e-9)


def test_an_hour_never_takes_more_than_the_device_can_shed():
    found = energy(1e12, 0, q(0.01, "s"), **given_all(per_operation=q(1e-10, "J/op")))  # would be 10 kW
    assert found.battery_per_hour.high == pytest.approx(5 / 15)
