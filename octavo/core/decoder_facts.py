"""A decoder's graph for any number of tokens at once, and the facts, cache and activation peak that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

from octavo.core.architecture import DecoderSpec, TensorSpec
from octavo.core.decoder_shape import EMBEDDING, FINAL_NORM, HEAD, POSITIONS, DecoderShape, Naming, same, shape_of
from octavo.core.facts import (
    EdgeFacts,
    KvLayer,
    LanguageFacts,
    ModelFacts,
    OperatorFacts,
    OperatorKind,
    WeightFacts,
)
from octavo.core.liveness import Peak, peak
from octavo.errors import BadInput, nearest

ACTIVATION_BYTES = 4.0  # llama.cpp and ONNX Runtime keep a decoder's activations in float32
KV_TYPES: dict[str, tuple[int, int]] = {  # elements per block, bytes per block (ggml's block sizes)
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
}
Scores = Literal["fused", "materialised"]
Graph = tuple[tuple[OperatorFacts, ...], tuple[EdgeFacts, ...]]


def decoder_facts(
    decoder: DecoderSpec | DecoderShape,
    name: str = "",
    *,
    weights: Mapping[str, WeightFacts] | None = None,
    naming: Naming = same,
    missing: tuple[str, ...] = (),
    origin: str = "",
) -> ModelFacts:
    """Facts of one decoded token. `weights`: the stored tensors by the source's own names (`naming` turns llama's names
    into those); without them, the tensors the architecture has, their stored size unknown."""
    shape = shape_of(decoder) if isinstance(decoder, DecoderSpec) else decoder
    tensors = decoder.tensors()
    held = weights or {naming(key): _planned(naming(key), tensor) for key, tensor in tensors.items()}
    operators, edges = decoder_edges(shape, 1, 0, naming=naming)
    operators = tuple(_with_known(operator, held) for operator in operators)
    parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    if weights:
        parameters = sum(weight.parameters for weight in weights.values())
    return ModelFacts(
        name=name or shape.family,
        kind="language",
        parameters=parameters,
        active_parameters=parameters - idle_parameters(shape),
        weights=tuple(held.values()),
        operators=operators,
        edges=edges,
        inputs=("ids",),
        outputs=("logits",),
        language=language_facts(shape, operators),
        missing=missing,
        origin=origin,
        decoder=shape,
    )


def language_facts(shape: DecoderShape, operators: tuple[OperatorFacts, ...]) -> LanguageFacts:
    """What of `operators` (one token, nothing before it) grows with the context and what does not."""
    attention = sum(operator.macs for operator in operators if operator.kind == "attention")
    head = next(operator.macs for operator in operators if operator.name == HEAD)
    return LanguageFacts(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        heads=shape.heads,
        context=shape.context,
        tied=shape.tied,
        kv=tuple(_kv_layer(shape, layer) for layer in range(shape.layers)),
        macs_per_token=sum(operator.macs for operator in operators) - attention - head,
        head_macs=head,
        attention_macs=attention,
    )


def idle_parameters(shape: DecoderShape) -> int:
    """Parameters of the experts that a token does not use."""
    experts = shape.experts
    if experts is None:
        return 0
    one = 3 * shape.hidden_size * experts.intermediate
    if experts.bias:
        one += 2 * experts.intermediate + shape.hidden_size
    return sum(experts.layers) * (experts.count - experts.per_token) * one


def kv_bytes(language: LanguageFacts, context: int, kv_type: str = "f16", *, chunk: int = 0) -> int:
    """Exact bytes of the keys and values of `context` positions; a sliding layer keeps no more than its window, and
    the `chunk` of positions that a runtime computes at once (llama.cpp's micro-batch) beside it.

    Raises BadInput for an unknown type, a negative context, and one beyond the model's limit, naming the limit.
    """
    if kv_type not in KV_TYPES:
        raise BadInput(f"Unknown KV cache type '{kv_type}'.", nearest(kv_type, KV_TYPES))
    if context < 0:
        raise BadInput(f"A context of {context} positions makes no sense.")
    if language.context and context > language.context:
        raise BadInput(
            f"A context of {context} positions is beyond the model's limit of {language.context}.",
            f"Ask for {language.context} or fewer.",
        )
    elements, size = KV_TYPES[kv_type]
    total = 0
    for layer in language.kv:
        kept = context if layer.window is None else min(context, layer.window + chunk)
        total += kept * (-(-layer.key // elements) - (-layer.value // elements)) * size
    return total


def prefill_peak(
    decoder: ModelFacts | DecoderSpec | DecoderShape,
    tokens: int,
    past: int = 0,
    *,
    scores: Scores = "fused",
    logits: int = 1,
    element_bytes: float = ACTIVATION_BYTES,
) -> Peak:
    """The activation peak of a chunk of `tokens` after `past` others, the cache not counted (see `kv_bytes`).

    `scores`: whether attention keeps the matrix of scores [heads, tokens, past + tokens] (`materialised`) or works
    through it in tiles (`fused`, flash attention). `logits`: for how many of the tokens the head runs.
    Raises BadInput for facts that are no language model's.
    """
    shape = _shape(decoder)
    # Layers of one kind have equal peaks, since only the residual stream lives across them: one of each will do.
    kinds = list(zip(shape.experts.layers if shape.experts else shape.caches, shape.caches, strict=True))
    order = [kinds.index(kind) for kind in sorted(set(kinds))]
    operators, edges = decoder_edges(shape, tokens, past, scores=scores, logits=logits, only=order)
    return peak(operators, edges, ("ids",), ("logits",), element_bytes)


def decoder_edges(
    decoder: ModelFacts | DecoderSpec | DecoderShape,
    tokens: int,
    past: int = 0,
    *,
    scores: Scores = "fused",
    logits: int = 1,
    only: list[int] | None = None,
    naming: Naming = same,
) -> Graph:
    """Operators and edges of a chunk of `tokens` after `past` others; `only` these layers."""
    if tokens < 1 or past < 0 or not 1 <= logits <= tokens:
        raise BadInput(f"{tokens} tokens after {past}, logits of {logits}: makes no sense.")
    drawn = _Drawing(_shape(decoder), tokens, past, scores, naming)
    stream = drawn.start()
    for layer in range(drawn.shape.layers) if only is None else only:
        stream = drawn.layer(layer, stream)
    drawn.end(stream, logits)
    return tuple(drawn.operators), tuple(drawn.edges)


class _Drawing:
    """The graph as it grows: `add` appends an operator with its one output edge [tokens, width] and names that edge."""

    def __init__(self, shape: DecoderShape, tokens: int, past: int, scores: Scores, naming: Naming) -> None:
        self.shape, self.tokens, self.past, self.scores, self.naming = shape, tokens, past, scores, naming
        self.operators: list[OperatorFacts] = []
        self.edges: list[EdgeFacts] = []

    def add(
        self, name: str, kind: OperatorKind, inputs: tuple[str, ...], width: int, *, op: str = "", macs: int = 0,
        weights: tuple[str, ...] = (), rows: int | None = None, out: str = "",
    ) -> str:  # fmt: skip
        edge = out or name
        rows = self.tokens if rows is None else rows
        if width:
            self.edges.append(EdgeFacts(edge, (rows, width), ACTIVATION_BYTES))
        outputs = (edge,) if width else ()
        self.operators.append(OperatorFacts(name, op or kind, kind, macs * rows, weights, inputs, outputs))
        return edge

    def linear(self, name: str, x: str, columns: int, rows: int, bias: bool = False, times: int = 1) -> str:
        """A matrix [rows, columns], run `times` per token (experts); its output is [tokens, times · rows]."""
        return self.add(name, "matmul", (x,), times * rows, op="linear", macs=times * rows * columns,
                        weights=self.parts(name, True, bias))  # fmt: skip

    def norm(self, name: str, x: str, width: int) -> str:
        shape = self.shape
        return self.add(name, "norm", (x,), width, weights=self.parts(name, shape.norm_weight, shape.norm_bias))

    def parts(self, name: str, weight: bool, bias: bool) -> tuple[str, ...]:
        found = (self.naming(f"{name}.weight"),) if weight else ()
        return (*found, self.naming(f"{name}.bias")) if bias else found

    def start(self) -> str:
        shape, hidden = self.shape, self.shape.hidden_size
        self.edges.append(EdgeFacts("ids", (self.tokens,), 4.0))
        x = self.add(EMBEDDING, "gather", ("ids",), hidden, op="embedding", weights=self.parts(EMBEDDING, True, False))
        if shape.embedding_scaled:
            x = self.add(f"{EMBEDDING}.scale", "elementwise", (x,), hidden, op="mul")
        if shape.positions:
            at = self.add(POSITIONS, "gather", ("ids",), hidden, op="embedding",
                          weights=self.parts(POSITIONS, True, False))  # fmt: skip
            x = self.add(f"{POSITIONS}.add", "elementwise", (x, at), hidden, op="add")
        return self.norm("model.embed_norm", x, hidden) if shape.embedding_norm else x

    def layer(self, layer: int, x: str) -> str:
        shape, at, hidden = self.shape, f"model.layers.{layer}", self.shape.hidden_size
        normed = self.norm(f"{at}.input_layernorm", x, hidden) if shape.norms else x
        y = normed
        if shape.caches[layer]:
            y = self.latent(at, normed) if shape.latent else self.attention(at, normed)
        if shape.norms == 4:
            y = self.norm(f"{at}.post_attention_layernorm", y, hidden)
        x = self.add(f"{at}.attention.residual", "elementwise", (x, y), hidden, op="add")
        before = {4: "pre_feedforward_layernorm", 2: "post_attention_layernorm"}.get(shape.norms)
        y = self.norm(f"{at}.{before}", x, hidden) if before else normed
        if shape.experts and shape.experts.layers[layer]:
            y = self.mixture(f"{at}.mlp", y)
        else:
            y = self.mlp(f"{at}.mlp", y, shape.intermediate_size, shape.mlp_bias)
        if shape.norms == 4:
            y = self.norm(f"{at}.post_feedforward_layernorm", y, hidden)
        return self.add(f"{at}.mlp.residual", "elementwise", (x, y), hidden, op="add")

    def attention(self, layer: str, x: str) -> str:
        shape, at, hidden = self.shape, f"{layer}.self_attn", self.shape.hidden_size
        q_size, kv_size = shape.q_size, shape.kv_size
        if shape.fused:
            both = self.linear(f"{at}.qkv_proj", x, hidden, q_size + 2 * kv_size, shape.qkv_bias)
            q = self.add(f"{at}.q_slice", "move", (both,), q_size, op="slice")
            k = self.add(f"{at}.k_slice", "move", (both,), kv_size, op="slice")
            v = self.add(f"{at}.v_slice", "move", (both,), kv_size, op="slice")
        else:
            q = self.linear(f"{at}.q_proj", x, hidden, q_size, shape.qkv_bias)
            k = self.linear(f"{at}.k_proj", x, hidden, kv_size, shape.qkv_bias)
            v = self.linear(f"{at}.v_proj", x, hidden, kv_size, shape.qkv_bias)
        if shape.qk_norm:
            q, k = self.norm(f"{at}.q_norm", q, q_size), self.norm(f"{at}.k_norm", k, kv_size)
        if shape.rope:
            q = self.add(f"{at}.q_rope", "elementwise", (q,), q_size, op="rope")
            k = self.add(f"{at}.k_rope", "elementwise", (k,), kv_size, op="rope")
        self.add(f"{at}.cache", "move", (k, v), 0, op="cache")  # from here on they lie in the cache
        mixed = self.mix(at, q, shape.head_dim, shape.head_dim)
        return self.linear(f"{at}.o_proj", mixed, q_size, hidden, shape.output_bias)

    def latent(self, layer: str, x: str) -> str:
        shape, latent, at, hidden = self.shape, self.shape.latent, f"{layer}.self_attn", self.shape.hidden_size
        assert latent is not None
        width, q = latent.nope_dim + latent.rope_dim, x
        if latent.query_rank:
            q = self.linear(f"{at}.q_a_proj", x, hidden, latent.query_rank, shape.qkv_bias)
            q = self.norm(f"{at}.q_a_layernorm", q, latent.query_rank)
        up = f"{at}.q_b_proj" if latent.query_rank else f"{at}.q_proj"
        q = self.linear(up, q, latent.query_rank or hidden, shape.heads * width)
        kv = self.linear(f"{at}.kv_a_proj_with_mqa", x, hidden, latent.kv_rank + latent.rope_dim, shape.qkv_bias)
        kv = self.norm(f"{at}.kv_a_layernorm", kv, latent.kv_rank)
        # The two halves of kv_b are folded into the query and the output, so that the latent itself is attended to.
        rows = shape.heads * (latent.nope_dim + latent.value_dim)
        q = self.linear(f"{at}.kv_b_proj", q, latent.kv_rank, rows)
        self.add(f"{at}.cache", "move", (kv,), 0, op="cache")
        mixed = self.mix(at, q, latent.kv_rank + latent.rope_dim, latent.kv_rank, latent.value_dim)
        return self.linear(f"{at}.o_proj", mixed, shape.heads * latent.value_dim, hidden, shape.output_bias)

    def mix(self, at: str, q: str, key: int, value: int, out: int | None = None) -> str:
        """QKᵀ, softmax and AV over all positions so far; in one operator when fused."""
        shape, seen = self.shape, self.past + self.tokens
        width = shape.heads * (value if out is None else out)
        if self.scores == "fused":
            return self.add(f"{at}.attention", "attention", (q,), width, op="flash_attention",
                            macs=shape.heads * (key + value) * seen)  # fmt: skip
        logits = self.add(f"{at}.scores", "attention", (q,), shape.heads * seen, op="matmul",
                          macs=shape.heads * key * seen)  # fmt: skip
        chances = self.add(f"{at}.softmax", "softmax", (logits,), shape.heads * seen)
        return self.add(f"{at}.attention", "attention", (chances,), width, op="matmul",
                        macs=shape.heads * value * seen)  # fmt: skip

    def mlp(self, at: str, x: str, inner: int, bias: bool) -> str:
        shape, hidden = self.shape, self.shape.hidden_size
        if shape.gated and shape.fused:
            both = self.linear(f"{at}.gate_up_proj", x, hidden, 2 * inner, bias)
            y = self.add(f"{at}.glu", "activation", (both,), inner)
        elif shape.gated:
            gate = self.linear(f"{at}.gate_proj", x, hidden, inner, bias)
            up = self.linear(f"{at}.up_proj", x, hidden, inner, bias)
            gate = self.add(f"{at}.act", "activation", (gate,), inner)
            y = self.add(f"{at}.mul", "elementwise", (gate, up), inner, op="mul")
        else:
            y = self.linear(f"{at}.up_proj", x, hidden, inner, bias)
            y = self.add(f"{at}.act", "activation", (y,), inner)
        return self.linear(f"{at}.down_proj", y, inner, hidden, bias)

    def mixture(self, at: str, x: str) -> str:
        """The router's choice, then as many experts as it chose; their outputs are weighed and summed."""
        hidden, experts = self.shape.hidden_size, self.shape.experts
        assert experts is not None
        inner, times = experts.intermediate, experts.per_token
        chosen = self.linear(f"{at}.router", x, hidden, experts.count, experts.router_bias)
        chosen = self.add(f"{at}.top_k", "other", (chosen,), times, op="top_k")
        gate = self.linear(f"{at}.experts.gate_proj", x, hidden, inner, experts.bias, times)
        up = self.linear(f"{at}.experts.up_proj", x, hidden, inner, experts.bias, times)
        gate = self.add(f"{at}.experts.act", "activation", (gate,), times * inner)
        y = self.add(f"{at}.experts.mul", "elementwise", (gate, up), times * inner, op="mul")
        y = self.linear(f"{at}.experts.down_proj", y, inner, hidden, experts.bias, times)
        y = self.add(f"{at}.experts.sum", "elementwise", (y, chosen), hidden, op="sum")
        if not experts.shared:
            return y
        shared = self.mlp(f"{at}.shared_expert", x, experts.shared, False)
        if experts.shared_gate:
            gate = self.linear(f"{at}.shared_expert_gate", x, hidden, 1)
            shared = self.add(f"{at}.shared_expert.mul", "elementwise", (shared, gate), hidden, op="mul")
        return self.add(f"{at}.shared_expert.add", "elementwise", (y, shared), hidden, op="add")

    def end(self, x: str, logits: int) -> None:
        shape, hidden, vocabulary = self.shape, self.shape.hidden_size, self.shape.vocab_size
        if logits != self.tokens:
            x = self.add("model.last", "move", (x,), hidden, op="slice", rows=logits)
        x = self.add(FINAL_NORM, "norm", (x,), hidden, rows=logits,
                     weights=self.parts(FINAL_NORM, shape.norm_weight, shape.norm_bias))  # fmt: skip
        weight = EMBEDDING if shape.tied else HEAD
        weights = self.parts(weight, True, False) + self.parts(HEAD, False, shape.head_bias)
        out = "logits" if not shape.softcapped else HEAD
        x = self.add(HEAD, "matmul", (x,), vocabulary, op="linear", macs=hidden * vocabulary, weights=weights,
                     rows=logits, out=out)  # fmt: skip
        if shape.softcapped:
            self.add(f"{HEAD}.softcap", "activation", (x,), vocabulary, rows=logits, out="logits")


def _shape(decoder: ModelFacts | DecoderSpec | DecoderShape) -> DecoderShape:
    if isinstance(decoder, DecoderSpec):
        return shape_of(decoder)
    if isinstance(decoder, DecoderShape):
        return decoder
    if decoder.decoder is None:
        raise BadInput(
            f"{decoder.name}: not a decoder whose shape is known.", "Its own activation peak is what counts."
        )
    return decoder.decoder


def _kv_layer(shape: DecoderShape, layer: int) -> KvLayer:
    if not shape.caches[layer]:
        return KvLayer(0, 0)
    if shape.latent:
        return KvLayer(shape.latent.kv_rank + shape.latent.rope_dim, 0, shape.windows[layer])
    return KvLayer(shape.kv_size, shape.kv_size, shape.windows[layer])


def _planned(name: str, tensor: TensorSpec) -> WeightFacts:
    return WeightFacts(name, tensor.shape, tensor.role, "unknown", 0)


def _with_known(operator: OperatorFacts, held: Mapping[str, WeightFacts]) -> OperatorFacts:
    """Leave out weights under names that the source does not have."""
    known = tuple(name for name in operator.weights if name in held)
    if len(known) == len(operator.weights):
        return operator
    return OperatorFacts(
        operator.name, operator.op, operator.kind, operator.macs, known, operator.inputs, operator.outputs
    )
