"""The decoder families of core/architecture.py as one torch program, made to be exported.

Parameter names are the Hugging Face names, so a checkpoint loads as it is. Masks and positions come from shapes alone,
every operator is a plain one, and the KV cache goes in and comes out as tensors: the same program serves every runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.core.architecture import DecoderSpec
from octavo.errors import BadInput

MASKED = -30000.0  # finite, and inside fp16: an accelerator that computes in half precision gets no infinity


class Decoder(nn.Module):
    """forward(ids, past) → (logits, present).

    ids: int64 [1, n]. past: flat list k₀, v₀, k₁, v₁, …, each float32 [1, kv_heads, past, head_dim] (past may be 0).
    logits: float32 [1, n, vocab]. present: as past, with length past + n.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = DecoderBody(spec)
        if not spec.tied:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(self, ids: Tensor, past_key_values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        hidden, present = self.model(ids, past_key_values)
        head = self.model.embed_tokens if self.spec.tied else self.lm_head
        logits = functional.linear(hidden, head.weight)
        if self.spec.final_softcap:
            logits = _softcap(logits, self.spec.final_softcap)
        return logits, present


class DecoderBody(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, index) for index in range(spec.layers))
        self.norm = RMSNorm(spec.hidden_size, spec)
        self.rope = Rope(spec.rope_theta, spec.rotary_dim, spec.rope_scaling)
        if spec.rope_local_theta:
            self.rope_local = Rope(spec.rope_local_theta, spec.rotary_dim, None)

    def forward(self, ids: Tensor, past_key_values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        spec, length, past = self.spec, ids.shape[1], past_key_values[0].shape[2]
        keys = torch.arange(past + length, device=ids.device)
        queries = torch.arange(length, device=ids.device) + past
        masks = {False: _mask(queries, keys, None), True: _mask(queries, keys, spec.sliding_window)}
        ropes = {False: self.rope(queries)}
        ropes[True] = self.rope_local(queries) if spec.rope_local_theta else ropes[False]
        hidden = self.embed_tokens(ids)
        if spec.embedding_scale != 1.0:
            hidden = hidden * spec.embedding_scale
        present: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            sliding = bool(spec.layer_sliding) and spec.layer_sliding[index]
            rotate = ropes[sliding] if not spec.layer_rope or spec.layer_rope[index] else None
            cache = past_key_values[2 * index], past_key_values[2 * index + 1]
            hidden, key, value = layer(hidden, rotate, masks[sliding], cache)
            present += [key, value]
        return self.norm(hidden), present


class Layer(nn.Module):
    """One decoder layer; Gemma's also normalise what attention and MLP give, before the residual."""

    def __init__(self, spec: DecoderSpec, index: int) -> None:
        super().__init__()
        self.post_norms = spec.post_norms
        self.self_attn = Attention(spec)
        self.mlp = FusedMLP(spec) if spec.fused else MLP(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec)
        if spec.post_norms:
            self.pre_feedforward_layernorm = RMSNorm(spec.hidden_size, spec)
            self.post_feedforward_layernorm = RMSNorm(spec.hidden_size, spec)

    def forward(
        self, hidden: Tensor, rotate: tuple[Tensor, Tensor] | None, mask: Tensor, cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, key, value = self.self_attn(self.input_layernorm(hidden), rotate, mask, cache)
        if self.post_norms:
            hidden = hidden + self.post_attention_layernorm(attended)
            fed = self.mlp(self.pre_feedforward_layernorm(hidden))
            return hidden + self.post_feedforward_layernorm(fed), key, value
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), key, value


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): the queries of one key/value head are stacked along their length,
    so that the cache is never repeated."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        query, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        if spec.fused:
            self.qkv_proj = nn.Linear(spec.hidden_size, query + 2 * kv, bias=spec.qkv_bias)
        else:
            self.q_proj = nn.Linear(spec.hidden_size, query, bias=spec.qkv_bias)
            self.k_proj = nn.Linear(spec.hidden_size, kv, bias=spec.qkv_bias)
            self.v_proj = nn.Linear(spec.hidden_size, kv, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(query, spec.hidden_size, bias=spec.output_bias)
        if spec.qk_norm:
            self.q_norm = RMSNorm(spec.head_dim, spec)
            self.k_norm = RMSNorm(spec.head_dim, spec)

    def forward(
        self, hidden: Tensor, rotate: tuple[Tensor, Tensor] | None, mask: Tensor, cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec, length = self.spec, hidden.shape[1]
        query, key, value = self._project(hidden, length)
        if spec.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotate is not None:
            query, key = _rotate(query, *rotate), _rotate(key, *rotate)
        key, value = torch.cat((cache[0], key), 2), torch.cat((cache[1], value), 2)
        group = spec.heads // spec.kv_heads
        stacked = (query * spec.attention_scale).reshape(1, spec.kv_heads, group * length, spec.head_dim)
        scores = torch.matmul(stacked, key.transpose(2, 3)).reshape(1, spec.heads, length, -1)
        if spec.attention_softcap:
            scores = _softcap(scores, spec.attention_softcap)
        weights = functional.softmax(scores + mask, dim=-1).reshape(1, spec.kv_heads, group * length, -1)
        mixed = torch.matmul(weights, value).reshape(1, spec.heads, length, spec.head_dim)
        joined = mixed.transpose(1, 2).reshape(1, length, spec.heads * spec.head_dim)
        return self.o_proj(joined), key, value

    def _project(self, hidden: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [1, heads, n, head_dim], keys and values [1, kv_heads, n, head_dim]."""
        spec = self.spec
        kv = spec.kv_heads * spec.head_dim
        if spec.fused:
            parts = torch.split(self.qkv_proj(hidden), [spec.heads * spec.head_dim, kv, kv], dim=-1)
        else:
            parts = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        heads = spec.heads, spec.kv_heads, spec.kv_heads
        query, key, value = (
            part.reshape(1, length, count, spec.head_dim).transpose(1, 2)
            for part, count in zip(parts, heads, strict=True)
        )
        return query, key, value


class MLP(nn.Module):
    """Gated linear unit (Shazeer 2020): down(act(gate(x)) · up(x))."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activation = _activation(spec.activation)
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        fed: Tensor = self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))
        return fed


class FusedMLP(nn.Module):
    """The same with gate and up in one matrix (Phi-3)."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activation = _activation(spec.activation)
        self.width = spec.intermediate_size
        self.gate_up_proj = nn.Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = torch.split(self.gate_up_proj(hidden), [self.width, self.width], dim=-1)
        fed: Tensor = self.down_proj(self.activation(gate) * up)
        return fed


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019); Gemma's multiplies by 1 + weight."""

    def __init__(self, size: int, spec: DecoderSpec) -> None:
        super().__init__()
        self.eps, self.offset = spec.norm_eps, spec.norm_offset
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, hidden: Tensor) -> Tensor:
        normal = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
        return normal * (1.0 + self.weight) if self.offset else normal * self.weight


class Rope(nn.Module):
    """Rotary position embedding (Su et al. 2021): cosines and sines float32 [n, rotary_dim] of positions int64 [n]."""

    def __init__(self, theta: float, rotary_dim: int, scaling: dict[str, Any] | None) -> None:
        super().__init__()
        with torch.device("cpu"):  # real numbers even when the weights are on the meta device
            frequencies = _frequencies(theta, rotary_dim, scaling)
        self.frequencies = nn.Buffer(frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions.to(torch.float32)[:, None] * self.frequencies
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


def build(spec: DecoderSpec, weights: Mapping[str, Tensor] | None = None) -> Decoder:
    """The program of `spec`: with `weights` by Hugging Face name (used as they are, not copied), or on the meta device.

    Raises BadInput when names or shapes of the weights differ from the architecture's.
    """
    with torch.device("meta"):
        module = Decoder(spec)
    if weights is not None:
        try:
            module.load_state_dict(dict(weights), strict=True, assign=True)
        except RuntimeError as error:
            raise BadInput(f"The weights do not fit a {spec.family}: {error}") from error
    return module.requires_grad_(False).eval()


def empty_cache(spec: DecoderSpec, length: int = 0) -> list[Tensor]:
    """A cache of `length` positions of zeros; the first step takes length 0."""
    return [torch.zeros(1, spec.kv_heads, length, spec.head_dim) for _ in range(2 * spec.layers)]


def _mask(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Additive mask float32 [n, past + n]: a query sees its own and earlier positions, `window` of them at most."""
    seen = keys[None, :] <= queries[:, None]
    if window is not None:
        seen = seen & (keys[None, :] > queries[:, None] - window)
    return (1.0 - seen.to(torch.float32)) * MASKED


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the first rotary_dim elements of each head [1, heads, n, head_dim]; the rest pass (partial rotary)."""
    size = cosine.shape[-1]
    turned, passed = heads[..., :size], heads[..., size:]
    half = size // 2
    swapped = torch.cat((-turned[..., half:], turned[..., :half]), -1)
    turned = turned * cosine + swapped * sine
    return turned if size == heads.shape[-1] else torch.cat((turned, passed), -1)


def _frequencies(theta: float, rotary_dim: int, scaling: dict[str, Any] | None) -> Tensor:
    """Inverse frequencies float32 [rotary_dim / 2]; `linear` stretches all, `llama3` the slow ones (Llama 3.1)."""
    inverse = 1.0 / (theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim))
    if scaling is None:
        return inverse
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return inverse / factor
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * inverse / (2 * pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - smooth) * inverse / factor + smooth * inverse


def _softcap(values: Tensor, cap: float) -> Tensor:
    return torch.tanh(values / cap) * cap


def _activation(name: str) -> nn.Module:
    """Raises BadInput for an activation that no family here uses."""
    known = {
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
        "gelu_new": nn.GELU(approximate="tanh"),
        "relu": nn.ReLU(),
    }
    if name not in known:
        raise BadInput(f"config.json: unknown activation '{name}'.", f"Known: {', '.join(known)}.")
    return known[name]
