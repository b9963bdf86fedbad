"""What a decoder-only language model is made of, read out of its Hugging Face config: shapes and rules, never weights.

One record serves everything that must agree on it: the names and shapes a checkpoint must have, the torch program that
is exported, the metadata of a GGUF file, and the planner's facts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo.errors import BadInput, nearest

Role = Literal["matmul", "conv", "embedding", "head", "other"]
DEFAULTS: dict[str, dict[str, Any]] = {
    # What transformers 5 assumes where a config is silent and the family differs from `_spec`'s own default.
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    "qwen2": {"sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768},
    "qwen3": {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768},
    "phi3": {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    "gemma2": {"head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096, "max_position_embeddings": 8192},
    "gemma3_text": {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "smollm3": {
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
}
BIASED = ("llama", "qwen3", "gemma2", "gemma3_text", "smollm3")  # families whose attention obeys `attention_bias`
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "smollm3")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a checkpoint must have: its shape (axis 0 is the output channel) and what it does."""

    shape: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder of one of FAMILIES. Lengths are element counts; thetas are RoPE bases."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float
    activation: str
    tied: bool
    rope_theta: float
    rotary_dim: int
    rope_local_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    sliding_window: int | None = None
    layer_sliding: tuple[bool, ...] = ()
    layer_rope: tuple[bool, ...] = ()
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    fused: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = field(default=())

    def tensors(self) -> dict[str, TensorSpec]:
        """Return every tensor of the checkpoint by its Hugging Face name, in the order of the computation."""
        hidden = self.hidden_size
        found = {"model.embed_tokens.weight": TensorSpec((self.vocab_size, hidden), "embedding")}
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{name}": spec for name, spec in self._layer().items()}
        found["model.norm.weight"] = TensorSpec((hidden,), "other")
        if not self.tied:
            found["lm_head.weight"] = TensorSpec((self.vocab_size, hidden), "head")
        return found

    def _layer(self) -> dict[str, TensorSpec]:
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            linears = {"self_attn.qkv_proj": (q + 2 * kv, hidden, self.qkv_bias)}
        else:
            linears = {
                "self_attn.q_proj": (q, hidden, self.qkv_bias),
                "self_attn.k_proj": (kv, hidden, self.qkv_bias),
                "self_attn.v_proj": (kv, hidden, self.qkv_bias),
            }
        linears["self_attn.o_proj"] = (hidden, q, self.output_bias)
        if self.fused:
            linears["mlp.gate_up_proj"] = (2 * inner, hidden, self.mlp_bias)
        else:
            linears["mlp.gate_proj"] = (inner, hidden, self.mlp_bias)
            linears["mlp.up_proj"] = (inner, hidden, self.mlp_bias)
        linears["mlp.down_proj"] = (hidden, inner, self.mlp_bias)
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if self.post_norms:
            norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
        if self.qk_norm:
            norms |= {"self_attn.q_norm": self.head_dim, "self_attn.k_norm": self.head_dim}
        found: dict[str, TensorSpec] = {}
        for name, (rows, columns, bias) in linears.items():
            found[f"{name}.weight"] = TensorSpec((rows, columns), "matmul")
            if bias:
                found[f"{name}.bias"] = TensorSpec((rows,), "other")
        return found | {f"{name}.weight": TensorSpec((size,), "other") for name, size in norms.items()}


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json. Raises BadInput when it is missing or is no JSON object."""
    if not path.is_file():
        raise BadInput(f"{path.parent}: no {path.name}.", "Give a Hugging Face model directory or its config.json.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: expected an object, found {type(config).__name__}.")
    return config


def decoder_spec(config: dict[str, Any]) -> DecoderSpec:
    """Read a Hugging Face config.

    Raises BadInput for an unknown family (with the nearest), a missing key, or values that contradict each other.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise BadInput(f"config.json: unknown model family '{family}'.", nearest(family, FAMILIES))
    try:
        spec = _spec(family, DEFAULTS.get(family, {}) | config)
    except KeyError as error:
        raise BadInput(f"config.json: a {family} needs the key {error}.") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInput(f"config.json: a value that makes no sense ({error}).") from error
    if spec.kv_heads < 1 or spec.heads % spec.kv_heads:
        raise BadInput(f"config.json: {spec.heads} attention heads cannot share {spec.kv_heads} key/value heads.")
    sizes = (spec.vocab_size, spec.hidden_size, spec.intermediate_size, spec.layers, spec.heads, spec.head_dim)
    if min(sizes) < 1:
        raise BadInput(f"config.json: sizes must be positive, found {min(sizes)}.")
    for key, per_layer in (("layer_types", spec.layer_sliding), ("no_rope_layers", spec.layer_rope)):
        if len(per_layer) != spec.layers:
            raise BadInput(f"config.json: {key} has {len(per_layer)} entries for {spec.layers} layers.")
    return spec


def _spec(family: str, c: dict[str, Any]) -> DecoderSpec:
    heads, hidden, layers = int(c["num_attention_heads"]), int(c["hidden_size"]), int(c["num_hidden_layers"])
    head_dim = int(c.get("head_dim") or hidden // heads)
    gemma = family.startswith("gemma")
    theta, local_theta, scaling = _rope(family, c)
    window, sliding = _sliding(family, c, layers)
    bias = family in BIASED and bool(c.get("attention_bias", False))
    eos = c.get("eos_token_id")
    return DecoderSpec(
        family=family,
        vocab_size=int(c["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(c["intermediate_size"]),
        layers=layers,
        heads=heads,
        kv_heads=int(c.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        context=int(c.get("max_position_embeddings", 2048)),
        norm_eps=float(c.get("rms_norm_eps", 1e-6)),
        activation=str(c.get("hidden_activation") or c.get("hidden_act", "gelu_pytorch_tanh" if gemma else "silu")),
        tied=bool(c.get("tie_word_embeddings", gemma)),
        rope_theta=theta,
        rope_local_theta=local_theta,
        rope_scaling=scaling,
        rotary_dim=int(head_dim * float(_rope_value(c, "partial_rotary_factor", 1.0))),
        sliding_window=window,
        layer_sliding=sliding,
        layer_rope=tuple(bool(on) for on in c.get("no_rope_layers") or _smollm3_rope(family, c, layers)),
        qkv_bias=family == "qwen2" or bias,
        output_bias=bias,
        mlp_bias=family in ("llama", "smollm3") and bool(c.get("mlp_bias", False)),
        qk_norm=family in ("qwen3", "gemma3_text"),
        norm_offset=gemma,
        post_norms=gemma,
        embedding_scale=float(hidden) ** 0.5 if gemma else 1.0,
        attention_scale=float(c.get("query_pre_attn_scalar", 256) if gemma else head_dim) ** -0.5,
        attention_softcap=c.get("attn_logit_softcapping", 50.0) if family == "gemma2" else None,
        final_softcap=c.get("final_logit_softcapping", 30.0) if family == "gemma2" else None,
        fused=family == "phi3",
        bos=c.get("bos_token_id"),
        eos=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
    )


def _rope(family: str, c: dict[str, Any]) -> tuple[float, float | None, dict[str, Any] | None]:
    """Base, base of the sliding layers (gemma3), scaling; from either spelling (`rope_parameters` is the newer)."""
    default = 1e6 if family in ("gemma3_text",) else 1e4
    parameters = dict(c.get("rope_parameters") or {})
    local: float | None = None
    if "full_attention" in parameters:
        local = float(parameters["sliding_attention"]["rope_theta"])
        parameters = dict(parameters["full_attention"])
    elif family == "gemma3_text":
        local = float(c.get("rope_local_base_freq", 1e4))
    theta = float(parameters.pop("rope_theta", c.get("rope_theta", default)))
    scaling = parameters or dict(c.get("rope_scaling") or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, local, None
    if kind not in ("linear", "llama3"):
        raise BadInput(
            f"config.json: RoPE scaling '{kind}' is not carried yet (only default, linear and llama3 are).",
            "Remove the scaling to use the model at its original context length.",
        )
    known = {key: value for key, value in scaling.items() if key not in ("type", "rope_theta", "partial_rotary_factor")}
    return theta, local, known | {"rope_type": kind}


def _rope_value(c: dict[str, Any], key: str, default: float) -> float:
    value = (c.get("rope_parameters") or {}).get(key, c.get(key))
    return default if value is None else float(value)


def _sliding(family: str, c: dict[str, Any], layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """The window and which layers use it."""
    window = c.get("sliding_window")
    if window is None or (family.startswith("qwen") and not c.get("use_sliding_window", False)):
        return None, (False,) * layers
    if c.get("layer_types"):
        kinds = tuple(kind == "sliding_attention" for kind in c["layer_types"])
        return (int(window) if any(kinds) else None), kinds
    if family == "gemma2":
        return int(window), tuple(layer % 2 == 0 for layer in range(layers))
    if family == "gemma3_text":
        pattern = int(c.get("sliding_window_pattern", c.get("_sliding_window_pattern", 6)))
        return int(window), tuple(bool((layer + 1) % pattern) for layer in range(layers))
    if family.startswith("qwen"):
        first = int(c.get("max_window_layers", layers))
        return int(window), tuple(layer >= first for layer in range(layers))
    if family in ("mistral", "phi3"):
        return int(window), (True,) * layers
    return None, (False,) * layers


def _smollm3_rope(family: str, c: dict[str, Any], layers: int) -> tuple[bool, ...]:
    """SmolLM3 leaves RoPE out of every fourth layer."""
    if family != "smollm3":
        return (True,) * layers
    interval = int(c.get("no_rope_layer_interval", 4))
    return tuple(bool((layer + 1) % interval) for layer in range(layers))
