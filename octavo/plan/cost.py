"""What one candidate costs: memory against the slice, latency or tokens per second, energy, and how long it lasts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from octavo.core.decoder_facts import kv_bytes
from octavo.core.facts import ModelFacts
from octavo.core.quantity import Quantity
from octavo.plan.device import Device, Unit
from octavo.plan.energy import Energy, energy
from octavo.plan.language import COMPILED, OPERATORS, TokenReads, decode, time_to_first_token
from octavo.plan.memory import Memory, activation_width, kv_of
from octavo.plan.reach import Way, compute_type, finished
from octavo.plan.reckon import ends, unknown
from octavo.plan.roofline import roofline, started, traffic
from octavo.plan.schemes import AS_IS, KNOWN
from octavo.plan.thermal import Sustained, sustained
from octavo.plan.weights import Weighed

LAYERS = 16  # of a decoder of a billion parameters, growing with the cube root: Llama's 16, 32, 80 of 1, 8, 70 billion
FEWEST_LAYERS = 6
PER_TOKEN, PER_INFERENCE = "token", "inference"
SIZE_ONLY = "if it is a decoder: every weight is read once per token, the cache not counted"


@dataclass(frozen=True)
class Setting:
    """What is asked of every candidate. `slice_bytes`: what the device grants, in B; `reserve`: the share of it that is
    set aside; `context` of a language model, `prompt` tokens, `kv_type` (None: the runtime's own)."""

    slice_bytes: Quantity
    reserve: float = 0.0
    context: int | None = None
    prompt: int | None = None
    kv_type: str | None = None

    @cached_property
    def granted(self) -> Quantity:
        """Bytes left for the model, once the reserve is set aside."""
        if self.slice_bytes.value is None or not self.reserve:
            return self.slice_bytes
        low, value, high = ((1 - self.reserve) * end for end in ends(self.slice_bytes))
        return replace(self.slice_bytes, value=value, low=low, high=high)


@dataclass(frozen=True)
class Costs:
    """Figures of a candidate that fits. `latency`: ms of an inference; `rate`: tokens/s; `first`: ms to the first
    token. `per`: what energy and the sustained rate are of."""

    latency: Quantity | None
    rate: Quantity | None
    first: Quantity | None
    energy: Energy
    sustained: Sustained
    per: str
    notes: tuple[str, ...] = ()


def fits(memory: Memory, granted: Quantity) -> tuple[bool | None, bool]:
    """(whether the total is within what is granted, whether the intervals leave it open); None: unknown slice."""
    if granted.value is None:
        return None, True
    low, value, high = ends(granted)
    fit = memory.total <= value
    certain = memory.high <= low if fit else memory.low > high
    return fit, not certain


def costs(facts: ModelFacts, device: Device, way: Way, weighed: Weighed, setting: Setting) -> Costs:
    """Latency, energy and heat of `weighed` on this way of the device; what is not known is unknown, and said."""
    assert way.unit is not None
    if facts.kind == "network":
        return _network(facts, device, way, weighed)
    return _language(facts, device, way, weighed, setting)


def precision(scheme: str) -> str:
    """The word that phone measurements have for a scheme."""
    known = KNOWN[scheme]
    if known.activation != "float":
        return scheme
    return "float" if known.is_float else "w4" if known.bits < 6 else "w8"


def _scheme(facts: ModelFacts, weighed: Weighed) -> str:
    """The scheme that speed and energy follow; of a finished file the one that most of what is read is in."""
    if weighed.scheme != AS_IS:
        return weighed.scheme
    if (static := finished(facts)) != "w8":
        return static
    coded = {name: nbytes for name, nbytes in weighed.read_by if name in KNOWN and not KNOWN[name].is_float}
    return max(coded, key=lambda name: coded[name], default="w8")


def _network(facts: ModelFacts, device: Device, way: Way, weighed: Weighed) -> Costs:
    unit, scheme = way.unit, _scheme(facts, weighed)
    assert unit is not None
    kind = compute_type(unit, scheme, KNOWN[scheme], way.runtime, network=True)
    width = width_of(facts, way, weighed.scheme)
    latency = _latency(facts, device, way, weighed, kind, width)
    seconds = _converted(latency, 1e-3, "s")
    moved = weighed.bytes + traffic(facts, width)
    spent = _energy(device, unit, kind, 2.0 * facts.macs, moved, seconds)
    rate = _inverse(seconds, "1/s")
    kept = sustained(rate, device.peak_power, device.sustained_power, device.thermal_tau)
    return Costs(latency, None, None, spent, kept, PER_INFERENCE)


def _latency(facts: ModelFacts, device: Device, way: Way, weighed: Weighed, kind: str, width: float | None) -> Quantity:
    assert way.unit is not None
    if device.coefficients:
        from octavo.plan.latency import predict

        held: dict[Any, tuple[Device, Quantity | None]] = facts.__dict__.setdefault("_fitted", {})
        word = precision(_scheme(facts, weighed))
        key = (id(device), way.runtime, way.kind, word)
        if key not in held:  # the device is kept too, so that its id stays its own
            held[key] = device, predict(facts, device, way.runtime, way.kind, word)
        fitted = held[key][1]
        if fitted is not None:
            return fitted
    return roofline(facts, device, way.unit, kind, weighed.bytes, width)


def _language(facts: ModelFacts, device: Device, way: Way, weighed: Weighed, setting: Setting) -> Costs:
    unit, language = way.unit, facts.language
    assert unit is not None
    context, prompt = setting.context or 0, setting.prompt or 1
    reads = _reads(facts, weighed, context, kv_of(way.runtime, setting.kv_type))
    scheme = _scheme(facts, weighed)
    word = precision(scheme)
    macs = float(facts.active_parameters)
    if language is not None:
        macs = language.macs_per_token + language.head_macs + float(language.attention_macs) * context
    rate = decode(device, reads, runtime=way.runtime, precision=word, unit=unit, macs=macs)
    if not _starts_known(device, unit, way.runtime):
        rate = started(rate, _operators(facts, way.runtime))
    first = time_to_first_token(
        device, facts, prompt, reads, runtime=way.runtime, precision=word, unit=unit,
        context=context or None,
    )  # fmt: skip
    if facts.kind == "size":
        first = unknown("ms", "only the size is known")
    kind = compute_type(unit, scheme, KNOWN[scheme], way.runtime)
    spent = _energy(device, unit, kind, 2 * macs, reads.total, _inverse(rate, "s"))
    kept = sustained(replace(rate, unit="1/s"), device.peak_power, device.sustained_power, device.thermal_tau)
    notes = (SIZE_ONLY,) if facts.kind == "size" else ()
    return Costs(None, rate, first, spent, kept, PER_TOKEN, notes)


def _starts_known(device: Device, unit: Unit, runtime: str) -> bool:
    """Whether the rate holds the time to start operators already: measured as such, or within what was fitted."""
    return (
        runtime in COMPILED
        or runtime in unit.overhead_ms
        or any(key.partition(".")[0] == runtime for key in device.decode_efficiency)
    )


def _operators(facts: ModelFacts, runtime: str) -> tuple[int, int, int]:
    """Operators of a token: fewest, likely, most; of a bare size for a depth that goes with it, half and twice that."""
    each, besides = OPERATORS.get(runtime, OPERATORS["onnxruntime"])
    if facts.language is not None:
        known = len(facts.language.kv) * each + besides
        return known, known, known
    layers = max(FEWEST_LAYERS, round(LAYERS * (facts.parameters / 1e9) ** (1 / 3)))
    return layers // 2 * each + besides, layers * each + besides, 2 * layers * each + besides


def _reads(facts: ModelFacts, weighed: Weighed, context: int, kv_type: str) -> TokenReads:
    """What a token reads with a full context behind it."""
    language = facts.language
    if language is None:
        return TokenReads(weighed.read, 0.0, 0.0, known=False)
    kept = sum(context if layer.window is None else min(context, layer.window) for layer in language.kv if layer.key)
    parts: dict[str, float] = {}
    for scheme, nbytes in weighed.read_by:
        word = precision(scheme) if scheme in KNOWN else scheme
        parts[word] = parts.get(word, 0.0) + nbytes
    parts = _without_floats(parts, _scheme(facts, weighed))
    scores = float(language.heads * kept)
    cached = float(kv_bytes(language, context, kv_type))
    return TokenReads(weighed.read, cached, scores, parts=tuple(parts.items()), layers=len(language.kv))


def _without_floats(parts: dict[str, float], scheme: str) -> dict[str, float]:
    """Norms and biases stay float in every scheme: their few bytes count with the scheme's own."""
    main = precision(scheme)
    if main == "float" or "float" not in parts:
        return parts
    rest = {word: nbytes for word, nbytes in parts.items() if word != "float"}
    return rest | {main: rest.get(main, 0.0) + parts["float"]}


def _energy(device: Device, unit: Unit, kind: str, operations: float, moved: float, seconds: Quantity) -> Energy:
    return energy(
        operations, moved, seconds,
        per_operation=unit.energy.get(kind) or unknown("J/op", f"J per {kind} operation not known"),
        per_byte=device.dram_energy, power=device.sustained_power, battery=device.battery,
    )  # fmt: skip


def width_of(facts: ModelFacts, way: Way, scheme: str) -> float | None:
    """Bytes of an activation on this unit: as the scheme says, else 2 where it computes in fp16, else the source's."""
    width = activation_width(scheme)
    if width is not None or scheme == AS_IS or way.unit is None:
        return width
    network = facts.kind == "network"
    kind = compute_type(way.unit, scheme, KNOWN.get(scheme), way.runtime, network=network)
    return 2.0 if kind == "fp16" else None


def _converted(quantity: Quantity, factor: float, unit: str) -> Quantity:
    if quantity.value is None:
        return unknown(unit, quantity.source)
    low, value, high = (end * factor for end in ends(quantity))
    return Quantity(value, unit, quantity.kind, low, high, quantity.n, quantity.source, quantity.date)


def _inverse(quantity: Quantity, unit: str) -> Quantity:
    """1/x, the ends changing sides."""
    if not quantity.value:
        return unknown(unit, quantity.source)
    low, value, high = ends(quantity)
    longest = 1 / low if low > 0 else None
    return Quantity(1 / value, unit, quantity.kind, 1 / high, longest, quantity.n, quantity.source, quantity.date)
