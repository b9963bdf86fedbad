"""What would flip the verdict: for each input the nearest value at which another path wins, the others being kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from octavo.core.quantity import Quantity
from octavo.plan.decide import DAYS, Limits, Question, Verdict, decide
from octavo.plan.reckon import scaled

FACTORS = [2 ** (step / 2) for step in range(1, 25)]  # up to 4096 times
BISECTIONS = 60
LABELS = {
    "device_ms": ("device latency", "ms"),
    "device_j": ("device energy per query", "J"),
    "round_trip_ms": ("round trip", "ms"),
    "server_ms": ("server time", "ms"),
    "price": ("price per query", "USD"),
    "queries": ("queries per user and day", ""),
    "users": ("users", ""),
    "up_bytes": ("bytes sent per query", "B"),
    "down_bytes": ("bytes received per query", "B"),
    "uplink": ("uplink", "bit/s"),
    "downlink": ("downlink", "bit/s"),
    "device_cost": ("yearly cost of the on-device build", "USD"),
    "battery": ("battery", "Wh"),
    "latency_ms": ("latency limit", "ms"),
    "battery_limit": ("battery limit per day", ""),
    "cost": ("cost limit per day", "USD"),
}
MAY_BE_ZERO = ("device_ms", "device_j", "round_trip_ms", "server_ms", "price", "up_bytes", "down_bytes", "device_cost")


@dataclass(frozen=True)
class Flip:
    """`change` is relative (−0.17: 17 % less); None where the change is a requirement taken up or dropped, and the text
    says it all. `chosen`: who wins then (None: no path is left)."""

    input: str
    text: str
    chosen: str | None
    start: float | None = None
    end: float | None = None
    change: float | None = None


def flips(question: Question, verdict: Verdict) -> tuple[Flip, ...]:
    """Every single change that flips `verdict`, the smallest relative change first, then requirements."""
    numbers = [flip for name in LABELS if (flip := _nearest(question, verdict.chosen, name)) is not None]
    return (*sorted(numbers, key=lambda flip: abs(flip.change or 0.0)), *_requirements(question, verdict))


def headline(found: tuple[Flip, ...]) -> Flip | None:
    """The one to tell: the smallest change of a number, unless only a giveaway (to zero) or nothing at all would do."""
    small = [flip for flip in found if flip.change is not None and flip.end]
    ranked = [*small, *(flip for flip in found if flip.change is None), *found]
    return ranked[0] if ranked else None


def _nearest(question: Question, chosen: str | None, name: str) -> Flip | None:
    """The flip of one input that is nearest in relative terms, downwards or upwards."""
    start = _value(question, name)
    if not start:
        return None

    def outcome(factor: float) -> str | None:
        return decide(_with(question, name, factor)).chosen

    downwards = [1 / factor for factor in FACTORS] + [0.0] * (name in MAY_BE_ZERO)
    edges = [_edge(outcome, chosen, downwards), _edge(outcome, chosen, FACTORS)]
    found = [edge for edge in edges if edge is not None]
    if not found:
        return None
    factor, winner = min(found, key=lambda edge: abs(edge[0] - 1))
    end = start * factor
    rounded = float(f"{end:.6g}")
    at = outcome(rounded / start) != chosen
    label, unit = LABELS[name]
    word = "at" if at else ("above" if factor > 1 else "below")
    text = f"{label} {word} {_shown(rounded, unit)} instead of {_shown(start, unit)}"
    return Flip(name, text, winner, start, rounded, rounded / start - 1)


def _edge(
    outcome: Callable[[float], str | None], chosen: str | None, factors: list[float]
) -> tuple[float, str | None] | None:
    """The factor nearest to 1 along `factors` at which the outcome changes, by bisection; and the new outcome."""
    kept = 1.0
    for factor in factors:
        winner = outcome(factor)
        if winner == chosen:
            kept = factor
            continue
        flipped = factor
        for _ in range(BISECTIONS):
            middle = (kept + flipped) / 2
            there = outcome(middle)
            kept, flipped, winner = (middle, flipped, winner) if there == chosen else (kept, middle, there)
        return flipped, winner
    return None


def _requirements(question: Question, verdict: Verdict) -> list[Flip]:
    """Requirements that would flip it if they were dropped or, where another path answers sooner, taken up."""
    limits = question.limits
    drops: list[tuple[str, str, Limits]] = []
    if limits.private:
        drops.append(("private", "if data may leave the device", replace(limits, private=False)))
    if limits.offline:
        drops.append(("offline", "if it need not work offline", replace(limits, offline=False)))
    if limits.private and limits.offline:
        both = replace(limits, private=False, offline=False)
        drops.append(("private, offline", "if data may leave the device and it need not work offline", both))
    found = [Flip(name, text, decide(replace(question, limits=free)).chosen) for name, text, free in drops]
    found = [flip for flip in found if flip.chosen != verdict.chosen]
    return found + _new_limit(question, verdict)


def _new_limit(question: Question, verdict: Verdict) -> list[Flip]:
    """A latency limit that only a faster path than the chosen one keeps."""
    if verdict.chosen is None or question.limits.latency_ms is not None:
        return []
    own = verdict.path(verdict.chosen).latency_ms.value
    faster = [p for p in verdict.paths if not p.out and p.name != verdict.chosen and p.latency_ms.value is not None]
    faster = [path for path in faster if own is not None and (path.latency_ms.value or 0.0) < own]
    if not faster or own is None:
        return []
    limited = replace(question.limits, latency_ms=Decimal(repr(own)) * Decimal("0.999999"))
    winner = decide(replace(question, limits=limited)).chosen
    return [Flip("latency_ms", f"if the answer had to come in under {own:,.4g} ms", winner)]


def _value(question: Question, name: str) -> float | None:
    found: Any = (
        getattr(question.limits, {"battery_limit": "battery"}.get(name, name), None) if name in _LIMITS else None
    )
    found = getattr(question, name) if name not in _LIMITS else found
    value = found.value if isinstance(found, Quantity) else found
    return None if value is None else float(value)


_LIMITS = ("latency_ms", "battery_limit", "cost")


def _with(question: Question, name: str, factor: float) -> Question:
    """The question with one input times `factor`."""
    if name in _LIMITS:
        attribute = "battery" if name == "battery_limit" else name
        limit = getattr(question.limits, attribute) * Decimal(factor)
        return replace(question, limits=replace(question.limits, **{attribute: limit}))
    found = getattr(question, name)
    changed: Any = scaled(found, factor) if isinstance(found, Quantity) else found * Decimal(factor)
    return replace(question, **{name: changed})


def _shown(value: float, unit: str) -> str:
    if unit == "USD":
        return f"${value:,.6f}".rstrip("0").rstrip(".") if value < 1 else f"${value:,.2f}".removesuffix(".00")
    if unit == "bit/s":
        return f"{value / 1e6:.4g} Mbit/s"
    return f"{value:,.6g} {unit}".strip() if unit else f"{value:,.6g}"


@dataclass(frozen=True)
class BreakEven:
    """Where cloud and device are equal, the rest being kept; None with a reason where there is no such value.

    `round_trip_ms`: the two latencies are equal. `price` in $ per query, `queries` per user and day: the two costs are.
    """

    round_trip_ms: float | None
    price: float | None
    queries: float | None
    reasons: dict[str, str]


def break_even(question: Question, verdict: Verdict) -> BreakEven:
    """The three break-evens."""
    reasons = {}
    device, cloud = verdict.path("device").latency_ms.value, verdict.path("cloud").latency_ms.value
    trip: float | None = None
    if device is None or cloud is None:
        reasons["round_trip_ms"] = "a latency is unknown"
    else:
        trip = device - (cloud - (question.round_trip_ms.value or 0.0))
        if trip < 0:
            reasons["round_trip_ms"] = f"none: without any round trip the cloud takes {device - trip:,.4g} ms already"
            trip = None
    daily = question.device_cost / DAYS
    volume = question.queries * question.users
    price = float(daily / volume)
    queries = float(daily / (question.price * question.users)) if question.price else None
    if queries is None:
        reasons["queries"] = "none: the cloud costs nothing at any volume"
    if not question.device_cost:
        told = "the on-device build was given no cost, so every query in the cloud costs more"
        reasons |= {"price": told} | ({"queries": told} if queries is not None else {})
    return BreakEven(trip, price, queries, reasons)
