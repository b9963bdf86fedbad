"""Our torch program of every decoder family against transformers' own, on tiny random models: no mocks."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from octavo.core.architecture import decoder_spec  # noqa: E402
from octavo.errors import BadInput  # noqa: E402
from octavo.sources.decoder import build, empty_cache  # noqa: E402

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-bias-tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral-window": ("mistral", {"sliding_window": 5, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "phi3-partial-window": ("phi3", {"sliding_window": 6, "partial_rotary_factor": 0.5}),
    "gemma2": ("gemma2", {"sliding_window": 4, "head_dim": 8, "query_pre_attn_scalar": 10}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "head_dim": 8, "num_hidden_layers": 7, "query_pre_attn_scalar": 6}),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest) -> Any:
    """(ours, transformers' own) with the same random weights; norms and biases are random too."""
    torch.set_num_threads(1)
    family, extra = CASES[request.param]
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **(SMALL | extra))
    config._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in theirs.named_parameters():
        spread = 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
        parameter.data = torch.randn(parameter.shape) * spread + ("norm" in name)
    spec = decoder_spec(config.to_dict())
    weights = {
        name: value for name, value in theirs.state_dict().items() if not (spec.tied and name == "lm_head.weight")
    }
    return build(spec, weights), theirs


def test_names_and_shapes_are_the_architectures(pair: Any) -> None:
    ours, _ = pair
    declared = {name: item.shape for name, item in ours.spec.tensors().items()}
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == declared


def test_prefill_equals_transformers(pair: Any) -> None:
    ours, theirs = pair
    ids = torch.randint(3, 97, (1, 23))
    with torch.no_grad():
        logits, present = ours(ids, empty_cache(ours.spec))
        expected = theirs(ids).logits
    assert (logits - expected).abs().max() <= 1e-4
    assert present[0].shape == (1, ours.spec.kv_heads, 23, ours.spec.head_dim)


def test_decoding_with_the_cache_equals_transformers(pair: Any) -> None:
    ours, theirs = pair
    ids = torch.randint(3, 97, (1, 19))
    with torch.no_grad():
        expected = theirs(ids).logits
        logits, cache = ours(ids[:, :9], empty_cache(ours.spec))
        steps = [logits]
        for start, stop in ((9, 12), *((i, i + 1) for i in range(12, 19))):
            logits, cache = ours(ids[:, start:stop], cache)
            steps.append(logits)
    assert (torch.cat(steps, 1) - expected).abs().max() <= 1e-4


def test_without_weights_it_takes_no_memory() -> None:
    config = SMALL | {"model_type": "llama", "vocab_size": 1_000_000_000}
    assert all(value.is_meta for value in build(decoder_spec(config)).parameters())


def test_weights_of_another_shape_are_named() -> None:
    spec = decoder_spec(SMALL | {"model_type": "llama"})
    weights = {name: torch.zeros(item.shape) for name, item in spec.tensors().items()}
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj"):
        build(spec, weights)
