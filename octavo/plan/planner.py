"""Candidates: scheme × runtime × unit on a device, each with its figures or the reason it is out, by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from octavo.core.facts import ModelFacts
from octavo.errors import BadInput, nearest
from octavo.plan.cost import Costs, Setting, costs, fits, width_of
from octavo.plan.device import Device
from octavo.plan.memory import Memory, kv_refusal, largest_context, memory_of, overhead_of, working
from octavo.plan.reach import UNITS, Way, refusal, ways
from octavo.plan.say import runtime as runtime_title
from octavo.plan.say import size
from octavo.plan.schemes import AS_IS, KNOWN, PlanScheme, plan_scheme, runtimes
from octavo.plan.weights import Scale, Weighed

RULE = (
    "what fits with room comes first, then what fits only just (what has fewer than 4 bits a weight after both, as it "
    "loses much), then what does not; of each what Octavo exports and runs today; of that the most bits per weight (8 "
    "and more count alike), but of what may not fit the leanest; of equals the fastest"
)
RUNS = {  # units on which Octavo runs a runtime's files today
    "llamacpp": ("cpu",), "onnxruntime": ("cpu",), "litert": ("cpu",), "executorch": ("cpu",), "coreml": ("cpu",),
}  # fmt: skip
FEW_BITS = 4.0  # below, rounding loses so much that room is no consolation
ENOUGH_BITS = 8.0  # int8 per channel costs next to nothing; more bits are no reason to choose
DEFAULT = {
    "network": ("fp32", "fp16", "w8", "w8a8", "w8a16", "w4"),
    "language": ("fp16", "w8", "w4g32", "w4", "w2g32", "w4a16"),
    "size": ("fp16", "w8", "w4", "w3g32", "w2g32"),
}


@dataclass(frozen=True)
class Candidate:
    """One scheme on one runtime and unit. `fits` is None where it cannot be said (a slice that nobody knows); `tight`:
    the intervals leave it open. `reason`: why it is out; `refused`: there was nothing to weigh."""

    device: str
    scheme: str
    way: Way
    fits: bool | None
    tight: bool = False
    reason: str = ""
    refused: bool = False
    weighed: Weighed | None = None
    memory: Memory | None = None
    costs: Costs | None = None
    largest_context: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        return self.way.runtime

    @property
    def unit(self) -> str:
        return self.way.kind

    @property
    def made(self) -> bool:
        """Whether Octavo exports this today and runs it on that unit, so that it can be verified and measured."""
        return self.weighed is not None and self.weighed.made and self.unit in RUNS.get(self.runtime, ())


@dataclass(frozen=True)
class DevicePlan:
    """Candidates of one device, best first; `best` is None when none fits."""

    facts: ModelFacts
    device: Device
    setting: Setting
    candidates: tuple[Candidate, ...]
    scale: Scale

    @property
    def best(self) -> Candidate | None:
        first = self.candidates[0] if self.candidates else None
        return first if first is not None and first.fits else None

    @property
    def closest(self) -> Candidate | None:
        """Of those that do not fit, the one that needs least; exported today before planned."""
        weighed = [c for c in self.candidates if c.memory is not None and not c.fits]
        return min(weighed, key=lambda c: (not c.made, c.memory.total if c.memory else 0), default=None)

    def memory(self, candidate: Candidate, context: int | None = None, kv_type: str | None = None,
               scheme: str | None = None) -> Memory:  # fmt: skip
        """The candidate's memory at another context, KV type or scheme. Raises BadInput where the pair is refused."""
        weighed = self.scale.weigh(scheme or candidate.scheme, candidate.runtime)
        if weighed.refused:
            raise BadInput(weighed.refused, weighed.remedy)
        setting = replace(
            self.setting, context=context or self.setting.context, kv_type=kv_type or self.setting.kv_type
        )
        return weigh_up(self.facts, self.device, candidate.way, weighed, setting)

    def holds(self, memory: Memory) -> bool:
        return fits(memory, self.setting.granted)[0] is True


def plan(
    facts: ModelFacts,
    devices: Sequence[Device],
    settings: Sequence[Setting],
    *,
    schemes: Sequence[str] = (),
    runtimes: Sequence[str] = (),
    units: Sequence[str] = (),
    scale: Scale,
) -> list[DevicePlan]:
    """Plan `facts` on each device under its setting. `schemes`, `runtimes`, `units`: those to try (empty: all that the
    device has). Raises BadInput for unknown names, with the nearest."""
    check_names(schemes, runtimes, units)
    chosen = tuple(schemes) or ((AS_IS,) if scale.fixed else DEFAULT[facts.kind])
    return [
        _device(facts, device, setting, chosen, runtimes, units, scale, named=bool(schemes))
        for device, setting in zip(devices, settings, strict=True)
    ]


def check_names(schemes: Sequence[str], names: Sequence[str], units: Sequence[str]) -> None:
    """Raise BadInput for a scheme, runtime or unit that nobody knows."""
    for name in schemes:
        if name != AS_IS:
            plan_scheme(name)
    for name in names:
        if name not in runtimes():
            raise BadInput(f"Unknown runtime '{name}'.", nearest(name, runtimes()))
    for name in units:
        if name not in UNITS:
            raise BadInput(f"Unknown unit '{name}'.", nearest(name, UNITS))


def _device(
    facts: ModelFacts, device: Device, setting: Setting, schemes: Sequence[str], runtimes: Sequence[str],
    units: Sequence[str], scale: Scale, *, named: bool,
) -> DevicePlan:  # fmt: skip
    found = []
    for way in ways(device, runtimes, units):
        weighed = [_weighed(facts, device, way, name, setting, scale) for name in schemes]
        found += weighed if named else [_unless_dominated(item, weighed) for item in weighed]
    judged = [item if item.reason else _judged(facts, device, item, setting) for item in found]
    return DevicePlan(facts, device, setting, tuple(sorted(judged, key=_rank)), scale)


def _weighed(facts: ModelFacts, device: Device, way: Way, name: str, setting: Setting, scale: Scale) -> Candidate:
    """A candidate with its memory, or with the reason that there is nothing to weigh."""
    reason = refusal(way, KNOWN.get(name), facts)
    if not reason:
        weighed = scale.weigh(name, way.runtime)
        reason = f"{weighed.refused}. {weighed.remedy}".strip(". ")
        if not reason:
            reason = kv_refusal(way.runtime, setting.kv_type)
    if reason:
        return Candidate(device.name, name, way, False, reason=reason, refused=True)
    memory = weigh_up(facts, device, way, weighed, setting)
    notes = (*weighed.notes, *memory.notes)
    if weighed.made and way.kind not in RUNS.get(way.runtime, ()):
        notes += (f"Octavo exports this file, and cannot run it on the {way.kind.upper()} yet",)
    return Candidate(device.name, name, way, None, weighed=weighed, memory=memory, notes=notes)


def _unless_dominated(candidate: Candidate, others: Sequence[Candidate]) -> Candidate:
    """Out, where the runtime stores a scheme of more bits in no more bytes: nobody would choose the coarser one."""
    mine = candidate.weighed
    if mine is None:
        return candidate
    bits = precision_bits(KNOWN.get(candidate.scheme))
    for other in others:
        theirs = other.weighed
        if theirs is None or theirs.bytes > mine.bytes or _static(other.scheme) != _static(candidate.scheme):
            continue
        if precision_bits(KNOWN.get(other.scheme)) > bits:
            kept = runtime_title(candidate.runtime)
            reason = f"{kept} stores it in no fewer bytes than {other.scheme}, which has more bits"
            return Candidate(candidate.device, candidate.scheme, candidate.way, False, reason=reason, refused=True)
    return candidate


def _static(scheme: str) -> bool:
    known = KNOWN.get(scheme)
    return known is not None and known.activation != "float"


def _judged(facts: ModelFacts, device: Device, candidate: Candidate, setting: Setting) -> Candidate:
    """Whether a weighed candidate fits, and what it costs if it does (or may)."""
    way, weighed, memory = candidate.way, candidate.weighed, candidate.memory
    assert weighed is not None
    assert memory is not None
    fit, tight = fits(memory, setting.granted)
    reason = _beyond_storage(device, weighed)
    if reason:
        fit, tight = False, False
    longest = _longest(facts, way, weighed, setting, memory)
    spent, notes = None, candidate.notes
    if fit is False:
        reason = reason or too_much(memory, setting)
    else:
        spent = costs(facts, device, way, weighed, setting)
        reason = "" if fit else f"what {device.title} grants an app is not known: give --slice"
        notes += spent.notes
    return Candidate(
        candidate.device, candidate.scheme, way, fit, tight, reason, False, weighed, memory, spent, longest, notes
    )


def weigh_up(facts: ModelFacts, device: Device, way: Way, weighed: Weighed, setting: Setting) -> Memory:
    """Memory on this device; weights that are read in place from another memory than RAM take none of it."""
    overhead = overhead_of(way.runtime, device.runtime_memory, here=device.kind == "host")
    width = width_of(facts, way, weighed.scheme)
    found = memory_of(
        facts, weighed, setting.context, setting.kv_type, setting.prompt, width, overhead, on_cpu=way.kind == "cpu"
    )
    if device.weight_storage.value is None:
        return found
    count = found.weights
    return replace(
        found, total=found.total - count, low=found.low - count, high=found.high - count,
        notes=(*found.notes, "weights are read in place and take no RAM: the total is without them"),
    )  # fmt: skip


def too_much(memory: Memory, setting: Setting) -> str:
    """The numbers of a model that does not fit."""
    granted = setting.granted.value
    assert granted is not None
    parts = [f"weights {size(memory.weights)}"]
    parts += [f"KV cache {size(memory.kv_cache)}"] if memory.kv_cache else []
    parts += [f"activations {size(memory.activations)}"] if memory.activations else []
    parts += [f"runtime {size(memory.runtime)}"]
    over = size(memory.total - granted)
    return f"does not fit: {size(memory.total)} ({', '.join(parts)}) of {size(granted)}, {over} too much"


def _beyond_storage(device: Device, weighed: Weighed) -> str:
    held = device.weight_storage
    if held.value is None or weighed.bytes <= held.value:
        return ""
    return f"does not fit: weights of {size(weighed.bytes)} in a memory of {size(held.value)} for weights"


def _longest(facts: ModelFacts, way: Way, weighed: Weighed, setting: Setting, memory: Memory) -> int | None:
    """The largest context that fits; None where there is no such thing or no known slice."""
    granted = setting.granted.value
    if facts.language is None or granted is None:
        return None
    width = width_of(facts, way, weighed.scheme)

    def growing(context: int) -> int:
        cache, peak, _ = working(facts, way.runtime, context, setting.kv_type, setting.prompt, width)
        return cache + peak

    assert memory.kv_cache is not None
    assert memory.activations is not None
    left = int(granted) - (memory.total - memory.kv_cache - memory.activations)
    held: dict[Any, int] = facts.__dict__.setdefault("_longest", {})
    key = (way.runtime, setting.kv_type, setting.prompt, width, left)
    if key not in held:
        held[key] = largest_context(facts, growing, left)
    return held[key]


def _rank(candidate: Candidate) -> tuple[float, ...]:
    """RULE, as a sort key; refused pairs last."""
    bits = precision_bits(KNOWN.get(candidate.scheme))
    fit = 6 if candidate.refused else 5 if candidate.fits is False else 4 if candidate.fits is None else 0
    if candidate.fits:
        fit = candidate.tight + 2 * (bits < FEW_BITS)
    total = candidate.memory.total if candidate.memory else inf
    leanest = total if fit in (1, 3, 5) else 0  # of what may not fit, the likeliest to
    least = -min(ENOUGH_BITS, bits)
    return float(fit), not candidate.made, leanest, least, _slowness(candidate.costs), total


def precision_bits(scheme: PlanScheme | None) -> float:
    """Bits that a weight is told apart with: those of its code, and its share of a group's scale."""
    if scheme is None or scheme.base is None:
        return ENOUGH_BITS if scheme is None else scheme.bits
    return scheme.bits + (16 / scheme.base.group if scheme.base.group else 0.0)


def _slowness(found: Costs | None) -> float:
    if found is None:
        return inf
    if found.latency is not None and found.latency.value is not None:
        return found.latency.value
    return 1 / found.rate.value if found.rate is not None and found.rate.value else inf
