"""Hugging Face directories as transformers writes them: read exactly, or refused with the file and the tensor named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from builders import edit_config, rewrite, tiny_llama, tiny_model

from octavo.core.architecture import FAMILIES, read_config
from octavo.errors import BadInput
from octavo.sources.huggingface import HEAD, INDEX, open_huggingface

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
FILE = "model.safetensors"
TORCH = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """Directories made once: {kind: path}; tests that damage one take `damaged` instead."""
    base = tmp_path_factory.mktemp("llamas")
    made = {name: tiny_llama(base / name, dtype=dtype) for name, dtype in TORCH.items()}
    made["sharded"] = tiny_llama(base / "sharded", shards=3)
    made["tied"] = tiny_llama(base / "tied", tie_word_embeddings=True)
    return made


@pytest.fixture
def damaged(llamas, tmp_path):
    """A function that gives a copy of one of `llamas` to damage."""

    def copy(kind="fp32"):
        return shutil.copytree(llamas[kind], tmp_path / kind)

    return copy


def as_transformers_loads(directory, dtype):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).state_dict()


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "sharded", "tied"])
def test_every_tensor_is_what_transformers_loads(llamas, kind):
    source = open_huggingface(llamas[kind])
    stored = kind if kind in TORCH else "fp32"
    loaded = as_transformers_loads(llamas[kind], getattr(torch, TORCH[stored]))
    assert set(source.tensors) == set(loaded) - ({HEAD} if kind == "tied" else set())
    for name, spec in source.tensors.items():
        assert source.dtype(name) == stored
        values = loaded[name].float().numpy()
        assert source.floats(name).shape == spec.shape == values.shape
        assert np.array_equal(source.floats(name).view(np.uint32), values.view(np.uint32))
        assert np.array_equal(source.floats(name, 3, 7), values[3:7])
        assert source.rows(name, 3, 7).dtype == {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}[stored]
    source.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_opens_as_transformers_saves_it(tmp_path, family):
    source = open_huggingface(tiny_model(tmp_path / family, family, num_hidden_layers=1))
    assert source.spec.family == family
    assert source.program.body["model_type"] == family
    kv = (1, source.spec.kv_heads, -1, source.spec.head_dim)
    assert [state.shape for state in source.state] == [kv] * 2 * source.spec.layers
    source.close()


def test_a_sharded_model_is_one_model(llamas):
    source, whole = open_huggingface(llamas["sharded"]), open_huggingface(llamas["fp32"])
    assert len({file.path for file in source.files.values()}) > 1
    assert list(source.tensors) == list(whole.tensors)
    assert all(np.array_equal(source.rows(name), whole.rows(name)) for name in whole.tensors)


def test_tokenizer_files_come_along(damaged):
    directory = damaged()
    (directory / "tokenizer.json").write_bytes(b"{}")
    (directory / "chat_template.jinja").write_bytes(b"{{ x }}")
    assets = open_huggingface(directory).assets
    assert assets["tokenizer.json"] == b"{}"
    assert assets["chat_template.jinja"] == b"{{ x }}"
    assert "config.json" not in assets


def refused(directory):
    with pytest.raises(BadInput) as caught:
        open_huggingface(directory)
    return str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_named(damaged):
    directory = damaged("sharded")
    shards = sorted(directory.glob("*.safetensors"))
    shards[1].unlink()
    assert f"1 of {len(shards)} shards missing: {shards[1].name}" in refused(directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', "[" * 100_000])
def test_a_damaged_index_is_named(damaged, text):
    directory = damaged("sharded")
    (directory / INDEX).write_text(text)
    assert INDEX in refused(directory)


def test_a_tensor_in_two_files_is_refused(damaged):
    directory = damaged()
    shutil.copy(directory / FILE, directory / "other.safetensors")
    message = refused(directory)
    assert "stands in both" in message
    assert "other.safetensors" in message


def test_a_directory_with_only_a_pickle_is_refused_without_opening_it(damaged):
    directory = damaged()
    (directory / FILE).unlink()
    (directory / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert "pytorch_model.bin is a pickle and is not opened; save it as safetensors" in refused(directory)
    (directory / "pytorch_model.bin").unlink()
    assert "no .safetensors file" in refused(directory)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file_is_named(damaged, keep):
    directory = damaged()
    (directory / FILE).write_bytes((directory / FILE).read_bytes()[:keep])
    assert str(directory / FILE) in refused(directory)


# --- names and shapes -------------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(damaged):
    directory, gone = damaged(), "model.layers.1.mlp.up_proj.weight"
    rewrite(directory / FILE, lambda tensors: tensors.pop(gone))
    assert f"1 tensors missing, first {gone}. The download is not complete." in refused(directory)


def test_a_misnamed_tensor_is_named_with_the_nearest(damaged):
    directory = damaged()

    def rename(tensors):
        tensors["model.layers.1.mlp.upproj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    rewrite(directory / FILE, rename)
    message = refused(directory)
    assert "first model.layers.1.mlp.up_proj.weight. Nearest: model.layers.1.mlp.upproj.weight" in message


def test_a_tensor_that_the_family_does_not_have_is_named(damaged):
    directory = damaged()
    rewrite(directory / FILE, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))
    assert "1 tensors that a llama does not have, first model.layers.0.self_attn.q_proj.bias" in refused(directory)


def test_old_rotary_buffers_are_let_pass(damaged):
    directory, name = damaged(), "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(directory / FILE, lambda tensors: tensors.update({name: torch.zeros(4)}))
    assert name not in open_huggingface(directory).tensors


def test_a_config_that_disagrees_with_a_shape_is_refused_with_both(damaged):
    directory = damaged()
    edit_config(directory, intermediate_size=80)
    message = refused(directory)
    assert f"{FILE}: model.layers.0.mlp.gate_proj.weight is [64, 32], but config.json says [80, 32]" in message


def test_a_config_with_more_layers_than_the_file_is_refused(damaged):
    directory = damaged()
    edit_config(directory, num_hidden_layers=3)
    assert "9 tensors missing, first model.layers.2." in refused(directory)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float64"])
def test_a_weight_that_is_no_float16_or_32_is_named(damaged, dtype):
    directory, name = damaged(), "model.layers.0.mlp.down_proj.weight"
    rewrite(directory / FILE, lambda tensors: tensors.update({name: tensors[name].to(getattr(torch, dtype))}))
    stored = {"int8": "I8", "uint8": "U8", "float64": "F64"}[dtype]
    message = refused(directory)
    assert f"{FILE}: {name} has dtype {stored}" in message
    assert ("float32" in message) if dtype == "float64" else ("quantised already" in message)


# --- tied heads -------------------------------------------------------------------------------------------------------


def test_a_tied_model_that_stores_its_head_as_well_is_one_tensor(damaged):
    directory = damaged("tied")
    rewrite(directory / FILE, lambda tensors: tensors.update({HEAD: tensors["model.embed_tokens.weight"].clone()}))
    source = open_huggingface(directory)
    assert HEAD not in source.tensors
    assert source.spec.tied


def test_a_tied_head_that_differs_is_refused_with_the_way_out(damaged):
    directory = damaged("tied")

    def head(tensors):
        tensors[HEAD] = tensors["model.embed_tokens.weight"].clone()
        tensors[HEAD][95, 31] += 1

    rewrite(directory / FILE, head)
    assert '"tie_word_embeddings": false' in refused(directory)
    edit_config(directory, tie_word_embeddings=False)
    assert open_huggingface(directory).tensors[HEAD].role == "head"


def test_an_untied_model_needs_its_head(damaged):
    directory = damaged()
    rewrite(directory / FILE, lambda tensors: tensors.pop(HEAD))
    assert f"first {HEAD}" in refused(directory)


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=r"config\.json: "):
        read_config(tmp_path / "config.json")


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json\. Give a Hugging Face model directory"):
        read_config(tmp_path / "config.json")


def test_an_unknown_family_is_refused_with_the_nearest(damaged):
    directory = damaged()
    edit_config(directory, model_type="llamma")
    assert "unknown model family 'llamma'. Nearest: llama" in refused(directory)


def test_a_missing_key_is_named(damaged):
    directory = damaged()
    edit_config(directory, remove=("hidden_size",))
    assert "a llama needs the key 'hidden_size'" in refused(directory)


def test_the_config_is_carried_as_it_is(llamas):
    config = json.loads((llamas["fp32"] / "config.json").read_text())
    assert open_huggingface(llamas["fp32"]).program.body == config
