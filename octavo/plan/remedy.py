"""What would make it fit, each alone: fewer bits, shorter context, smaller cache, fewer parameters, a larger slice."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import BadInput
from octavo.plan.planner import Candidate, DevicePlan, precision_bits
from octavo.plan.say import size
from octavo.plan.schemes import AS_IS, FEWER_BITS, KNOWN, MUST_BE_TRAINED

SHORTEST = 256  # positions; a context below is no remedy
LEAST_SHARE = 0.02  # of the parameters; a distillation to less is no remedy


@dataclass(frozen=True)
class Remedy:
    """`change` in a few words, `to` what, and the sentence. `bytes`: what the model needs then."""

    change: str
    to: int | str
    bytes: int
    text: str


def remedies(plan: DevicePlan, candidate: Candidate) -> list[Remedy]:
    """Changes that let `candidate`, which does not fit, fit; each alone is enough. None for one that was refused."""
    memory, granted = candidate.memory, plan.setting.granted.value
    if memory is None or granted is None or plan.holds(memory):
        return []
    found = [_cache(plan, candidate), _context(plan, candidate), _bits(plan, candidate), _parameters(plan, candidate)]
    needed = round(memory.total / (1 - plan.setting.reserve))
    found.append(Remedy("larger slice", needed, memory.total, f"a slice of {size(needed)}"))
    return [remedy for remedy in found if remedy is not None]


def _bits(plan: DevicePlan, candidate: Candidate) -> Remedy | None:
    if candidate.scheme == AS_IS:
        return None
    now = precision_bits(KNOWN[candidate.scheme])
    for name in FEWER_BITS:
        if precision_bits(KNOWN[name]) < now:
            try:
                memory = plan.memory(candidate, scheme=name)
            except BadInput:
                continue
            if plan.holds(memory):
                trained = ", for a model trained so" if name in MUST_BE_TRAINED else ""
                return Remedy("fewer bits", name, memory.total, f"{name} ({size(memory.total)}{trained})")
    return None


def _context(plan: DevicePlan, candidate: Candidate) -> Remedy | None:
    longest = candidate.largest_context or 0
    if longest < SHORTEST or longest >= (plan.setting.context or 0):
        return None
    return Remedy("shorter context", longest, plan.memory(candidate, longest).total, f"a context of {longest:,}")


def _cache(plan: DevicePlan, candidate: Candidate) -> Remedy | None:
    if plan.facts.language is None:
        return None
    for kind in ("q8_0", "q4_0"):
        try:
            memory = plan.memory(candidate, kv_type=kind)
        except BadInput:
            return None
        if plan.holds(memory):
            return Remedy("smaller KV cache", kind, memory.total, f"a KV cache in {kind} ({size(memory.total)})")
    return None


def _parameters(plan: DevicePlan, candidate: Candidate) -> Remedy | None:
    """Parameters in proportion to the bytes that are left for weights; cache and activations taken to stay."""
    memory, granted = candidate.memory, plan.setting.granted.value
    assert memory is not None
    assert granted is not None
    left = int(granted) - (memory.total - memory.weights)
    count = plan.facts.parameters * left // memory.weights if memory.weights else 0
    if count < LEAST_SHARE * plan.facts.parameters or count >= plan.facts.parameters:
        return None
    shown = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
    return Remedy(
        "fewer parameters", count, int(granted), f"a model distilled to {shown} parameters in {candidate.scheme}"
    )
