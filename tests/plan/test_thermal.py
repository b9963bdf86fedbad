"""The closed form against the differential equation it solves, step by step."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.quantity import Kind, Quantity
from octavo.plan.reckon import unknown
from octavo.plan.thermal import sustained, time_to_throttle


def q(value: float, unit: str, low: float | None = None, high: float | None = None) -> Quantity:
    return Quantity(value, unit, Kind.ESTIMATED, low, high)


def integrate(power: float, limit: float, tau: float, steps: int = 200_000) -> float:
    """Seconds until the rise, in units of the thermal resistance, reaches `limit`: dx/dt = (power − x) / tau."""
    rise, step = 0.0, 10 * tau / steps
    for count in range(steps):
        if rise >= limit:
            return count * step
        rise += (power - rise) / tau * step
    return inf


@pytest.mark.parametrize(
    ("power", "limit", "tau"), [(9.0, 3.0, 100.0), (4.0, 3.0, 60.0), (3.1, 3.0, 200.0), (20.0, 2.0, 10.0)]
)
def test_time_to_throttle_solves_the_equation(power, limit, tau):
    assert time_to_throttle(power, limit, tau) == pytest.approx(integrate(power, limit, tau), rel=1e-3, abs=tau / 1e4)


def test_what_the_device_can_shed_never_throttles():
    assert time_to_throttle(3.0, 3.0, 100.0) == inf
    found = sustained(q(20.0, "1/s"), q(2.0, "W"), q(3.0, "W"), q(100.0, "s"))
    assert found.endless
    assert found.sustained.value == found.burst.value


def test_the_sustained_rate_is_the_share_of_power_that_can_be_shed():
    found = sustained(q(20.0, "1/s"), q(9.0, "W", 6.0, 12.0), q(3.0, "W", 2.0, 4.0), q(100.0, "s", 50.0, 200.0))
    assert found.sustained.value == pytest.approx(20 * 3 / 9)
    assert found.sustained.low == pytest.approx(20 * 2 / 12)
    assert found.sustained.high == pytest.approx(20 * 4 / 6)
    assert found.seconds.value == pytest.approx(time_to_throttle(9, 3, 100))
    assert found.seconds.low == pytest.approx(time_to_throttle(12, 2, 50))
    assert found.seconds.high == pytest.approx(time_to_throttle(6, 4, 200))
    assert not found.endless


def test_unknown_inputs_make_unknown_outputs_and_are_named():
    rate, power, limit, tau = q(20.0, "1/s"), q(9.0, "W"), q(3.0, "W"), q(100.0, "s")
    found = sustained(rate, unknown("W"), limit, tau)
    assert found.sustained.kind is Kind.UNKNOWN
    assert "burst power" in found.reason
    found = sustained(rate, power, limit, unknown("s"))
    assert found.sustained.value == pytest.approx(20 / 3)
    assert found.seconds.kind is Kind.UNKNOWN
    assert "time constant" in found.reason
    assert sustained(unknown("1/s"), power, limit, tau).sustained.value is None


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(1, 1000), st.floats(1.0, 2.0))
def test_a_hotter_burst_is_shorter_and_no_faster_in_the_end(power, limit, tau, more):
    assert time_to_throttle(power * more, limit, tau) <= time_to_throttle(power, limit, tau)
    cool, hot = (sustained(q(1.0, "1/s"), q(p, "W"), q(limit, "W"), q(tau, "s")) for p in (power, power * more))
    assert cool.sustained.value is not None
    assert hot.sustained.value is not None
    assert hot.sustained.value <= cool.sustained.value <= 1.0
