"""Burst and sustained: a first-order thermal model of a device.

One thermal resistance R to the surroundings and one capacity C, so one time constant τ = R·C: the temperature rise of a
body that dissipates P from rest is ΔT(t) = P·R·(1 − e^(−t/τ)). (Lumped capacitance: Incropera & DeWitt, Fundamentals of
Heat and Mass Transfer, chapter 5.) The sustained power P_s is the one whose steady rise P_s·R just reaches the limit:
a burst at P > P_s reaches it when P·(1 − e^(−t/τ)) = P_s:

    t = τ · ln(P / (P − P_s))          never, if P ≤ P_s

From then on the device sheds P_s and no more. Energy per inference is taken to stay what it is (a slower clock at a
lower voltage spends less, so this is the cautious side): the sustained rate is the burst rate · min(1, P_s / P).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log

from octavo.core.quantity import Kind, Quantity
from octavo.plan.reckon import ends, unknown

SOURCE = "first-order thermal model: t = τ·ln(P/(P − P_sustained)), rate · P_sustained/P"


@dataclass(frozen=True)
class Sustained:
    """`burst` and `sustained` rates in one unit, 1/s; `seconds`: of full speed from cold, unknown where it never ends
    (`endless`) or where nobody knows."""

    burst: Quantity
    sustained: Quantity
    seconds: Quantity
    endless: bool
    reason: str = ""


def sustained(rate: Quantity, power: Quantity, sustained_power: Quantity, tau: Quantity) -> Sustained:
    """What a rate in 1/s becomes on a device that draws `power` [W] meanwhile and can shed `sustained_power` [W], with
    time constant `tau` [s]. What is not known makes unknown what rests on it, and `reason` says which it was."""
    if rate.value is None or power.value is None or sustained_power.value is None:
        missing = [
            name
            for name, given in (("rate", rate), ("burst power", power), ("sustained power", sustained_power))
            if given.value is None
        ]
        return Sustained(
            rate, unknown("1/s", SOURCE), unknown("s", SOURCE), False, f"{' and '.join(missing)} not known"
        )
    p_low, p, p_high = ends(power)
    s_low, s, s_high = ends(sustained_power)
    r_low, r, r_high = ends(rate)
    kept = Quantity(
        r * min(1.0, s / p), "1/s", Kind.ESTIMATED,
        r_low * min(1.0, s_low / p_high), r_high * min(1.0, s_high / p_low), source=SOURCE,
    )  # fmt: skip
    if p <= s:
        return Sustained(rate, kept, unknown("s", "never throttles at this power"), True)
    if tau.value is None:
        return Sustained(rate, kept, unknown("s", SOURCE), False, "time constant not known")
    t_low, t, t_high = ends(tau)
    longest = time_to_throttle(p_low, s_high, t_high)
    return Sustained(
        rate,
        kept,
        Quantity(
            time_to_throttle(p, s, t), "s", Kind.ESTIMATED,
            time_to_throttle(p_high, s_low, t_low), None if longest == inf else longest, source=SOURCE,
        ),
        False,
        "" if longest < inf else "at the gentle end of the intervals it never throttles",
    )  # fmt: skip


def time_to_throttle(power: float, sustained_power: float, tau: float) -> float:
    """Seconds from cold until a burst at `power` must end; infinite when the device can shed that much."""
    if power <= sustained_power:
        return inf
    return tau * log(power / (power - sustained_power))
