"""Published configs against their published parameter counts, every family of the table against transformers."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.decoder_facts import kv_bytes
from octavo.errors import BadInput
from octavo.sources.facts.huggingface import huggingface_facts
from octavo.sources.facts.open import read_facts
from tests.builders import tiny_model

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], int, int]] = {  # config.json of the hub, parameters, active parameters
    "Llama-3.2-1B": (
        LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
                 "tie_word_embeddings": True},
        1_235_814_400, 1_235_814_400,
    ),
    "Llama-3.1-8B": (LLAMA, 8_030_261_248, 8_030_261_248),
    "Llama-3.1-70B": (
        LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
        70_553_706_496, 70_553_706_496,
    ),
    "Qwen2.5-7B": (
        {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
         "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
         "max_position_embeddings": 131072},
        7_615_616_512, 7_615_616_512,
    ),
    "gemma-2-2b": (
        {"model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
         "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
        2_614_341_888, 2_614_341_888,
    ),
    "Mixtral-8x7B": (
        {"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
         "num_experts_per_tok": 2, "max_position_embeddings": 32768},
        46_702_792_704, 12_879_925_248,
    ),
    "gpt2": (
        {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
         "n_ctx": 1024},
        124_439_808, 124_439_808,
    ),
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = EXPERTS | {"moe_intermediate_size": 16}
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
OTHER_KEYS = ("layer_types", "sliding_window", "rope_scaling", "rope_parameters", "mlp_only_layers", "text_config",
              "decoder_sparse_step", "head_dim", "architectures", "attention_types", "multi_query", "n_positions",
              "quantization_config", "use_sliding_window", "max_window_layers", "sliding_window_pattern")  # fmt: skip
OLD = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {  # keys of their own that a tiny model needs; None takes a common one away
    **{family: {} for family in ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "smollm3")},
    **{family: {} for family in ("olmo", "olmo2", "olmo3", "granite", "cohere", "starcoder2", "stablelm")},
    **dict.fromkeys(("mixtral", "olmoe", "granitemoe"), EXPERTS),
    "gemma": {"head_dim": 8},
    "qwen2_moe": SMALL_EXPERTS | {"shared_expert_intermediate_size": 48},
    "qwen3_moe": SMALL_EXPERTS | {"head_dim": 8},
    "gpt_oss": EXPERTS | {"head_dim": 8},
    "deepseek_v2": LATENT | {"head_dim": 4},
    "deepseek_v3": LATENT | {"n_group": 2, "topk_group": 1},
    "phi": {"num_key_value_heads": 4},
    "gpt2": OLD | {"hidden_size": None, "intermediate_size": None},
    "gptj": OLD | {"hidden_size": None, "intermediate_size": None, "rotary_dim": 8},
    "bloom": {"n_layer": 4, "n_head": 4, "intermediate_size": None},
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
                "intermediate_size": None},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "intermediate_size": None},
}  # fmt: skip
COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
WITHOUT_SHARED_KEYS = {  # families that go by other names, or have no grouped heads
    "gpt2": ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    "gptj": ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    "bloom": ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    "gpt_neo": ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "gpt_neox": ("num_key_value_heads",),
    "opt": ("num_key_value_heads",),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    config, parameters, active = PUBLISHED[name]
    facts = huggingface_facts(config)
    assert (facts.parameters, facts.active_parameters) == (parameters, active)
    assert sum(weight.parameters for weight in facts.weights) == parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_counts_like_transformers(family: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    left_out = WITHOUT_SHARED_KEYS.get(family, ())
    keys = {key: value for key, value in (COMMON | FAMILIES[family]).items() if value is not None}
    config = transformers.AutoConfig.for_model(family, **{k: v for k, v in keys.items() if k not in left_out})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert huggingface_facts(json.loads(config.to_json_string())).parameters == expected
    assert huggingface_facts(config.to_dict()).parameters == expected


def test_the_cache_of_latent_attention_is_one_vector() -> None:
    config = COMMON | LATENT | {"model_type": "deepseek_v3"}
    language = huggingface_facts(config).language
    assert language is not None
    assert kv_bytes(language, 10) == 4 * 10 * (8 + 4) * 2


def test_headers_give_the_stored_bytes(stories260k: Path, stories3m: Path) -> None:
    for directory in (stories260k, stories3m):
        facts = read_facts(directory)
        header = int.from_bytes((directory / "model.safetensors").read_bytes()[:8], "little")
        assert facts.stored_bytes == (directory / "model.safetensors").stat().st_size - 8 - header
        assert facts.stored_bytes == 4 * facts.parameters
        assert facts.missing == ()
        assert {weight.stored for weight in facts.weights} == {"fp32"}


def test_shards_and_types_are_seen(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    facts = read_facts(tiny_model(tmp_path / "m", "qwen2", dtype="bfloat16", shards=3))
    assert {weight.stored for weight in facts.weights} == {"bf16"}
    assert facts.stored_bytes == 2 * facts.parameters
    read = {name for operator in facts.operators for name in operator.weights}
    assert read == {weight.name for weight in facts.weights}


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "qwen3_moe"])
def test_a_checkpoint_of_a_family_of_the_table(family: str, tmp_path: Path) -> None:
    """The stored tensors are what is there, under whatever names; masks that old checkpoints hold are no parameters."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    left_out = WITHOUT_SHARED_KEYS.get(family, ())
    keys = {key: value for key, value in (COMMON | FAMILIES[family]).items() if value is not None}
    config = transformers.AutoConfig.for_model(family, **{k: v for k, v in keys.items() if k not in left_out})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held = safetensors.load_file(path) | {"transformer.h.0.attn.bias": torch.zeros(1, 1, 64, 64)}
    safetensors.save_file(held, path)
    facts = read_facts(tmp_path)
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.stored_bytes == 4 * facts.parameters
    assert facts.active_parameters == huggingface_facts(config.to_dict()).active_parameters
    # What each operator reads is known, although the checkpoint cuts and names its tensors otherwise.
    assert {name for o in facts.operators for name in o.weights} == {weight.name for weight in facts.weights}
    read = sum(weight.parameters * share for weight, share in facts.read_shares)
    assert read < facts.active_parameters
    held["transformer.wte.more"] = torch.zeros(3, 3, dtype=torch.float16)
    safetensors.save_file(held, path)
    facts = read_facts(tmp_path)
    assert any("Which operator reads which stored tensor" in text for text in facts.missing)
    assert facts.stored_bytes == 4 * (facts.parameters - 9) + 18


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = tiny_model(tmp_path / "m", shards=3)
    sorted(model.glob("*.safetensors"))[0].unlink()
    with pytest.raises(BadInput, match=r"1 of .* shards missing: model-00001"):
        read_facts(model)


def test_an_unknown_family_is_planned_and_said(tmp_path: Path) -> None:
    facts = huggingface_facts(LLAMA | {"model_type": "folio"})
    assert facts.parameters == 8_030_261_248
    assert any("Unknown family 'folio'" in text for text in facts.missing)


def test_a_config_alone_says_that_sizes_are_not_stored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for path in (tmp_path, tmp_path / "config.json"):
        facts = read_facts(path)
        assert facts.stored_bytes == 0
        assert any("without weights" in text for text in facts.missing)


def test_the_text_part_of_a_multimodal_model() -> None:
    text = PUBLISHED["gemma-2-2b"][0]
    facts = huggingface_facts({"model_type": "paligemma", "text_config": text, "vision_config": {"hidden_size": 1}})
    assert facts.parameters == 2_614_341_888
    assert any("not its vision part" in text for text in facts.missing)
    # google/gemma-3-4b-it, which leaves much to transformers' defaults
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    facts = huggingface_facts({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}})
    assert facts.parameters == 3_880_263_168  # Gemma 3 report (arXiv 2503.19786): 675 M embedding + 3,209 M others
    assert facts.language is not None
    assert sum(layer.window == 1024 for layer in facts.language.kv) == 29
    # Qwen/Qwen2-VL-7B keeps its text keys at the top
    flat = PUBLISHED["Qwen2.5-7B"][0] | {"model_type": "qwen2_vl", "vision_config": {"depth": 32}}
    assert huggingface_facts(flat).parameters == 7_615_616_512


def test_a_quantised_checkpoint_is_planned_from_its_shapes(stories260k: Path, tmp_path: Path) -> None:
    config = json.loads((stories260k / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((stories260k / "model.safetensors").read_bytes())
    facts = read_facts(tmp_path)
    assert facts.parameters == 260032
    assert any("quantised already" in text for text in facts.missing)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", -1), ("hidden_size", 0), ("vocab_size", "many"), ("intermediate_size", 1.5),
        ("num_attention_heads", True), ("num_key_value_heads", 5), ("num_attention_heads", 33),
        ("max_position_embeddings", -4), ("hidden_size", 10**30), ("num_hidden_layers", 10**9),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "folio"])
def test_impossible_values_are_named(family: str, key: str, value: Any) -> None:
    with pytest.raises(BadInput) as raised:
        huggingface_facts(LLAMA | {"model_type": family, key: value})
    assert str(value) in str(raised.value)


def test_a_size_that_is_null_is_a_size_that_is_missing() -> None:
    with pytest.raises(BadInput, match="needs the key 'vocab_size'"):
        huggingface_facts(LLAMA | {"vocab_size": None}, "m")


def test_what_is_no_decoder_needs_its_weights(stories260k: Path, tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 64}
    with pytest.raises(BadInput, match="'bert' is no decoder"):
        huggingface_facts(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((stories260k / "model.safetensors").read_bytes())
    facts = read_facts(tmp_path)
    assert (facts.kind, facts.parameters) == ("size", 260032)


def test_a_scaling_that_cannot_be_exported_can_be_planned() -> None:
    facts = huggingface_facts(LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    assert facts.parameters == 8_030_261_248
    assert any("yarn" in text for text in facts.missing)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 100), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


@given(st.dictionaries(st.sampled_from(sorted({*LLAMA, *LATENT, *SMALL_EXPERTS, *OTHER_KEYS})), JUNK, max_size=4),
       st.sampled_from(["llama", "folio", "mixtral", "gpt2", "gemma3_text", "deepseek_v3", "qwen2_moe"]))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_junk_is_bad_input_or_harmless(junk: dict[str, Any], family: str) -> None:
    with suppress(BadInput):  # any other error fails the test
        huggingface_facts(LLAMA | {"num_hidden_layers": 2} | junk | {"model_type": family})


def test_facts_of_eighty_layers_are_quick() -> None:
    config = PUBLISHED["Llama-3.1-70B"][0]
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        huggingface_facts(config)
        best = min(best, time.perf_counter() - start)
    assert best < 0.2  # a few ms on an idle machine; what is held here is that nothing is quadratic
