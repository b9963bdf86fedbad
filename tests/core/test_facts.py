"""Liveness against a brute force, a decoder's graph against sums by hand, and the KV cache's exact bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.architecture import decoder_spec
from octavo.core.decoder_facts import decoder_facts, kv_bytes, prefill_peak
from octavo.core.decoder_shape import shape_of
from octavo.core.facts import EdgeFacts, ModelFacts, OperatorFacts
from octavo.core.liveness import VIEWS, activation_peak
from octavo.errors import BadInput

LLAMA_8B: dict[str, Any] = {  # meta-llama/Llama-3.1-8B config.json
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
GEMMA_2B: dict[str, Any] = {  # google/gemma-2-2b config.json
    "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "sliding_window": 4096, "max_position_embeddings": 8192,
}  # fmt: skip


def facts_of(config: dict[str, Any], **changes: Any) -> ModelFacts:
    return decoder_facts(decoder_spec(config | changes))


def operator(op: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> OperatorFacts:
    return OperatorFacts("/".join(outputs), op, "other", 0, (), inputs, outputs)


def network(
    operators: list[OperatorFacts], sizes: dict[str, int], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> ModelFacts:
    edges = tuple(EdgeFacts(name, (size,), 1.0) for name, size in sizes.items())
    return ModelFacts("n", "network", 0, 0, (), tuple(operators), edges, inputs, outputs)


def brute_force(facts: ModelFacts, later: bool = False) -> int:
    """At each operator, add up every buffer that is needed by it, or was made before and is needed later (`later`:
    only those)."""
    sizes = {edge.name: edge.bytes for edge in facts.edges}
    owner = {name: name for name in sizes}
    for one in facts.operators:
        if one.op in VIEWS:
            owner[one.outputs[0]] = owner[one.inputs[0]]
    best, last = 0, len(facts.operators) - 1
    for at in range(len(facts.operators)):
        alive = set()
        for name in sizes:
            made = 0 if name in facts.inputs else min(i for i, o in enumerate(facts.operators) if name in o.outputs)
            uses = [i for i, o in enumerate(facts.operators) if name in o.inputs] + [made]
            end = last if name in facts.outputs else max(uses)
            if made <= at <= end and (not later or end > at or name in facts.outputs):
                alive.add(owner[name])
        best = max(best, sum(sizes[name] for name in alive))
    return best


@st.composite
def graphs(draw: st.DrawFn) -> ModelFacts:
    sizes = {f"in{i}": draw(st.integers(1, 50)) for i in range(draw(st.integers(1, 3)))}
    inputs, operators = tuple(sizes), []
    for i in range(draw(st.integers(1, 14))):
        read = tuple(draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3, unique=True)))
        if draw(st.integers(0, 3)) == 0:
            sizes[f"e{i}"] = sizes[read[0]]
            operators.append(operator("reshape", read[:1], (f"e{i}",)))
        else:
            written = tuple(f"e{i}.{j}" for j in range(draw(st.integers(1, 2))))
            sizes |= {name: draw(st.integers(1, 50)) for name in written}
            operators.append(operator("op", read, written))
    outputs = tuple(draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3, unique=True)))
    return network(operators, sizes, inputs, outputs)


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_the_peak_is_the_brute_force_one(facts: ModelFacts) -> None:
    peak = activation_peak(facts)
    assert peak.bytes == brute_force(facts)
    sizes = {edge.name: edge.bytes for edge in facts.edges}
    assert sum(sizes[name] for name in peak.edges) == peak.bytes


def test_a_residual_stays_alive_and_a_view_costs_nothing() -> None:
    steps = [operator("conv", ("x",), ("a",)), operator("Reshape", ("a",), ("b",)), operator("conv", ("b",), ("c",)),
             operator("Add", ("c", "x"), ("y",))]  # fmt: skip
    facts = network(steps, {"x": 10, "a": 100, "b": 100, "c": 50, "y": 50}, ("x",), ("y",))
    peak = activation_peak(facts)
    assert (peak.bytes, peak.operator, set(peak.edges)) == (160, "c", {"x", "a", "c"})
    assert activation_peak(facts, element_bytes=4).bytes == 640


def test_pointwise_operators_may_write_over_what_dies_with_them() -> None:
    def pointwise(inputs: tuple[str, ...], output: str) -> OperatorFacts:
        return dataclasses.replace(operator("Relu", inputs, (output,)), kind="activation")

    steps = [operator("conv", ("x",), ("a",)), pointwise(("a",), "b"), pointwise(("b",), "c"),
             pointwise(("c", "x"), "y")]  # fmt: skip
    sizes = {"x": 100, "a": 100, "b": 100, "c": 100, "y": 100}
    facts = network(steps, sizes, ("x",), ("y",))
    assert activation_peak(facts).bytes == 300
    assert activation_peak(facts, in_place=True).bytes == 200
    # The caller's input is not written over, nor what is read again, nor what has another size.
    assert activation_peak(network([pointwise(("x",), "y")], sizes, ("x",), ("y",)), in_place=True).bytes == 200
    kept = [steps[0], pointwise(("a",), "b"), operator("op", ("a", "b"), ("y",))]
    assert activation_peak(network(kept, sizes, ("x",), ("y",)), in_place=True).bytes == 300
    grown = network([steps[0], pointwise(("a",), "b")], sizes | {"b": 150}, ("x",), ("b",))
    assert activation_peak(grown, in_place=True).bytes == 250


@given(graphs(), st.data())
@settings(deadline=None)
def test_what_is_needed_later_is_never_written_over(facts: ModelFacts, data: st.DataObject) -> None:
    kinds = [data.draw(st.sampled_from(["other", "elementwise"])) for _ in facts.operators]
    steps = tuple(dataclasses.replace(o, kind=kind) for o, kind in zip(facts.operators, kinds, strict=True))
    facts = dataclasses.replace(facts, operators=steps)
    assert brute_force(facts, later=True) <= activation_peak(facts, in_place=True).bytes <= activation_peak(facts).bytes


def test_no_operators_is_no_peak() -> None:
    assert activation_peak(ModelFacts("7B", "size", 7, 7)).bytes == 0


def test_one_token_of_a_llama_costs_its_matrices() -> None:
    facts = facts_of(LLAMA_8B)
    language = facts.language
    assert language is not None
    layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336
    assert language.macs_per_token == 32 * layer
    assert language.head_macs == 128256 * 4096
    assert language.attention_macs == 32 * 2 * 4096
    assert facts.macs == language.macs_per_token + language.head_macs + language.attention_macs


@pytest.mark.parametrize(("kv_type", "per_token"), [("f32", 262144), ("f16", 131072), ("q8_0", 69632), ("q4_0", 36864)])
def test_the_kv_cache_is_exact(kv_type: str, per_token: int) -> None:
    language = facts_of(LLAMA_8B).language
    assert language is not None
    assert kv_bytes(language, 1, kv_type) == per_token
    assert kv_bytes(language, 131072, kv_type) == 131072 * per_token


def test_sliding_layers_keep_only_their_window() -> None:
    language = facts_of(GEMMA_2B).language
    assert language is not None
    position = 2 * 4 * 256 * 2  # keys and values, 4 heads of 256, f16
    assert kv_bytes(language, 4096) == 26 * 4096 * position
    assert kv_bytes(language, 8192) == 13 * (4096 + 8192) * position
    assert kv_bytes(language, 8192, chunk=512) == 13 * (4096 + 512 + 8192) * position


def test_a_context_beyond_the_limit_is_refused_with_the_limit() -> None:
    language = facts_of(LLAMA_8B).language
    assert language is not None
    with pytest.raises(BadInput, match=r"131073 positions is beyond the model's limit of 131072"):
        kv_bytes(language, 131073)
    with pytest.raises(BadInput, match=r"'q8'.*q8_0"):
        kv_bytes(language, 1, "q8")


@given(st.integers(0, 8191), st.sampled_from(["f32", "f16", "q8_0", "q4_0"]))
def test_a_longer_context_never_needs_less(context: int, kv_type: str) -> None:
    language = facts_of(GEMMA_2B, num_hidden_layers=3).language
    assert language is not None
    assert kv_bytes(language, context + 1, kv_type) >= kv_bytes(language, context, kv_type)


def test_prefill_grows_with_the_chunk_and_materialised_scores_with_the_past() -> None:
    facts = facts_of(LLAMA_8B)
    chunk = prefill_peak(facts, 512)
    # The residual, and gate, up and the activated gate of one layer; float32.
    assert chunk.bytes == 512 * (4096 + 3 * 14336) * 4
    assert prefill_peak(facts, 512, 4096).bytes == chunk.bytes
    whole = prefill_peak(facts, 512, 4096, scores="materialised")
    # The residual, and the scores before and after softmax.
    assert whole.bytes == 512 * (4096 + 2 * 32 * (512 + 4096)) * 4
    assert prefill_peak(facts, 512, logits=512).operator == "lm_head"
    assert prefill_peak(facts, 512, element_bytes=2.0).bytes * 2 == chunk.bytes


def test_prefill_of_one_layer_of_each_kind_is_prefill_of_all() -> None:
    facts = facts_of(LLAMA_8B, num_hidden_layers=5)
    assert prefill_peak(facts, 1).bytes == activation_peak(facts).bytes


def test_prefill_needs_a_decoder() -> None:
    with pytest.raises(BadInput, match="not a decoder"):
        prefill_peak(ModelFacts("7B", "size", 7, 7), 512)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "smollm3"])
def test_every_weight_is_read_by_an_operator(family: str) -> None:
    facts = facts_of(LLAMA_8B, model_type=family, num_hidden_layers=2, head_dim=128, sliding_window=None)
    read = {name for one in facts.operators for name in one.weights}
    assert read == {weight.name for weight in facts.weights}
    assert {name for one in facts.operators for name in one.inputs} <= {edge.name for edge in facts.edges}


def test_a_shape_names_the_tensors_its_family_has() -> None:
    for changes in ({}, {"model_type": "phi3"}, {"model_type": "qwen3", "head_dim": 128}):
        spec = decoder_spec(LLAMA_8B | {"num_hidden_layers": 2} | changes)
        assert shape_of(spec).tensors() == spec.tensors()


def test_facts_can_be_replaced_in() -> None:
    facts = dataclasses.replace(facts_of(LLAMA_8B), name="other")
    assert facts.name == "other"
    assert facts.macs > 0
