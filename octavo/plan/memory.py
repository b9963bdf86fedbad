"""Memory of a model on a runtime: weights, KV cache at a context, activation peak, the runtime's own; and what fits.

Weights are exact (plan/weights.py), and so is the cache of llama.cpp and of what Octavo exports to ONNX Runtime.
Activations come from liveness over the graph (core/liveness.py); what a runtime's allocator adds is a figure measured
here or an interval. A model that needs more than its slice does not fit; it is never "a bit slower".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from octavo.core.decoder_facts import KV_TYPES, Scores, kv_bytes, prefill_peak
from octavo.core.decoder_shape import DecoderShape
from octavo.core.facts import ModelFacts
from octavo.core.liveness import activation_peak
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput, nearest
from octavo.plan.reckon import ends
from octavo.plan.schemes import AS_IS, FLOAT_BITS, plan_scheme
from octavo.plan.weights import Scale, Weighed, scale_of

CLIFF = (
    "above its slice a model is paged in again for every token: an 8.98 GB file on an 8 GB board ran at 0.018 "
    "tokens/s, one that fitted at 1.30"
)
KV_DEFAULT = {"llamacpp": "f16", "onnxruntime": "f32"}  # what the runtime, or Octavo's export to it, keeps; others: f16
KV_CHOICES = {"llamacpp": tuple(KV_TYPES), "onnxruntime": ("f32",)}  # others: f16 or f32
FAR = 2**24  # positions; beyond any context
LLAMA_ROUND = 256  # llama.cpp rounds its context up to this many positions

# Measured here (x86-64 Linux, November 2026, xllamacpp 2026.10, onnxruntime 1.32, models of 0.3 to 104 MB): the largest
# resident set of a fresh process above a bare interpreter with numpy, less what is counted below.
HERE = "resident memory of a fresh process here"
MEASURED_OVERHEAD = {
    "llamacpp": Quantity(25e6, "B", Kind.MEASURED, 16e6, 30e6, 11, HERE, "2026-11-22"),
    "onnxruntime": Quantity(50e6, "B", Kind.MEASURED, 31e6, 56e6, 12, HERE, "2026-11-22"),
}
# What loading leaves beside the weights: a share of their bytes (low, value, high), and up to HEAP bytes that are freed
# and not given back. ONNX Runtime, from exports of four synthetic Llamas (25, 45, 50 and 105 million weights, w8 and
# w4g32: 18 to 107 MB; 1.32, one thread; the same file differs by up to 23 MB from run to run). Halves are widened to
# fp32 on a CPU. llama.cpp maps its file.
COPIES = {"onnxruntime": (0.0, 0.12, 0.6)}
COPIES_OF_FLOATS = {"onnxruntime": (0.7, 1.1, 1.6)}  # fp32 products are prepacked: 1.0 and 1.2 of 105 MB
HEAP = {"onnxruntime": 10_000_000}
TOKENIZER = {"llamacpp": 1600}  # bytes per entry, at most: 600 and 1,500 for two GGUFs of 4,096, opened twice
NO_COPIES = (0.0, 0.0, 0.0)
SCALED = "not measured on this device: the figure of an x86-64 host, halved to tripled"
GUESSED = Quantity(
    30e6, "B", Kind.ESTIMATED, 5e6, 120e6, None, "judgement: a mobile runtime's library and delegate", "2026-11-22"
)


@dataclass(frozen=True)
class Prefill:
    """How a runtime takes a prompt: `chunk` positions at once (0: the whole), attention's scores, logits of every
    position or of the last, `spare` rows of the hidden size that its allocator cannot use again, bytes of an entry of
    the mask."""

    chunk: int
    scores: Scores
    all_logits: bool
    spare: int = 0
    mask: int = 0


# llama.cpp: its own report of six shapes (hidden 64 … 2048, context 512 … 4096, flash attention on by default) was
# 512 rows · 4 bytes · (5 hidden + 3 inner) + 512 · context · 2 to 0.1 % (14 % less where inner is not above hidden).
PREFILL = {
    "llamacpp": Prefill(512, "fused", False, spare=4, mask=2),
    "onnxruntime": Prefill(0, "materialised", True, mask=4),
}
PREFILL_ELSEWHERE = Prefill(128, "materialised", False, mask=4)


@dataclass(frozen=True)
class Memory:
    """Bytes. `kv_cache` and `activations` are None where a bare parameter count says nothing of them. `low`, `high`:
    the interval of `total` (exact parts have none). `source`: of the runtime's own."""

    weights: int
    kv_cache: int | None
    activations: int | None
    runtime: int
    total: int
    low: int
    high: int
    notes: tuple[str, ...] = ()
    source: str = ""


def memory(
    facts: ModelFacts,
    scheme: str,
    runtime: str,
    context: int | None = None,
    kv_type: str | None = None,
    *,
    prompt: int | None = None,
    activation_bytes: float | None = None,
    overhead: Quantity | None = None,
    scale: Scale | None = None,
) -> Memory:
    """What `facts` in `scheme` needs on `runtime`, with `context` positions in its cache and a prompt of `prompt`.

    `activation_bytes`: per element of a network's activations (default: the scheme's, else as the source computes).
    `overhead`: of the runtime itself, in B (default: as measured here). Raises BadInput for a pair that the carriage
    table refuses, a KV type the runtime has not, or a context beyond the model's limit.
    """
    weighed = (scale or scale_of(facts)).weigh(scheme, runtime)
    if weighed.refused:
        raise BadInput(f"{weighed.refused}.", weighed.remedy)
    return memory_of(facts, weighed, context, kv_type, prompt, activation_bytes, overhead or overhead_of(runtime))


def memory_of(
    facts: ModelFacts,
    weighed: Weighed,
    context: int | None,
    kv_type: str | None,
    prompt: int | None,
    activation_bytes: float | None,
    overhead: Quantity,
    *,
    on_cpu: bool = True,
) -> Memory:
    """`memory` of weights that were weighed already. `on_cpu`: whether the unit is one."""
    runtime = weighed.runtime
    halves = on_cpu and weighed.scheme == "fp16"
    floats = weighed.scheme in FLOAT_BITS
    copies = (COPIES_OF_FLOATS if floats else COPIES).get(runtime, NO_COPIES)
    left = min(HEAP.get(runtime, 0), weighed.bytes) + weighed.repacked
    low, value, high = (
        round(end + _again(facts, weighed, c, halves and runtime in COPIES)) + part
        for end, c, part in zip(ends(overhead), copies, (0, left, left), strict=True)
    )
    if facts.kind == "size":
        total = weighed.bytes + value
        least, most = weighed.bytes + low, weighed.bytes + high
        return Memory(weighed.bytes, None, None, value, total, least, most, source=_told(overhead, weighed, copies[1]))
    width = activation_width(weighed.scheme) if activation_bytes is None else activation_bytes
    cache, peak, notes = working(facts, runtime, context, kv_type, prompt, width)
    spread = 1.5 if facts.language is None else 1.15
    total = weighed.bytes + cache + peak + value
    most = weighed.bytes + cache + round(peak * spread) + high + _vocabulary(facts, runtime)
    least = weighed.bytes + cache + peak + low
    return Memory(weighed.bytes, cache, peak, value, total, least, most, notes, _told(overhead, weighed, copies[1]))


def _again(facts: ModelFacts, weighed: Weighed, copies: float, widened: bool) -> float:
    """Bytes of weights that loading leaves beside them; halves that are `widened` take what fp32 takes, never more."""
    if not widened:
        return copies * weighed.bytes
    return max(0.0, min((1 + 2 * copies) * weighed.bytes, 4 * facts.parameters * (1 + copies) - weighed.bytes))


def _vocabulary(facts: ModelFacts, runtime: str) -> int:
    """Bytes that a tokenizer in the file may take beside the weights: whether there is one, shapes do not say."""
    shape = facts.decoder
    return TOKENIZER.get(runtime, 0) * shape.vocab_size if shape is not None else 0


def working(
    facts: ModelFacts, runtime: str, context: int | None, kv_type: str | None, prompt: int | None, width: float | None
) -> tuple[int, int, tuple[str, ...]]:
    """(bytes of the KV cache, of the activation peak, notes): what no weight's scheme changes, kept with the facts."""
    held: dict[Any, tuple[int, int, tuple[str, ...]]] = facts.__dict__.setdefault("_working", {})
    key = (runtime, context, kv_type, prompt, width)
    if (found := held.get(key)) is None:
        if facts.language is None:
            found = 0, activation_peak(facts, width).bytes, ()
        else:
            at = default_context(facts) if context is None else context
            cache, notes = _cache(facts, runtime, at, kv_of(runtime, kv_type))
            found = cache, _language_peak(facts, runtime, at, prompt), notes
        held[key] = found
    return found


def _told(overhead: Quantity, weighed: Weighed, copies: float) -> str:
    text = f"{overhead.kind}: {overhead.source}"
    if copies:
        text += f"; and {copies:.0%} of the weights again, that loading leaves (measured on an x86-64 host)"
    if weighed.repacked:
        text += f"; {weighed.repacked:,} bytes of weights in the kernels' own layout beside the file's"
    return text


def default_context(facts: ModelFacts) -> int:
    """What a plan assumes where no context is given: 4,096 positions, or the model's limit if that is shorter."""
    limit = facts.language.context if facts.language else 0
    return min(4096, limit or 4096)


def check_context(facts: ModelFacts, context: int | None) -> None:
    """Raise BadInput for a context that the model does not have."""
    if context is None:
        return
    if context < 1:
        raise BadInput(f"--context {context}: a context has at least 1 position.")
    limit = facts.language.context if facts.language else 0
    if limit and context > limit:
        raise BadInput(f"--context {context:,}: {facts.name} was made for at most {limit:,} positions.",
                       f"Ask for {limit:,} or fewer.")  # fmt: skip


def kv_of(runtime: str, kv_type: str | None) -> str:
    """The type the cache has. Raises BadInput for an unknown one, or one that this runtime has not."""
    if kv_type is None:
        return KV_DEFAULT.get(runtime, "f16")
    if kv_type not in KV_TYPES:
        raise BadInput(f"Unknown KV cache type '{kv_type}'.", nearest(kv_type, KV_TYPES))
    if reason := kv_refusal(runtime, kv_type):
        raise BadInput(f"{reason}.")
    return kv_type


def kv_refusal(runtime: str, kv_type: str | None) -> str:
    """Why this runtime keeps no cache of that type; empty when it does."""
    choices = KV_CHOICES.get(runtime, ("f16", "f32"))
    if kv_type is None or kv_type in choices:
        return ""
    return f"{runtime} keeps no KV cache in {kv_type}, it has {' or '.join(choices)}"


def overhead_of(runtime: str, known: dict[str, Quantity] | None = None, here: bool = True) -> Quantity:
    """What the runtime itself takes, in B: out of a profile's `known`, else measured here, scaled where that is not
    `here`, or a guess. What was measured here goes before an estimate of here."""
    found, measured = (known or {}).get(runtime), MEASURED_OVERHEAD.get(runtime)
    if found is not None and found.value is not None and not (here and measured and found.kind is not Kind.MEASURED):
        return found
    if measured is None or measured.value is None:
        return GUESSED
    if here:
        return measured
    return replace(
        measured, kind=Kind.ESTIMATED, low=measured.value / 2, high=measured.value * 3, n=None, source=SCALED
    )


def activation_width(scheme: str) -> float | None:
    """Bytes of an activation; None: as the source computes."""
    if scheme == AS_IS:
        return None
    return {"int8": 1.0, "int16": 2.0}.get(plan_scheme(scheme).activation)


def curve(facts: ModelFacts, at: Callable[[int], Memory], most: int | None = None) -> list[tuple[int, Memory]]:
    """(context, memory) at powers of two from 512 up to the model's limit (131,072 where it states none), and there."""
    limit = most or (facts.language.context if facts.language else 0) or 131_072
    points = [2**power for power in range(9, 31) if 2**power < limit]
    return [(context, at(context)) for context in (*points, limit)]


def largest_context(facts: ModelFacts, total: Callable[[int], int], granted: int) -> int:
    """The most positions with which `total(context)` is at most `granted`, up to the model's limit; 0 if none."""
    top = (facts.language.context if facts.language else 0) or 2**24
    if total(1) > granted:
        return 0
    low, high = 1, top + 1  # total(low) fits, total(high) does not or is beyond the limit
    while high - low > 1:
        middle = (low + high) // 2
        if total(middle) <= granted:
            low = middle
        else:
            high = middle
    return low


def _cache(facts: ModelFacts, runtime: str, context: int, kv_type: str) -> tuple[int, tuple[str, ...]]:
    """Exact bytes of keys and values, and what a runtime makes of them."""
    language = facts.language
    assert language is not None
    if runtime == "llamacpp":
        unbounded = replace(language, context=0)
        return kv_bytes(unbounded, -(-context // LLAMA_ROUND) * LLAMA_ROUND, kv_type), ()
    held = kv_bytes(language, context, kv_type)
    if runtime == "onnxruntime":
        note = (
            "the cache is counted twice: the exported graph joins the past to the new keys and values in a second copy"
        )
        return 2 * held, (note,)
    return held, ()


def _language_peak(facts: ModelFacts, runtime: str, context: int, prompt: int | None) -> int:
    """The activation peak of the prompt's largest chunk (decoding one token never needs more)."""
    rule = PREFILL.get(runtime, PREFILL_ELSEWHERE)
    tokens = default_prompt(context) if prompt is None else prompt
    rows = max(
        1, min(tokens, rule.chunk or tokens, context)
    )  # llama.cpp reserves a chunk, and touches as much as is asked
    if facts.decoder is None:
        return activation_peak(facts).bytes * rows
    past = context - rows if rule.scores == "materialised" else 0
    found = _peak(facts.decoder, rows, past, rule.scores, rows if rule.all_logits else 1)
    return found + 4 * rule.spare * rows * facts.decoder.hidden_size + rule.mask * rows * context


def _peak(shape: DecoderShape, rows: int, past: int, scores: Scores, logits: int) -> int:
    """The peak of a chunk of `rows` after `past` positions, bytes.

    Of a graph whose scores grow with the past it is the largest of sums that are linear in it, so convex; from where it
    first touches its last slope on it is that line, and no graph need be drawn.
    """
    start, slope, value = _line(shape, rows, scores, logits)
    return value + slope * (past - start) if past >= start else _drawn(shape, rows, past, scores, logits)


@lru_cache(maxsize=256)
def _line(shape: DecoderShape, rows: int, scores: Scores, logits: int) -> tuple[int, int, int]:
    """(past from which on the peak is linear, its slope per position, its value there)."""
    first, second = (_drawn(shape, rows, past, scores, logits) for past in (FAR, 2 * FAR))
    slope = (second - first) // FAR
    for start in (0, 256, 2048, 16384):
        value = _drawn(shape, rows, start, scores, logits)
        if value + slope * (FAR - start) == first:
            return start, slope, value
    return FAR, slope, first


@lru_cache(maxsize=1024)
def _drawn(shape: DecoderShape, rows: int, past: int, scores: Scores, logits: int) -> int:
    return prefill_peak(shape, rows, past, scores=scores, logits=logits).bytes


def default_prompt(context: int) -> int:
    """Tokens of the prompt that a plan assumes: 512, or half a shorter context."""
    return max(1, min(512, context // 2))
