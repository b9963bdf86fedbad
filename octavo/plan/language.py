"""How fast a device runs a language model: the bytes a token reads over memory, the work of a prompt over a rate.

decode    t = bytes read / (efficiency × bandwidth)        [s per token]
prompt    t = operations / rate                            [s]

Efficiency and rate are coefficients of the device, fitted by plan/language_fit.py to published measurements, with their
intervals. NPU runtimes run a graph compiled for one context (`COMPILED`): every token pays for the whole of it, and a
prompt goes through in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from octavo.core.decoder_facts import kv_bytes
from octavo.core.facts import LanguageFacts, ModelFacts, WeightFacts
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan.device import Device, Unit

WeightBytes = Callable[[WeightFacts], float] | Mapping[str, float]


@dataclass(frozen=True)
class Compiled:
    """What a graph compiled for one context costs beside its weights and cache.

    `chunk`: tokens of a prompt that go through at once. `score_bytes`: bytes that could have been read in the time of
    one attention score (a head, a position, a layer: a softmax on the vector unit). `chunk_macs`: multiply-accumulates
    that could have been done in what a chunk costs whatever its model. `head`: what a multiply-accumulate of the head,
    which has 8-bit weights and runs for every token of a chunk, costs beside one of the 4-bit layers. All but `chunk`
    are as `language_fit.choose_costs` finds them in the published phone measurements.
    """

    chunk: int = 128
    score_bytes: float = 170.0
    chunk_macs: float = 0.75e11
    head: float = 4.0


NPU = Compiled()
COMPILED: dict[str, Compiled] = {"genie": NPU, "qnn": NPU}
COMPILED_CONTEXT = 4096  # that the published NPU packages are compiled for, where a plan names none

# Where nothing was measured: share of the datasheet's bandwidth (value, low, high) that decoding reaches.
DECODE_DEFAULT = {"cpu": (0.6, 0.35, 0.85), "other": (0.7, 0.4, 0.9)}
PREFILL_DEFAULT = (0.2, 0.05, 0.6)  # share of the unit's peak rate
DEFAULT_SOURCE = "judgement: phones reach 0.6 to 0.85 of the datasheet's bandwidth; wider, as nothing was measured"
# From the decoder that `octavo devices probe` times to one of another shape, on the same machine: random Llamas of 1 to
# 105 million weights were within this factor, their rates measured minutes apart.
TRANSFER = 1.35
# Operators of a decoder: in a layer, and besides. llama.cpp's graph of a Llama with flash attention; ONNX Runtime's of
# Octavo's export of one, once optimised (399 for 6 layers, 21 of them outside the layers).
OPERATORS = {"llamacpp": (19, 5), "onnxruntime": (63, 21)}
OTHER_PRECISION = 1.5  # factor by which an interval widens that was fitted for another precision
UNKNOWN_SHAPE = 1.3  # factor by which it widens when only the size of a model is known


@dataclass(frozen=True)
class TokenReads:
    """What decoding one token reads: bytes of weights, bytes of the KV cache; and `scores`, attention scores computed
    (head × position × layer). `known`: whether the shape of the model is; `shape`: its `shape_label`, by which a device
    on which this very architecture was measured is known. `parts`: `weights` by the precision they are in;
    `layers`: of the decoder."""

    weights: float
    kv: float
    scores: float
    known: bool = True
    shape: str = ""
    parts: tuple[tuple[str, float], ...] = ()
    layers: int = 0

    @property
    def total(self) -> float:
        """Bytes."""
        return self.weights + self.kv


def shape_label(facts: ModelFacts) -> str:
    """What tells one architecture from another whatever its models are called: multiply-accumulates per token."""
    language = facts.language
    return str(language.macs_per_token + language.head_macs) if language else ""


def bytes_per_token(facts: ModelFacts, weight_bytes: WeightBytes, context: int, kv_type: str = "f16") -> TokenReads:
    """Bytes that one token reads with `context` positions behind it.

    `weight_bytes`: bytes of each tensor as the memory model counts them, by name or as a function. Linears and the head
    are read whole (a tied embedding as the head that it also is), of a gathered table one row, of a mixture of experts
    the share that a token passes through, of the cache what a sliding layer still keeps.
    Raises BadInput for a network, an unknown KV type, a context beyond the model's limit.
    """
    if facts.kind == "network":
        raise BadInput(f"{facts.name}: a network decodes no tokens.", "Ask for its latency.")
    language = facts.language
    kv = float(kv_bytes(language, context, kv_type)) if language else 0.0
    scores = float(language.heads * _kept(language, context)) if language else 0.0
    if not facts.operators:
        return TokenReads(_bare(facts, weight_bytes), kv, scores, known=language is not None)
    if isinstance(weight_bytes, Mapping):
        total = sum(share * weight_bytes[weight.name] for weight, share in facts.read_shares)
    else:
        total = sum(share * weight_bytes(weight) for weight, share in facts.read_shares)
    return TokenReads(total, kv, scores, shape=shape_label(facts))


def _bare(facts: ModelFacts, weight_bytes: WeightBytes) -> float:
    """All weights, of a model of which no more than the size is known; of a mixture the active share."""
    active = facts.active_parameters / max(facts.parameters, 1)
    if isinstance(weight_bytes, Mapping):
        return active * sum(weight_bytes.values())
    tensors = facts.weights or (WeightFacts("weights", (1, facts.parameters), "matmul", "unknown", 0),)
    return active * sum(weight_bytes(tensor) for tensor in tensors)


def _kept(language: LanguageFacts, context: int) -> int:
    """Positions that one query attends to, summed over the layers."""
    layers = (layer for layer in language.kv if layer.key)
    return sum(context if layer.window is None else min(context, layer.window) for layer in layers)


def decode(
    device: Device, reads: TokenReads, *, runtime: str, precision: str, unit: Unit | None = None, macs: float = 0.0
) -> Quantity:
    """Tokens per second with an 80 % interval; `unknown` when the device's bandwidth is.

    `precision`: the phone data's word (w4, w4a16, …) or a scheme's. `macs`: of one token; a CPU whose peak rate is
    known decodes no faster than it multiplies. A model above the memory slice is not decided here: it does not fit.
    """
    bandwidth = device.bandwidth
    if bandwidth.value is None or reads.total <= 0:
        return Quantity(None, "tokens/s", Kind.UNKNOWN, source=f"{device.title}: memory bandwidth unknown")
    share = _share_of(device, reads, runtime, precision, unit)
    compiled = COMPILED.get(runtime)
    nbytes = reads.total + (compiled.score_bytes * reads.scores if compiled else 0.0)
    value, low, high = (part * bandwidth.value / nbytes for part in _bounds(share))
    low *= _ratio(bandwidth.low, bandwidth.value)
    high *= _ratio(bandwidth.high, bandwidth.value)
    source = (
        f"{nbytes / 1e9:.3g} GB per token at {share.value:.2f} of {bandwidth.value / 1e9:.3g} GB/s ({share.source})"
    )
    limit = _peak(unit, precision) if unit is not None and unit.kind == "cpu" and macs else None
    if limit is not None and limit / (2 * macs) < value:
        value = limit / (2 * macs)
        low, high = min(low, value / 2), min(high, value)
        source += f"; held to {value:.3g} by the CPU's {limit / 1e9:.3g} GOP/s"
    per_token = _dispatch(reads, runtime, unit)
    if per_token is not None:
        low, high = low / TRANSFER, high * TRANSFER
        value, low, high = (1 / (1 / rate + per_token) for rate in (value, low, high))
        source += f"; and {1e3 * per_token:.3g} ms to start its operators"
    if not reads.known:
        low, high, source = low / UNKNOWN_SHAPE, high * UNKNOWN_SHAPE, source + "; only the size is known, no KV cache"
    return Quantity(value, "tokens/s", Kind.ESTIMATED, low, max(high, value), share.n, source, share.date)


def _dispatch(reads: TokenReads, runtime: str, unit: Unit | None) -> float | None:
    """Seconds that starting the operators of one token takes, where it was measured on the unit."""
    known = unit.overhead_ms.get(runtime) if unit is not None else None
    if known is None or known.value is None or runtime not in OPERATORS or not reads.layers:
        return None
    each, besides = OPERATORS[runtime]
    return 1e-3 * known.value * (reads.layers * each + besides)


def _share_of(device: Device, reads: TokenReads, runtime: str, precision: str, unit: Unit | None) -> Quantity:
    """The efficiency of all that a token reads: each precision's own where it was measured here, for its part."""
    main = efficiency(device, runtime, precision, unit, reads.shape)
    known = [f"{runtime}.{word}" in device.decode_efficiency for word, _ in reads.parts]
    if len(reads.parts) < 2 or not all(known):
        return main
    shares = [(nbytes, _bounds(efficiency(device, runtime, word, unit, reads.shape))) for word, nbytes in reads.parts]
    shares.append((reads.kv, _bounds(main)))
    value, low, high = (reads.total / sum(n / ends[i] for n, ends in shares) for i in range(3))
    return Quantity(value, "1", Kind.ESTIMATED, low, high, main.n, f"{main.source}; each precision its own", main.date)


def efficiency(device: Device, runtime: str, precision: str, unit: Unit | None = None, shape: str = "") -> Quantity:
    """Share of bandwidth that decoding reaches: measured for this runtime and precision (and this very shape), for
    another precision of the runtime (wider), or the default."""
    if (found := _coefficient(device.decode_efficiency, runtime, precision, shape)) is not None:
        return found
    value, low, high = DECODE_DEFAULT["cpu" if unit is not None and unit.kind == "cpu" else "other"]
    return Quantity(value, "1", Kind.ESTIMATED, low, high, source=DEFAULT_SOURCE)


def prompt_macs(facts: ModelFacts, tokens: int, runtime: str = "", context: int | None = None) -> float:
    """Multiply-accumulates of a prompt of `tokens`; the head runs for its last token only.

    A compiled graph takes whole chunks, runs the head for every token of them and attends to its whole context, the
    queries that share a key at once; `context`: what it was compiled for. Raises BadInput for a network, a prompt that
    is empty or beyond the model's limit.
    """
    language = facts.language
    if facts.kind == "network" or tokens < 1:
        message = f"{facts.name}: a prompt of {tokens} tokens makes no sense."
        raise BadInput(message, "Give at least one, to a language model.")
    if language is None:
        return float(tokens * facts.active_parameters)
    if language.context and max(tokens, context or 0) > language.context:
        raise BadInput(f"{facts.name}: {max(tokens, context or 0)} tokens are beyond its limit of {language.context}.",
                       f"Ask for {language.context} or fewer.")  # fmt: skip
    compiled = COMPILED.get(runtime)
    if compiled is None:
        seen = [_attended(tokens, layer.window) for layer in language.kv if layer.key]
        attention = language.attention_macs * sum(seen) / max(len(seen), 1)
        return float(tokens * language.macs_per_token + language.head_macs + attention)
    return ceil(tokens / compiled.chunk) * chunk_macs(language, compiled, max(tokens, context or _context(language)))


def chunk_macs(language: LanguageFacts, compiled: Compiled, context: int) -> float:
    """Multiply-accumulates that one chunk of a compiled graph takes the time of."""
    cached = kv_bytes(language, context, "f16") / 2
    per_token = language.macs_per_token + compiled.head * language.head_macs + cached
    return compiled.chunk * per_token + compiled.chunk_macs


def _context(language: LanguageFacts) -> int:
    return min(COMPILED_CONTEXT, language.context or COMPILED_CONTEXT)


def _attended(tokens: int, window: int | None) -> int:
    """Pairs of positions (query, key) of a causal prompt, in a layer with this window."""
    kept = tokens if window is None else min(tokens, window)
    return kept * (kept + 1) // 2 + (tokens - kept) * kept


def time_to_first_token(
    device: Device, facts: ModelFacts, tokens: int, reads: TokenReads, *, runtime: str, precision: str,
    unit: Unit | None = None, context: int | None = None,
) -> Quantity:  # fmt: skip
    """Milliseconds from a prompt of `tokens` to the first answer, with an 80 % interval; `unknown` where no rate is.

    Never less than one token's decode (`reads`): the weights are read at least once.
    """
    rate = prefill_rate(device, runtime, precision, unit, reads.shape)
    work = 2 * prompt_macs(facts, tokens, runtime, context)
    if rate.value is None:
        return Quantity(None, "ms", Kind.UNKNOWN, source=rate.source)
    value, slow, fast = (1e3 * work / part for part in _bounds(rate))
    source = f"{work / 1e9:.3g} GOP of prompt at {rate.value / 1e9:.3g} GOP/s ({rate.source})"
    once = decode(device, reads, runtime=runtime, precision=precision, unit=unit)
    if once.value is not None:  # each end is the larger of the two: a faster memory never makes any of them later
        read, read_slow, read_fast = (1e3 / part for part in _bounds(once))
        source = f"the weights read once: {once.source}" if read > value else source
        value, slow, fast = max(value, read), max(slow, read_slow), max(fast, read_fast)
    wide = 1.0 if reads.known else UNKNOWN_SHAPE
    return Quantity(value, "ms", Kind.ESTIMATED, fast / wide, slow * wide, rate.n, source, rate.date)


def prefill_rate(device: Device, runtime: str, precision: str, unit: Unit | None = None, shape: str = "") -> Quantity:
    """Operations per second that a prompt reaches: as fitted, a share of the unit's peak, or the default share."""
    found = _coefficient(device.prefill_efficiency, runtime, precision, shape)
    if found is not None and found.unit != "1":
        return found
    peak = _peak(unit, precision)
    if peak is None:
        return Quantity(None, "op/s", Kind.UNKNOWN, source=f"{device.title}: no rate of {runtime} is known")
    if found is None:
        value, low, high = PREFILL_DEFAULT
        source = "judgement: a twentieth to six tenths of the peak rate; nothing was measured here"
        found = Quantity(value, "1", Kind.ESTIMATED, low, high, source=source)
    value, low, high = (part * peak for part in _bounds(found))
    return Quantity(value, "op/s", Kind.ESTIMATED, low, high, found.n, found.source, found.date)


def _coefficient(table: Mapping[str, Quantity], runtime: str, precision: str, shape: str) -> Quantity | None:
    """By `runtime.precision@shape`, `runtime.precision`, `runtime`, else the precision of the runtime whose activations
    are alike, wider."""
    for key in (f"{runtime}.{precision}@{shape}", f"{runtime}.{precision}", runtime):
        if key in table and table[key].value is not None:
            return table[key]
    alike = {key: cell for key, cell in table.items() if key.startswith(f"{runtime}.") and "@" not in key}
    others = {key: cell for key, cell in alike.items() if cell.value is not None}
    if not others:
        return None
    key = min(others, key=lambda key: (_integers(key.rpartition(".")[2]) != _integers(precision), key))
    value, low, high = _bounds(others[key])
    source = f"as {key}, wider; {others[key].source}"
    return Quantity(value, others[key].unit, Kind.ESTIMATED, low / OTHER_PRECISION, high * OTHER_PRECISION,
                    others[key].n, source, others[key].date)  # fmt: skip


def _integers(precision: str) -> bool:
    """Whether activations are integers too: w4a16, w8a8."""
    return "a8" in precision or "a16" in precision


def _peak(unit: Unit | None, precision: str) -> float | None:
    """The unit's peak rate [op/s] for a scheme: integers where both are quantised, else the fastest float it has."""
    if unit is None:
        return None
    order = ("int8", "fp16", "fp32") if unit.kind != "gpu" else ("fp16", "fp32")
    if not _integers(precision) and unit.kind in ("npu", "dsp"):
        order = ("fp16", "int8")
    for name in order:
        if name in unit.rates and unit.rates[name].value is not None:
            return unit.rates[name].value
    return None


def _bounds(quantity: Quantity) -> tuple[float, float, float]:
    """Value, low, high of a known quantity; where no interval is known, ten per cent."""
    assert quantity.value is not None
    low = 0.9 * quantity.value if quantity.low is None else quantity.low
    high = 1.1 * quantity.value if quantity.high is None else quantity.high
    return quantity.value, low, high


def _ratio(bound: float | None, value: float) -> float:
    return 1.0 if bound is None else bound / value
