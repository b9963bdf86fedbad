"""GGUF facts from headers: against gguf-py's own reader, written by gguf-py's own writer, and damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.core.decoder_facts import kv_bytes
from octavo.errors import BadInput
from octavo.sources.facts.gguf import gguf_facts
from tests.conftest import Built

gguf = pytest.importorskip("gguf")
HIDDEN, INNER, VOCABULARY = 64, 96, 128


def written(path: Path, architecture: str = "llama", *, experts: int = 0, layers: int = 2, **keys: Any) -> Path:
    """A decoder of random weights in gguf-py's hand: Q8_0 matrices, F32 norms, a separate head."""
    writer = gguf.GGUFWriter(str(path), architecture)
    numbers = {"block_count": layers, "embedding_length": HIDDEN, "feed_forward_length": INNER, "context_length": 256,
               "attention.head_count": 4, "attention.head_count_kv": 2} | keys  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"t{n}" for n in range(VOCABULARY)])
    writer.add_array("tokenizer.ggml.scores", [0.0] * VOCABULARY)

    def add(name: str, *shape: int) -> None:
        values = np.zeros(shape, np.float32)
        if len(shape) == 1:
            return writer.add_tensor(name, values)
        kind = gguf.GGMLQuantizationType.Q8_0
        return writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", VOCABULARY, HIDDEN)
    add("output_norm.weight", HIDDEN)
    add("output.weight", VOCABULARY, HIDDEN)
    for layer in range(layers):
        at = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            add(f"{at}.{name}.weight", HIDDEN)
        for name, rows in (("attn_q", HIDDEN), ("attn_k", HIDDEN // 2), ("attn_v", HIDDEN // 2)):
            add(f"{at}.{name}.weight", rows, HIDDEN)
        add(f"{at}.attn_output.weight", HIDDEN, HIDDEN)
        stack = (experts,) if experts else ()
        suffix = "_exps" if experts else ""
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            add(f"{at}.ffn_{name}{suffix}.weight", *stack, *shape)
        if experts:
            add(f"{at}.ffn_gate_inp.weight", experts, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_agrees_with_gguf_py(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    theirs = {t.name: (t.tensor_type.name.lower(), int(t.n_bytes)) for t in gguf.GGUFReader(path).tensors}
    facts = gguf_facts(path)
    ours = {w.name: (w.stored.replace("fp32", "f32"), w.stored_bytes) for w in facts.weights}
    assert ours == theirs
    layer = HIDDEN * HIDDEN * 3 + 3 * HIDDEN * INNER
    assert facts.parameters == 2 * VOCABULARY * HIDDEN + HIDDEN + 2 * (layer + 2 * HIDDEN)
    assert facts.language is not None
    assert facts.language.macs_per_token == 2 * layer
    assert (facts.language.tied, facts.language.context) == (False, 256)
    assert kv_bytes(facts.language, 256) == 2 * 256 * 2 * 32 * 2
    assert {name for operator in facts.operators for name in operator.weights} == set(theirs)


def test_experts_that_idle_are_not_active(tmp_path: Path) -> None:
    facts = gguf_facts(written(tmp_path / "m.gguf", experts=4, expert_count=4, expert_used_count=1))
    assert facts.parameters - facts.active_parameters == 2 * 3 * 3 * HIDDEN * INNER
    assert {weight.shape for weight in facts.weights if "up_exps" in weight.name} == {(4 * INNER, HIDDEN)}


def test_sliding_layers_of_gemma(tmp_path: Path) -> None:
    keys = {"attention.sliding_window": 32, "attention.key_length": 16, "attention.value_length": 16}
    facts = gguf_facts(written(tmp_path / "m.gguf", "gemma2", layers=4, **keys))
    assert facts.language is not None
    assert [layer.window for layer in facts.language.kv] == [32, None, 32, None]


def test_what_octavo_writes(built: Callable[[str], Built], tmp_path: Path) -> None:
    path = built("stories260K").artifacts["llamacpp"]
    facts = gguf_facts(path)
    assert facts.stored_bytes == sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    shutil.copy(path, tmp_path / "m-00001-of-00002.gguf")
    assert gguf_facts(tmp_path / "m-00001-of-00002.gguf").parameters == facts.parameters  # not split, whatever its name


def test_another_kind_of_model_gives_its_weights(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "clip.gguf"), "clip")
    writer.add_tensor("v.patch_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = gguf_facts(tmp_path / "clip.gguf")
    assert (facts.kind, facts.parameters) == ("size", 256)
    assert any("'clip' is no decoder" in text for text in facts.missing)


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_bad_input_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "m.gguf"
    original = source.read_bytes() if source.exists() else written(source, layers=1).read_bytes()
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 6))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 4096) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "d.gguf"
    path.write_bytes(damaged)
    with suppress(BadInput):  # any other error fails the test
        gguf_facts(path)
