"""The decoder's account of a checkpoint against transformers' own models, name by name and shape by shape."""

from __future__ import annotations

import dataclasses

import pytest
from builders import SIZES, tiny_config

from octavo.core.architecture import FAMILIES, decoder_spec
from octavo.errors import BadInput

transformers = pytest.importorskip("transformers")
HEAD = "lm_head.weight"


def checkpoint(config):
    """Names and shapes of the tensors that transformers saves for `config` (nothing is allocated)."""
    import torch

    with torch.device("meta"):
        state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    left_out = {HEAD} if config.tie_word_embeddings else set()
    return {name: tuple(value.shape) for name, value in state.items() if name not in left_out}


def shapes(config):
    return {name: tensor.shape for name, tensor in decoder_spec(config).tensors().items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_of_transformers_own_model(family, tied):
    config = tiny_config(family, tie_word_embeddings=tied)
    assert shapes(config.to_dict()) == checkpoint(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_are_where_transformers_has_them(family):
    config = tiny_config(family, attention_bias=True, mlp_bias=True)
    assert shapes(config.to_dict()) == checkpoint(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_sizes_and_one_head_per_key_are_followed(family):
    config = tiny_config(family, hidden_size=48, head_dim=16, num_attention_heads=3, num_key_value_heads=3)
    assert shapes(config.to_dict()) == checkpoint(config)


REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_assumes(family):
    silent = {"model_type": family} | {key: SIZES[key] for key in REQUIRED} | {"num_hidden_layers": 8}
    if family in ("gemma2", "gemma3_text", "qwen3"):
        spoken = transformers.AutoConfig.for_model(**silent)
    else:  # these derive head_dim from the other sizes
        spoken = transformers.AutoConfig.for_model(**silent | {"head_dim": None})
    said = {key: value for key, value in spoken.to_dict().items() if key not in ("bos_token_id", "eos_token_id")}
    if family == "mistral" or family == "smollm3":
        silent["num_key_value_heads"] = said["num_key_value_heads"] = 4
    if family.startswith("qwen") or family.startswith("gemma"):
        silent["num_key_value_heads"] = said["num_key_value_heads"] = 4
    assert decoder_spec(silent) == decoder_spec(said)


def old_spelling(family, scaling):
    """A config as it was written before transformers 5: rope_theta and rope_scaling stand apart."""
    config = {"model_type": family, **SIZES, "num_hidden_layers": 8, "sliding_window": 16, "rope_theta": 5e5}
    if family == "gemma3_text":
        config |= {"rope_local_base_freq": 2e4, "sliding_window_pattern": 6}
    return config | ({"rope_scaling": scaling} if scaling else {})


def new_spelling(family, scaling):
    full = {"rope_type": "default", "rope_theta": 5e5} | {k: v for k, v in (scaling or {}).items() if k != "type"}
    if scaling and "type" in scaling:
        full["rope_type"] = scaling["type"]
    config = {"model_type": family, **SIZES, "num_hidden_layers": 8, "sliding_window": 16, "rope_parameters": full}
    if family == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": 2e4}
        config["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
        config["layer_types"] = ["full_attention" if i == 5 else "sliding_attention" for i in range(8)]
    if family == "gemma2":
        config["layer_types"] = ["full_attention" if i % 2 else "sliding_attention" for i in range(8)]
    return config


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    "scaling",
    [None, LLAMA3, {"rope_type": "linear", "factor": 8.0}, {"type": "linear", "factor": 2.0}],
    ids=["plain", "llama3", "linear", "linear, oldest"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_of_rope_mean_the_same(family, scaling):
    old, new = decoder_spec(old_spelling(family, scaling)), decoder_spec(new_spelling(family, scaling))
    assert old == new
    assert old.rope_theta == 5e5
    assert (old.rope_scaling is None) == (scaling is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_and_rope_layers_are_those_transformers_derives(family):
    config = tiny_config(family, num_hidden_layers=12, sliding_window=16, use_sliding_window=True, max_window_layers=3)
    spec, said = decoder_spec(config.to_dict()), config.to_dict()
    kinds = said.get("layer_types")
    if kinds:
        assert spec.layer_sliding == tuple(kind == "sliding_attention" for kind in kinds)
    else:
        assert set(spec.layer_sliding) == {family in ("mistral", "phi3")}
    if family == "smollm3":
        assert spec.layer_rope == tuple(bool(on) for on in said["no_rope_layers"])
        assert not all(spec.layer_rope)
    else:
        assert all(spec.layer_rope)
    silent = {key: value for key, value in said.items() if key not in ("layer_types", "no_rope_layers")}
    if family != "smollm3":  # it needs layer_types to know its windows
        assert decoder_spec(silent).layer_sliding == spec.layer_sliding
    assert decoder_spec(silent).layer_rope == spec.layer_rope


def llama(**changes):
    return {"model_type": "llama", **SIZES} | changes


def test_roles_say_what_each_tensor_does():
    roles = {name: tensor.role for name, tensor in decoder_spec(llama(attention_bias=True)).tensors().items()}
    assert roles["model.embed_tokens.weight"] == "embedding"
    assert roles[HEAD] == "head"
    assert roles["model.layers.1.self_attn.q_proj.weight"] == "matmul"
    assert roles["model.layers.1.self_attn.q_proj.bias"] == roles["model.norm.weight"] == "other"


@pytest.mark.parametrize(
    ("family", "nearest"), [("gemma3", "gemma3_text"), ("lama", "llama"), ("qwen2_moe", "qwen2"), ("", "Known: gemma2")]
)
def test_an_unknown_family_is_refused_with_the_nearest(family, nearest):
    with pytest.raises(BadInput, match=rf"unknown model family '{family}'.*{nearest}"):
        decoder_spec(llama(model_type=family))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key):
    config = llama()
    del config[key]
    with pytest.raises(BadInput, match=f"a llama needs the key '{key}'"):
        decoder_spec(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6 attention heads cannot share 4 key/value heads"),
        ({"num_key_value_heads": -2}, "cannot share -2"),
        ({"num_attention_heads": 0, "head_dim": None}, "makes no sense"),
        ({"num_attention_heads": -4}, "sizes must be positive, found -4"),
        ({"num_attention_heads": 0}, "sizes must be positive, found 0"),
        ({"vocab_size": 0}, "sizes must be positive"),
        ({"num_hidden_layers": 0}, "sizes must be positive"),
        ({"hidden_size": "wide"}, "makes no sense"),
        ({"vocab_size": None}, "makes no sense"),
        ({"rope_parameters": 7}, "makes no sense"),
        ({"rope_scaling": "linear"}, "makes no sense"),
        ({"eos_token_id": "end"}, "makes no sense"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling 'yarn' is not carried yet"),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 3}, "layer_types has 3 entries for 2 layers"),
        ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers has 3 entries for 2 layers"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        decoder_spec(llama(**changes))


def test_one_end_of_text_or_several():
    assert decoder_spec(llama(eos_token_id=2)).eos == (2,)
    assert decoder_spec(llama(eos_token_id=[2, 5])).eos == (2, 5)
    assert decoder_spec(llama(eos_token_id=None)).eos == ()


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        decoder_spec(llama()).layers = 3
