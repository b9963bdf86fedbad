"""The numbers a decoder-only language model's graph is drawn from: of any family, not only those that can be exported.

Known families come from their DecoderSpec; others from what their config or GGUF metadata states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from octavo.core.architecture import DecoderSpec, TensorSpec

EMBEDDING, POSITIONS, HEAD, FINAL_NORM = "model.embed_tokens", "model.embed_positions", "lm_head", "model.norm"


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what is cached is one latent vector per position.

    `query_rank` 0: queries come straight from the hidden state.
    """

    query_rank: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: `count` gated MLPs of width `intermediate`, of which each token uses `per_token`, and a
    shared one of width `shared` (0: none). `layers`: which layers have it; the others are dense."""

    count: int
    per_token: int
    intermediate: int
    layers: tuple[bool, ...]
    shared: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    bias: bool = False


@dataclass(frozen=True)
class DecoderShape:
    """A decoder. `windows`: per layer the positions kept, None for all. `caches`: per layer whether it keeps keys and
    values at all. `positions`: rows of a learned position table, 0 without one."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    tied: bool
    windows: tuple[int | None, ...]
    caches: tuple[bool, ...]
    gated: bool = True
    fused: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    sinks: bool = False
    norm_bias: bool = False
    norm_weight: bool = True
    norms: int = 2
    embedding_norm: bool = False
    qk_norm: Literal["", "head", "all"] = ""
    rope: bool = True
    positions: int = 0
    embedding_scaled: bool = False
    softcapped: bool = False
    experts: Experts | None = None
    latent: Latent | None = None

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    def tensors(self, layers: int | None = None) -> dict[str, TensorSpec]:
        """Every tensor under llama's names; the experts' matrices of a layer are stacked along their rows."""
        hidden = self.hidden_size
        found = {f"{EMBEDDING}.weight": TensorSpec((self.vocab_size, hidden), "embedding")}
        if self.positions:
            found[f"{POSITIONS}.weight"] = TensorSpec((self.positions, hidden), "embedding")
        if self.embedding_norm:
            found |= self._norm("model.embed_norm", hidden)
        for layer in range(self.layers if layers is None else layers):
            for name, tensor in self.layer_tensors(layer).items():
                found[f"model.layers.{layer}.{name}"] = tensor
        found |= self._norm(FINAL_NORM, hidden)
        if not self.tied:
            found[f"{HEAD}.weight"] = TensorSpec((self.vocab_size, hidden), "head")
        if self.head_bias:
            found[f"{HEAD}.bias"] = TensorSpec((self.vocab_size,), "other")
        return found

    def layer_tensors(self, layer: int) -> dict[str, TensorSpec]:
        """The tensors of one layer, by their names within it."""
        hidden = self.hidden_size
        norms = (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
        found: dict[str, TensorSpec] = {}
        for name in norms[: self.norms]:
            found |= self._norm(name, hidden)
        found |= self._latent_attention(self.latent) if self.latent else self._attention()
        if self.experts and self.experts.layers[layer]:
            return found | self._mixture(self.experts)
        return found | self._mlp("mlp", self.intermediate_size, self.mlp_bias)

    def _attention(self) -> dict[str, TensorSpec]:
        hidden, q, kv = self.hidden_size, self.q_size, self.kv_size
        if self.fused:
            found = _linear("self_attn.qkv_proj", q + 2 * kv, hidden, self.qkv_bias)
        else:
            found = _linear("self_attn.q_proj", q, hidden, self.qkv_bias)
            found |= _linear("self_attn.k_proj", kv, hidden, self.qkv_bias)
            found |= _linear("self_attn.v_proj", kv, hidden, self.qkv_bias)
        found |= _linear("self_attn.o_proj", hidden, q, self.output_bias)
        if self.qk_norm:
            whole = self.qk_norm == "all"
            found |= self._norm("self_attn.q_norm", q if whole else self.head_dim)
            found |= self._norm("self_attn.k_norm", kv if whole else self.head_dim)
        if self.sinks:
            found["self_attn.sinks"] = TensorSpec((self.heads,), "other")
        return found

    def _latent_attention(self, latent: Latent) -> dict[str, TensorSpec]:
        hidden, width = self.hidden_size, latent.nope_dim + latent.rope_dim
        if latent.query_rank:
            found = _linear("self_attn.q_a_proj", latent.query_rank, hidden, self.qkv_bias)
            found |= self._norm("self_attn.q_a_layernorm", latent.query_rank)
            found |= _linear("self_attn.q_b_proj", self.heads * width, latent.query_rank, False)
        else:
            found = _linear("self_attn.q_proj", self.heads * width, hidden, False)
        found |= _linear("self_attn.kv_a_proj_with_mqa", latent.kv_rank + latent.rope_dim, hidden, self.qkv_bias)
        found |= self._norm("self_attn.kv_a_layernorm", latent.kv_rank)
        found |= _linear(
            "self_attn.kv_b_proj", self.heads * (latent.nope_dim + latent.value_dim), latent.kv_rank, False
        )
        return found | _linear("self_attn.o_proj", hidden, self.heads * latent.value_dim, self.output_bias)

    def _mlp(self, name: str, inner: int, bias: bool) -> dict[str, TensorSpec]:
        hidden = self.hidden_size
        if self.gated and self.fused:
            found = _linear(f"{name}.gate_up_proj", 2 * inner, hidden, bias)
        elif self.gated:
            found = _linear(f"{name}.gate_proj", inner, hidden, bias) | _linear(f"{name}.up_proj", inner, hidden, bias)
        else:
            found = _linear(f"{name}.up_proj", inner, hidden, bias)
        return found | _linear(f"{name}.down_proj", hidden, inner, bias)

    def _mixture(self, experts: Experts) -> dict[str, TensorSpec]:
        hidden, rows = self.hidden_size, experts.count * experts.intermediate
        found = _linear("mlp.router", experts.count, hidden, experts.router_bias)
        found |= _linear("mlp.experts.gate_proj", rows, hidden, experts.bias)
        found |= _linear("mlp.experts.up_proj", rows, hidden, experts.bias)
        found |= _linear("mlp.experts.down_proj", experts.count * hidden, experts.intermediate, experts.bias)
        if experts.shared:
            found |= self._mlp("mlp.shared_expert", experts.shared, False)
        if experts.shared_gate:
            found |= _linear("mlp.shared_expert_gate", 1, hidden, False)
        return found

    def _norm(self, name: str, size: int) -> dict[str, TensorSpec]:
        found = {f"{name}.weight": TensorSpec((size,), "other")} if self.norm_weight else {}
        return found | ({f"{name}.bias": TensorSpec((size,), "other")} if self.norm_bias else {})


def shape_of(spec: DecoderSpec) -> DecoderShape:
    """The shape of a family that Octavo knows whole."""
    windows = tuple(spec.sliding_window if slides else None for slides in spec.layer_sliding)
    return DecoderShape(
        family=spec.family,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        context=spec.context,
        tied=spec.tied,
        windows=windows,
        caches=(True,) * spec.layers,
        fused=spec.fused,
        qkv_bias=spec.qkv_bias,
        output_bias=spec.output_bias,
        mlp_bias=spec.mlp_bias,
        norms=4 if spec.post_norms else 2,
        qk_norm="head" if spec.qk_norm else "",
        embedding_scaled=spec.embedding_scale != 1.0,
        softcapped=spec.final_softcap is not None,
    )


def same(name: str) -> str:
    """The naming of a source that uses llama's names."""
    return name


Naming = Callable[[str], str]


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, TensorSpec]:
    found = {f"{name}.weight": TensorSpec((rows, columns), "matmul")}
    return found | ({f"{name}.bias": TensorSpec((rows,), "other")} if bias else {})
