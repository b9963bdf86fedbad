"""Every family through llama.cpp itself against transformers: the same logits at every position.

Tiny random models (norms not ones, biases not zero), fp32 files, texts longer than the sliding windows. The largest
difference seen is printed (pytest -s).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import from_directory, model_of

from octavo.api.programs import ModelPrograms
from octavo.core.architecture import decoder_spec
from octavo.core.model import CompressedModel
from octavo.core.tensor import float_digest
from octavo.errors import Refused
from octavo.runtimes.base import no_progress
from octavo.runtimes.llamacpp import LlamaCpp

LIMIT = 2e-3
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SLIDING, FULL = "sliding_attention", "full_attention"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases, untied, llama3 rope": (
        "llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32},
        },
    ),
    "llama, linear rope, wide heads": (
        "llama",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0},
            "head_dim": 24,
            "num_key_value_heads": 4,
        },
    ),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "phi3": ("phi3", {"sliding_window": None}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma2, no window": (
        "gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "layer_types": [FULL] * 4},
    ),
    "gemma3_text, no window": (
        "gemma3_text",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "layer_types": [FULL] * 4},
    ),
    "gemma3_text, all layers sliding": (
        "gemma3_text",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "layer_types": [SLIDING] * 4},
    ),
    "smollm3": ("smollm3", {}),
}


def random_model(kind: str, changes: dict[str, Any]) -> tuple[Any, CompressedModel]:
    """A transformers model with nothing left at its default, and the same as a CompressedModel."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.08
            parameter.copy_(torch.randn_like(parameter) * spread + ("norm" in name and not kind.startswith("gemma")))
    body = json.loads(config.to_json_string(use_diff=False))
    weights = network.state_dict()
    values = {name: weights[name].numpy() for name in decoder_spec(body).tensors()}
    return network, model_of(body, values)


def lower(model: CompressedModel, path: Path) -> Path:
    """The model as a GGUF, of which every tensor has been read back."""
    runtime = LlamaCpp()
    manifest = runtime.carry(model)
    runtime.lower(model, manifest, path, ModelPrograms(model), no_progress)
    reader = runtime.read_back(path)
    for carried in manifest.tensors:
        if carried.carried_digest:
            assert float_digest(reader.stored(carried)) == carried.carried_digest, carried
        else:
            assert reader.digest(carried) == carried.digest, carried
    return path


def differences(network: Any, path: Path, ids: np.ndarray) -> np.ndarray:
    """How far llama.cpp's logits are from transformers', absolutely: [n, vocab]."""
    import torch

    with torch.no_grad():
        want = network(torch.tensor(ids)).logits.numpy()
    session = LlamaCpp().open(path, threads=1)
    try:
        got, _ = session.step({"ids": ids})
    finally:
        session.close()
    return np.abs(got["logits"] - want)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    network, model = random_model(*FAMILIES[family])
    ids = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (1, 100))
    found = differences(network, lower(model, tmp_path / "m.gguf"), ids)
    print(f"\n{family}: largest difference of logits {found.max():.2g}")
    assert found.max() <= LIMIT


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_what_remains_for_gemma_is_llama_cpps_gelu_in_half_precision(family: str, tmp_path: Path) -> None:
    """ggml looks GELU up in a table of fp16; with the same rounding in transformers the median falls tenfold.

    (Not the maximum: where both sides round an activation to different neighbours, the full step remains.)
    """
    import torch

    class HalfGelu(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()

    network, model = random_model(*FAMILIES[family])
    path = lower(model, tmp_path / "m.gguf")
    ids = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (1, 100))
    plain = np.median(differences(network, path, ids))
    for layer in network.model.layers:
        layer.mlp.act_fn = HalfGelu()
    half = np.median(differences(network, path, ids))
    print(f"\n{family}: median difference {plain:.2g}, with fp16 GELU {half:.2g}")
    assert half < plain / 10


@pytest.mark.parametrize("name", ["octavo-tiny-8m", "stories3M/hf", "stories260K/hf"])
def test_real_models(name: str, shared: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = shared / "data/lm" / name
    network = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    ids = np.random.default_rng(0).integers(3, network.config.vocab_size, (1, 300))
    found = differences(network, lower(from_directory(source), tmp_path / "m.gguf"), ids)
    print(f"\n{name}: largest difference of logits {found.max():.2g}")
    assert found.max() <= LIMIT


@pytest.mark.parametrize("kind", ["mistral", "phi3"])
def test_a_window_that_llama_cpp_does_not_compute_shortens_the_context(kind: str, tmp_path: Path) -> None:
    network, model = random_model(kind, {"sliding_window": 64})
    manifest = LlamaCpp().carry(model)
    assert "sliding window" in manifest.notes[-1]
    path = lower(model, tmp_path / "m.gguf")
    found = LlamaCpp().read_back(path)
    assert found.value(f"{manifest.extra['architecture']}.context_length") == 64
    ids = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (1, 64))
    assert differences(network, path, ids).max() <= LIMIT


@pytest.mark.parametrize(
    ("kind", "changes", "names"),
    [
        ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 48}, "attention scale"),
        ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": None}, "soft cap"),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, r"layers \[1, 3\] without RoPE"),
        ("qwen3", {"attention_bias": True}, "self_attn.q_proj.bias"),
        (
            "qwen2",
            {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}},
            "llama3 RoPE scaling",
        ),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(kind: str, changes: dict[str, Any], names: str) -> None:
    _, model = random_model(kind, changes)
    with pytest.raises(Refused, match=names):
        LlamaCpp().carry(model)
