"""A Hugging Face config as a DecoderShape: known families, those of the table, and whatever the shapes allow."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from octavo.core.architecture import FAMILIES, DecoderSpec, decoder_spec
from octavo.core.decoder_shape import DecoderShape, Experts, Latent, shape_of
from octavo.errors import BadInput

KEYS: dict[str, tuple[str, ...]] = {  # what families call the same number
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "head_dim": ("head_dim", "attention_head_dim"),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx", "seq_length"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "experts_per_token"),
    "expert_size": ("moe_intermediate_size", "expert_intermediate_size"),
    "shared_size": ("shared_expert_intermediate_size",),
    "shared_experts": ("n_shared_experts",),
    "sliding_window": ("sliding_window", "window_size"),
}
NEVER_NULL = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
MAY_BE_ZERO = ("experts", "experts_per_token", "shared_size", "shared_experts", "sliding_window")
MOST_LAYERS = 10_000
LARGEST = 10**12  # no size of a model is beyond this; a larger one is a slip that would only overflow later
KEEPS_NOTHING = ("linear_attention", "conv", "mamba", "recurrent")
TEXT_OF = {  # the language model inside a multimodal family
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3", "gemma3": "gemma3_text",
}  # fmt: skip
UNSAID = {  # what published multimodal configs leave to transformers' defaults (Gemma3TextConfig, transformers 5.23)
    "gemma3_text": {"vocab_size": 262208, "num_attention_heads": 8},
}
ENCODERS = (
    "albert", "bert", "bart", "clip", "convnext", "deberta", "deberta-v2", "deit", "detr", "distilbert",
    "electra", "hubert", "mbart", "mobilebert", "mobilevit", "modernbert", "mpnet", "mt5", "pegasus", "resnet",
    "roberta", "segformer", "siglip", "squeezebert", "swin", "t5", "umt5", "vit", "wav2vec2", "whisper", "xlm-roberta",
)  # fmt: skip


@dataclass(frozen=True)
class Read:
    """A config's decoder; `spec` when the family is known whole. `missing`: what the shapes do not tell."""

    shape: DecoderShape
    spec: DecoderSpec | None
    missing: tuple[str, ...]


def is_decoder(config: dict[str, Any]) -> bool:
    """Whether this is a decoder-only language model, by what the config calls itself."""
    if "text_config" in config:
        return True
    if config.get("is_encoder_decoder") is True or config.get("model_type") in ENCODERS:
        return False
    names = config.get("architectures")
    if config.get("model_type") in FAMILIES or not isinstance(names, list) or not names:
        return True
    words = ("CausalLM", "LMHead", "ConditionalGeneration", "ImageTextToText", "DoubleHeads")
    base = [name for name in map(str, names) if any(word in name for word in words)]
    return bool(base) or not any("For" in str(name) for name in names)


def read_decoder(config: dict[str, Any]) -> Read:
    """The decoder that a config describes.

    Raises BadInput, naming key and value, for impossible values, and for a config that lacks the sizes a decoder has.
    """
    missing: tuple[str, ...] = ()
    if isinstance(config.get("text_config"), dict):
        others = [key.removesuffix("_config") for key in config if key.endswith("_config") and key != "text_config"]
        others = [name for name in others if name not in ("quantization", "generation")]
        missing = (f"Only the language model is planned, not its {' and '.join(others) or 'other'} part.",)
        tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
        config = {"model_type": ""} | tied | config["text_config"]
    family = str(config.get("model_type", ""))
    if family in TEXT_OF:
        family = TEXT_OF[family]
        config = config | {"model_type": family}
        missing = missing or ("Only the language model is planned, not what sees or hears.",)
    if family in FAMILIES:
        unsaid = UNSAID.get(family, {}) if missing else {}
        spec = decoder_spec(_plain_rope(family, _checked(unsaid | config)))
        return Read(shape_of(spec), spec, missing + _rope_note(config))
    try:
        shape, more = _read_shape(family, config)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInput(f"config.json: a value that makes no sense ({error}).") from error
    return Read(shape, None, missing + more)


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    for what in KEYS:
        _whole(config, what, required=False)
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if heads and hidden and not config.get("head_dim") and hidden % heads and "gemma" not in str(config["model_type"]):
        raise BadInput(f"config.json: num_attention_heads {heads} does not divide hidden_size {hidden}.")
    return {key: value for key, value in config.items() if value is not None or key not in NEVER_NULL}


def _plain_rope(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """Planning needs no rotary angles; a scaling that cannot be exported must not keep a model from being planned."""
    parameters = config.get("rope_parameters")
    kept = parameters if isinstance(parameters, dict) else {}
    partial = kept.get("partial_rotary_factor")
    plain = {} if partial is None else {"partial_rotary_factor": partial}
    return config | {"rope_scaling": None, "rope_parameters": plain}


def _rope_note(config: dict[str, Any]) -> tuple[str, ...]:
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict):
        return ()
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "linear", "llama3"):
        return ()
    return (f"RoPE scaling '{kind}': the shapes are planned, but octavo cannot compress this model yet.",)


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("families.toml").read_text("utf-8"))


def _read_shape(family: str, config: dict[str, Any]) -> tuple[DecoderShape, tuple[str, ...]]:
    table = _table()
    traits = table["default"] | table.get(family, {})
    missing: list[str] = []
    if family not in table:
        missing.append(
            f"Unknown family '{family or '?'}': read as Llama-like from its sizes; biases, norms and what else it has "
            "are not known."
        )

    def trait(name: str, default: Any = False) -> Any:
        value = traits.get(name, default)
        if not isinstance(value, dict):
            return value
        said = config.get(value["key"])
        return value["default"] if said is None else bool(said)

    hidden, layers = _whole(config, "hidden_size"), _whole(config, "layers")
    heads, gated = _whole(config, "heads"), bool(trait("gated"))
    kv_heads = _kv_heads(config, heads)
    head_dim = _whole(config, "head_dim", required=False) or traits.get("head_dim") or _divided(hidden, heads)
    experts = _experts(config, layers, trait)
    inner = _whole(config, "intermediate_size", required=False)
    if inner is None:
        if gated and not experts:
            raise BadInput(
                f"config.json: no intermediate_size (looked for {', '.join(KEYS['intermediate_size'])}).",
                "Add it to the config, or give a bare size with --params.",
            )
        inner = 4 * hidden
    context = _whole(config, "context", required=False) or 0
    if not context:
        missing.append("The config states no context limit.")
    if experts and family not in table:
        missing.append("A mixture of experts whose router and shared experts are guessed from the sizes.")
    windows, caches, note = _windows(config, layers, "window_key" in traits)
    missing += [note] if note else []
    shape = DecoderShape(
        family=family or "decoder",
        vocab_size=_whole(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        tied=trait("tied"),
        windows=windows,
        caches=caches,
        gated=gated,
        fused=trait("fused"),
        qkv_bias=trait("qkv_bias"),
        output_bias=trait("output_bias"),
        mlp_bias=trait("mlp_bias"),
        head_bias=trait("head_bias"),
        sinks=trait("sinks"),
        norm_bias=trait("norm_bias"),
        norm_weight=trait("norm_weight", True),
        norms=trait("norms", 2),
        embedding_norm=trait("embedding_norm"),
        qk_norm=trait("qk_norm", ""),
        rope=trait("rope", True),
        positions=context + trait("position_offset", 0) if trait("positions") else 0,
        embedding_scaled=trait("embedding_scaled"),
        experts=experts,
        latent=_latent(config),
    )
    return shape, tuple(missing)


def _kv_heads(config: dict[str, Any], heads: int) -> int:
    found = _whole(config, "kv_heads", required=False)
    kv_heads = found or (1 if config.get("multi_query") is True else heads)
    if heads % kv_heads:
        raise BadInput(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads.")
    return kv_heads


def _divided(hidden: int, heads: int) -> int:
    if hidden % heads:
        raise BadInput(f"config.json: num_attention_heads {heads} does not divide hidden_size {hidden}.")
    return hidden // heads


def _experts(config: dict[str, Any], layers: int, trait: Any) -> Experts | None:
    count = _whole(config, "experts", required=False) or 0
    if count < 2:
        return None
    per_token = _whole(config, "experts_per_token", required=False)
    if not per_token or per_token > count:
        raise BadInput(f"config.json: {count} experts of which a token uses {per_token}; it must be 1 to {count}.")
    size = _whole(config, "expert_size", required=False) or _whole(config, "intermediate_size")
    shared = _whole(config, "shared_size", required=False) or 0
    shared = shared or (_whole(config, "shared_experts", required=False) or 0) * size
    first, step = config.get("first_k_dense_replace") or 0, config.get("decoder_sparse_step") or 1
    dense = config.get("mlp_only_layers") or ()
    mixed = tuple(n >= first and n not in dense and (n + 1) % step == 0 for n in range(layers))
    return Experts(
        count, per_token, size, mixed, shared, bool(shared and trait("shared_gate")),
        router_bias=trait("router_bias"), bias=trait("expert_bias"),
    )  # fmt: skip


def _latent(config: dict[str, Any]) -> Latent | None:
    rank = config.get("kv_lora_rank")
    if not rank:
        return None
    parts = [config.get(key) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")]
    values = [rank, *parts, config.get("q_lora_rank") or 0]
    if any(type(value) is not int or value < 0 for value in values):
        raise BadInput(f"config.json: latent attention needs kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim and "
                       f"v_head_dim; found {values[:4]}.")  # fmt: skip
    return Latent(values[4], rank, values[1], values[2], values[3])


def _windows(
    config: dict[str, Any], layers: int, known: bool
) -> tuple[tuple[int | None, ...], tuple[bool, ...], str | None]:
    """Per layer its window and whether it keeps keys and values; and what is not sure about that."""
    window = _whole(config, "sliding_window", required=False) or None
    if config.get("use_sliding_window") is False:
        window = None
    kinds = config.get("layer_types")
    if kinds is None:
        if window and config.get("model_type") == "gpt_neo":
            kinds = config.get("attention_layers") or _neo_layers(config)
            return tuple(window if kind == "local" else None for kind in kinds[:layers]), (True,) * layers, None
        note = None if known or not window else f"Which layers slide over {window} positions: none is assumed to."
        return ((window if known else None),) * layers, (True,) * layers, note
    if not isinstance(kinds, list) or len(kinds) != layers:
        found = len(kinds) if isinstance(kinds, list) else kinds
        raise BadInput(f"config.json: layer_types has {found} entries for {layers} layers.")
    caches = tuple(kind not in KEEPS_NOTHING for kind in kinds)
    note = None
    if not all(caches):
        note = (
            f"{caches.count(False)} of {layers} layers are no attention: their weights and state are not known from "
            "the config."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds), caches, note


def _neo_layers(config: dict[str, Any]) -> list[str]:
    return [kind for kinds, times in config.get("attention_types") or [] for _ in range(times) for kind in kinds]


def _whole(config: dict[str, Any], what: str, *, required: bool = True) -> Any:
    """The number under whichever of its names the config uses; None where it may be absent and is.

    Raises BadInput, naming key and value, for anything but a whole number from 1 on.
    """
    for key in KEYS[what]:
        value = config.get(key)
        if value is None:
            continue
        lowest = 0 if what in MAY_BE_ZERO else 1
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        highest = MOST_LAYERS if what == "layers" else LARGEST
        if type(value) is not int or not lowest <= value <= highest:
            raise BadInput(
                f"config.json: {key} is {value!r}; it must be a whole number from {lowest} to {highest}.",
                "Check the config.",
            )
        return value
    if required:
        raise BadInput(
            f"config.json: no {KEYS[what][0]} (looked for {', '.join(KEYS[what])}).",
            "A decoder needs it; give the model as .onnx or .gguf, or a bare size with --params.",
        )
    return None
