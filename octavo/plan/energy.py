"""Energy per inference or token, twice over, and what it takes out of the battery.

Bottom-up: operations · energy per operation + bytes moved from DRAM · energy per byte. This counts arithmetic and
memory and nothing else (no clocks, caches, leakage, screen), so it is the low side. Top-down: the power that the whole
device can sustain · the time it takes. The interval spans both ends of both; where the two are more than a factor 10
apart the figure is flagged, and no verdict rests on its value, which is their geometric mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from octavo.core.quantity import Kind, Quantity
from octavo.plan.reckon import ends, scaled, total, unknown

SECONDS_PER_HOUR = 3600
FAR_APART = 10
BOTTOM_UP = "operations · J per operation + bytes · J per byte of DRAM"
TOP_DOWN = "sustained power · time"


@dataclass(frozen=True)
class Energy:
    """`joules` of one inference or token spans `bottom_up` and `top_down`; `flag` says when they disagree, or what is
    not known. Battery shares are fractions of a full one: per hour of nothing else, and per thousand."""

    joules: Quantity
    bottom_up: Quantity
    top_down: Quantity
    battery_per_hour: Quantity
    battery_per_thousand: Quantity
    flag: str = ""


def energy(
    operations: float,
    bytes_moved: float,
    seconds: Quantity,
    *,
    per_operation: Quantity,
    per_byte: Quantity,
    power: Quantity,
    battery: Quantity,
) -> Energy:
    """Energy of `operations` (a multiply-accumulate is two) and `bytes_moved` in `seconds`.

    Units: s, J/op, J/B, W, Wh; raises ValueError for any other. What is unknown makes its estimate unknown; with one of
    the two estimates the interval is that one's, and `flag` says so.
    """
    for given, unit in ((seconds, "s"), (per_operation, "J/op"), (per_byte, "J/B"), (power, "W"), (battery, "Wh")):
        if given.unit != unit:
            raise ValueError(f"{given.unit} where {unit} is meant")
    parts = [scaled(per_operation, operations, "J"), scaled(per_byte, bytes_moved, "J")]
    up, down = total("J", parts, BOTTOM_UP), _product(power, seconds)
    joules, flag = _both(up, down)
    return Energy(
        joules, up, down, _hourly(joules, seconds, power, battery), _share(scaled(joules, 1000), battery), flag
    )


def _product(power: Quantity, seconds: Quantity) -> Quantity:
    if power.value is None or seconds.value is None:
        return unknown("J", TOP_DOWN)
    low, value, high = (p * t for p, t in zip(ends(power), ends(seconds), strict=True))
    return Quantity(value, "J", Kind.ESTIMATED, low, high, source=TOP_DOWN)


def _both(up: Quantity, down: Quantity) -> tuple[Quantity, str]:
    """The span of the two estimates, and what is to be said of it."""
    known = [item for item in (up, down) if item.value is not None]
    if not known:
        return unknown("J"), "neither power nor energy per operation and byte are known of this device"
    if len(known) == 1:
        only, other = known[0], "top-down" if known[0] is up else "bottom-up"
        low, value, high = ends(only)
        return Quantity(
            value, "J", Kind.ESTIMATED, low, high, source=only.source
        ), f"no {other} estimate to compare with"
    (a_low, a, a_high), (b_low, b, b_high) = ends(up), ends(down)
    joules = Quantity(
        sqrt(a * b), "J", Kind.ESTIMATED, min(a_low, b_low), max(a_high, b_high), source=f"{BOTTOM_UP}; {TOP_DOWN}"
    )
    ratio = max(a, b) / min(a, b) if min(a, b) > 0 else float("inf")
    flag = f"bottom-up and top-down are {ratio:.0f} times apart" if ratio > FAR_APART else ""
    return joules, flag


def _share(joules: Quantity, battery: Quantity) -> Quantity:
    """Of a full battery, as a fraction."""
    if joules.value is None or battery.value is None:
        return unknown("1", "battery not known" if battery.value is None else "")
    b_low, b, b_high = (end * SECONDS_PER_HOUR for end in ends(battery))
    low, value, high = ends(joules)
    return Quantity(value / b, "1", Kind.ESTIMATED, low / b_high, high / b_low, source="energy ÷ battery")


def _hourly(joules: Quantity, seconds: Quantity, power: Quantity, battery: Quantity) -> Quantity:
    """An hour of one inference after the other: energy over time, but no more than the device can shed for an hour."""
    if joules.value is None or seconds.value is None or seconds.value <= 0:
        return unknown("1")
    t_low, t, t_high = ends(seconds)
    low, value, high = ends(joules)
    watts = [low / t_high, value / t, high / t_low if t_low > 0 else high / t]
    if power.value is not None:
        most = ends(power)[2]
        watts = [min(watt, most) for watt in watts]
    low, value, high = (watt * SECONDS_PER_HOUR for watt in watts)
    hour = Quantity(value, "J", Kind.ESTIMATED, low, high)
    return _share(hour, battery)
