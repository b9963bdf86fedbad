"""The answer in words: does it fit, on what, how fast; what does not, and what would."""

from __future__ import annotations

from octavo.plan.memory import CLIFF
from octavo.plan.planner import ENOUGH_BITS, Candidate, DevicePlan, precision_bits
from octavo.plan.remedy import remedies
from octavo.plan.say import listed, milliseconds, runtime, size, span
from octavo.plan.schemes import AS_IS, KNOWN


def answer(plan: DevicePlan) -> str:
    """The whole answer for one device."""
    best, closest = plan.best, plan.closest
    if best is not None:
        parts = [_yes(plan, best), _quicker(plan, best), _only_just(plan, best), _out(plan, best)]
    elif any(c.fits is None for c in plan.candidates):
        parts = [_cannot_say(plan)]
    elif closest is not None:
        parts = [_no(plan, closest), _would(plan, closest), f"It is no question of speed: {CLIFF}."]
    else:
        reasons = list(dict.fromkeys(c.reason for c in plan.candidates))
        return f"No: nothing asked for runs on {_where(plan)}. {_capital('; '.join(reasons[:3]))}."
    return " ".join(part for part in parts if part)


def name(candidate: Candidate) -> str:
    """`w4g32 on llama.cpp (CPU)`."""
    scheme = "the file as it is" if candidate.scheme == AS_IS else candidate.scheme
    return f"{scheme} on {runtime(candidate.runtime)} ({candidate.unit.upper()})"


def speed(candidate: Candidate) -> str:
    """`8–14 tokens/s, 0.9–2.1 s to the first (estimated)`; says so where nothing is known."""
    found = candidate.costs
    if found is None:
        return ""
    if found.latency is not None:
        known = found.latency.value is not None
        return f"{milliseconds(found.latency)} an inference ({found.latency.kind})" if known else "latency unknown"
    if found.rate is None or found.rate.value is None:
        return "speed unknown"
    first = found.first
    wait = f", {milliseconds(first)} to the first" if first is not None and first.value is not None else ""
    return f"{span(found.rate)} tokens/s{wait} ({found.rate.kind})"


def _yes(plan: DevicePlan, best: Candidate) -> str:
    memory = best.memory
    assert memory is not None
    taken = f"{size(memory.total)} of {_granted(plan)}{_at(plan)}"
    if best.tight:
        sentence = f"Yes, but only just: {name(best)} takes {taken.replace(' it grants', f' {_where(plan)} grants')}"
    else:
        sentence = f"Yes: {name(best)} fits {_where(plan)}: {taken}"
    if quick := speed(best):
        sentence += f"; {quick}"
    sentence += "."
    if plan.device.kind == "host" and not _pace(best):
        sentence += " `octavo devices probe` measures how fast this machine is."
    if best.tight:
        sentence += f" The need may be {size(memory.low)} to {size(memory.high)}"
        sentence += f", the grant {_ends(plan)}." if _ends(plan) else "."
    if not best.made:
        sentence += f" {_planned(best)}"
    return sentence


def _planned(candidate: Candidate) -> str:
    if candidate.weighed is not None and candidate.weighed.made:
        return f"Octavo exports this file, and cannot run it on the {candidate.unit.upper()} yet."
    planned = next((note for note in candidate.notes if note.startswith("planned: ")), "planned")
    return f"{planned.removeprefix('planned: ')}."


def _where(plan: DevicePlan) -> str:
    device = plan.device
    return "this machine" if device.kind == "host" else device.title


def _granted(plan: DevicePlan) -> str:
    """`the 4.72 GB it grants an app (3.01–6.01)`."""
    setting, device = plan.setting, plan.device
    whole = size(setting.slice_bytes.value)
    if setting.slice_bytes.source == "given":
        what = f"the {whole} granted"
    elif device.kind == "host":
        what = f"the {whole} that are free"
    else:
        what = f"the {whole} it grants an app ({setting.slice_bytes.kind})"
    if setting.reserve:
        return f"the {size(setting.granted.value)} left when {setting.reserve:.0%} of {what} is set aside"
    return what


def _ends(plan: DevicePlan) -> str:
    granted = plan.setting.granted
    if granted.low is None or granted.high is None or granted.low == granted.high:
        return ""
    return f"{size(granted.low)} to {size(granted.high)}"


def _at(plan: DevicePlan) -> str:
    return f", at a context of {plan.setting.context:,}" if plan.facts.language is not None else ""


def _quicker(plan: DevicePlan, best: Candidate) -> str:
    """The fastest that fits as surely with as many bits, where it is another by a third or more."""
    bits = _bits(best)
    rivals = [
        c
        for c in plan.candidates
        if c.fits and c.tight <= best.tight and _bits(c) >= bits and _pace(c) > 1.3 * _pace(best) > 0
    ]
    if not rivals:
        return ""
    fastest = max(rivals, key=lambda c: (_pace(c), c.made))
    tail = "" if fastest.made else f". {_planned(fastest).rstrip('.')}"
    return f"{_capital(name(fastest))} is quicker: {speed(fastest)}{tail}."


def _bits(candidate: Candidate) -> float:
    return min(ENOUGH_BITS, precision_bits(KNOWN.get(candidate.scheme)))


def _pace(candidate: Candidate) -> float:
    """Inferences or tokens per second; 0 where unknown."""
    found = candidate.costs
    if found is None:
        return 0.0
    if found.latency is not None:
        return 1e3 / found.latency.value if found.latency.value else 0.0
    return (found.rate.value or 0.0) if found.rate is not None else 0.0


def _only_just(plan: DevicePlan, best: Candidate) -> str:
    """A scheme of more bits than the best, that fits only just; or, of a best that does so, one that has room."""
    if best.tight:
        roomy = next((c for c in plan.candidates if c.fits and not c.tight and c.made and c.memory), None)
        return f"{_capital(name(roomy))} fits with room ({size(roomy.memory.total)})." if roomy and roomy.memory else ""
    if best.scheme == AS_IS:
        return ""
    low = plan.setting.granted.low
    finer = [c for c in plan.candidates if c.fits and c.tight and c.made and _bits(c) > _bits(best)]
    finer.sort(key=lambda c: -_bits(c))
    if not finer or low is None or finer[0].memory is None:
        return ""
    return f"{_capital(name(finer[0]))} needs {size(finer[0].memory.total)} and fits only just: {size(low)} is certain."


def _out(plan: DevicePlan, best: Candidate) -> str:
    """What of more bits does not fit, with its numbers: of each scheme that fits nowhere the leanest."""
    held = {c.scheme for c in plan.candidates if c.fits}
    coarser = precision_bits(KNOWN.get(best.scheme))
    held |= {name for name, known in KNOWN.items() if precision_bits(known) < coarser}
    leanest: dict[str, int] = {}
    for candidate in plan.candidates:
        if candidate.fits is False and candidate.memory is not None and candidate.scheme not in held:
            total = candidate.memory.total
            leanest[candidate.scheme] = min(total, leanest.get(candidate.scheme, total))
    said = [f"{scheme} ({size(total)})" for scheme, total in sorted(leanest.items(), key=lambda item: item[1])]
    return f"{_capital(listed(said))} {'does' if len(said) == 1 else 'do'} not fit." if said else ""


def _no(plan: DevicePlan, closest: Candidate) -> str:
    memory = closest.memory
    assert memory is not None
    parts = f"{size(memory.weights)} of weights"
    if memory.kv_cache:
        parts += f", {size(memory.kv_cache)} of KV cache"
    several = len({c.scheme for c in plan.candidates if c.memory is not None}) > 1
    which = f"even {name(closest)}" if several else name(closest)
    hope = f" It might, were the grant at its upper end ({_ends(plan)})." if closest.tight and _ends(plan) else ""
    need = f"it needs {size(memory.total)} ({parts}) of {_granted(plan)}{_at(plan)}"
    return f"No: {which} does not fit {_where(plan)}: {need}.{hope}"


def _would(plan: DevicePlan, closest: Candidate) -> str:
    found = remedies(plan, closest)
    return f"It would fit with {listed([remedy.text for remedy in found], 'or')}." if found else ""


def _cannot_say(plan: DevicePlan) -> str:
    first = next(c for c in plan.candidates if c.fits is None)
    assert first.memory is not None
    need = f"{name(first)} needs {size(first.memory.total)}{_at(plan)}"
    return f"Cannot say: {need}, and what {_where(plan)} grants an app is not known. Give --slice."


def _capital(text: str) -> str:
    """A sentence may begin with a scheme's name, which stays as it is."""
    return text if text.split(" ")[0] in KNOWN else text[:1].upper() + text[1:]
