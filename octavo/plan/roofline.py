"""Latency of a network where nobody measured the runtime on the unit: the larger of arithmetic and memory time.

    t = max(operations / (peak rate · e_c), bytes / (bandwidth · e_m)) + operators · t_o

The bound is Williams et al., Roofline, CACM 2009; the efficiencies are judgement, the interval is as wide as they are.
"""

from __future__ import annotations

from dataclasses import replace

from octavo.core.facts import ModelFacts
from octavo.core.quantity import Kind, Quantity
from octavo.plan.device import Device, Unit
from octavo.plan.reckon import ends

COMPUTE = (0.05, 0.2, 0.6)  # share of the peak rate: low, value, high
MEMORY = (0.3, 0.55, 0.85)  # share of the bandwidth
PER_OPERATOR = (1e-6, 5e-6, 30e-6)  # s, of dispatching one operator
MOVES = {"move", "other"}


def roofline(
    facts: ModelFacts, device: Device, unit: Unit, kind: str, weight_bytes: int, width: float | None
) -> Quantity:
    """Latency in ms of one inference on `unit` in the type `kind`, with activations of `width` bytes an element.

    Unknown, with what is missing, where the peak rate or the bandwidth is: with one of them it would be a lower bound.
    """
    rate, bandwidth = unit.rates.get(kind), device.bandwidth
    missing = [f"peak rate of the {unit.kind.upper()} in {kind}"] if rate is None or rate.value is None else []
    missing += ["memory bandwidth"] if bandwidth.value is None else []
    if missing or rate is None:
        return Quantity(None, "ms", Kind.UNKNOWN, source=f"{' and '.join(missing)} not known")
    arithmetic = _time(2 * facts.macs, ends(rate), COMPUTE)
    memory = _time(weight_bytes + traffic(facts, width), ends(bandwidth), MEMORY)
    count = sum(operator.kind not in MOVES for operator in facts.operators)
    low, value, high = (1e3 * (max(a, m) + count * o) for a, m, o in zip(arithmetic, memory, PER_OPERATOR, strict=True))
    work = f"{2 * facts.macs / 1e9:.3g} GOP in {kind}"
    source = f"roofline, nothing measured: {work} at 5 to 60 % of peak, memory at 30 to 85 %"
    return Quantity(value, "ms", Kind.ESTIMATED, low, high, source=source)


def started(rate: Quantity, operators: tuple[int, int, int]) -> Quantity:
    """A rate [1/s] that counts reading alone, with the time to start `operators` (fewest, likely, most) added to each:
    what a small model spends most of its time on."""
    if not rate.value:
        return rate
    per_operator = [count * seconds for count, seconds in zip(operators, PER_OPERATOR, strict=True)]
    low, value, high = (1 / (1 / end + t) for end, t in zip(ends(rate), reversed(per_operator), strict=True))
    added = f"{1e3 * per_operator[1]:.2g} ms to start its operators (judgement)"
    return replace(rate, value=value, low=low, high=high, source=f"{rate.source}; and {added}")


def traffic(facts: ModelFacts, width: float | None) -> float:
    """Bytes of activations written and read again, each edge once."""
    held: dict[float | None, float] = facts.__dict__.setdefault("_traffic", {})
    if width not in held:
        held[width] = 2.0 * sum(edge.bytes if width is None else edge.elements * width for edge in facts.edges)
    return held[width]


def _time(
    work: float, rate: tuple[float, float, float], share: tuple[float, float, float]
) -> tuple[float, float, float]:
    """(low, value, high) in s."""
    slow, middle, fast = rate
    return work / (fast * share[2]), work / (middle * share[1]), work / (slow * share[0])
