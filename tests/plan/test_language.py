"""Bytes per token by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.decoder_facts import decoder_facts
from octavo.core.decoder_shape import DecoderShape, Experts
from octavo.core.facts import ModelFacts, WeightFacts
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan.device import Device, Unit
from octavo.plan.language import (
    COMPILED,
    NPU,
    TokenReads,
    bytes_per_token,
    decode,
    prefill_rate,
    prompt_macs,
    shape_label,
    time_to_first_token,
)

UNKNOWN = Quantity(None, "1", Kind.UNKNOWN)


def shape(**changes: Any) -> DecoderShape:
    """Llama-3.2-1B: the values of its published config.json."""
    found: dict[str, Any] = {
        "family": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "layers": 16,
        "heads": 32, "kv_heads": 8, "head_dim": 64, "context": 131072, "tied": True, "windows": (None,) * 16,
        "caches": (True,) * 16,
    }  # fmt: skip
    return DecoderShape(**(found | changes))


LLAMA = decoder_facts(shape(), "llama-3.2-1b")
# Gemma's way: every second layer keeps 512 positions.
SLIDING = decoder_facts(shape(windows=(512, None) * 8), "sliding")
MIXTURE = decoder_facts(shape(experts=Experts(32, 4, 1024, (True,) * 16)), "mixture")
BARE = ModelFacts("7B", "size", 7_000_000_000, 7_000_000_000)


def half_byte(weight: WeightFacts) -> float:
    """Four bits for matrices of the layers, a byte for the head and the table; vectors are not counted."""
    if len(weight.shape) < 2:
        return 0.0
    return weight.parameters * (1.0 if weight.role in ("head", "embedding") else 0.5)


def device(bandwidth: float | None = 80e9, **changes: Any) -> Device:
    memory = Quantity(None, "B/s", Kind.UNKNOWN) if bandwidth is None else Quantity(bandwidth, "B/s", Kind.DATASHEET)
    figures = dict.fromkeys(
        ("ram", "slice_bytes", "dram_energy", "battery", "sustained_power", "peak_power", "thermal_tau"), UNKNOWN
    )
    return Device(
        name="d",
        title="D",
        year=2026,
        kind="phone",
        soc="S",
        aliases=(),
        units=(),
        bandwidth=memory,
        **figures,
        **changes,
    )


def share(value: float, unit: str = "1") -> Quantity:
    return Quantity(value, unit, Kind.ESTIMATED, 0.8 * value, 1.2 * value, source="a fit", date="2026-01-01")


def known(quantity: Quantity) -> tuple[float, float, float]:
    assert quantity.value is not None
    assert quantity.low is not None
    assert quantity.high is not None
    return quantity.low, quantity.value, quantity.high


def test_llama_1b_at_four_bits_by_hand() -> None:
    # q and o 2048 × 2048, k and v 512 × 2048, three of 8192 × 2048, in sixteen layers; a tied head, read as a head.
    layers = 16 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048)
    head = 128256 * 2048
    cache = 16 * 2 * 512 * 4096 * 2
    reads = bytes_per_token(LLAMA, half_byte, 4096, "f16")
    assert (layers, head, cache) == (973_078_528, 262_668_288, 134_217_728)
    assert reads.weights == layers / 2 + head
    assert reads.kv == cache
    assert reads.total == 883_425_280
    assert reads.scores == 32 * 16 * 4096


def test_a_table_that_is_only_looked_up_is_not_read() -> None:
    untied = decoder_facts(shape(tied=False))
    table, head = 128256 * 2048, 128256 * 2048
    assert untied.parameters == LLAMA.parameters + head
    row = bytes_per_token(untied, half_byte, 0).weights - bytes_per_token(LLAMA, half_byte, 0).weights
    assert row == pytest.approx(table / 128256)  # one row of the table; the head that was tied is one of its own


@pytest.mark.parametrize(("kv_type", "per_element"), [("f16", 2), ("q8_0", 34 / 32), ("q4_0", 18 / 32)])
def test_the_cache_in_its_type(kv_type: str, per_element: float) -> None:
    assert bytes_per_token(LLAMA, half_byte, 1000, kv_type).kv == 1000 * 16 * 2 * 512 * per_element


def test_a_sliding_layer_keeps_its_window() -> None:
    full = 2 * 512 * 2
    assert bytes_per_token(SLIDING, half_byte, 4096).kv == 8 * full * (512 + 4096)
    assert bytes_per_token(SLIDING, half_byte, 100).kv == 16 * full * 100


def test_a_mixture_reads_the_experts_it_passes_through() -> None:
    attention, router = 2 * 2048 * 2048 + 2 * 512 * 2048, 32 * 2048
    layer = attention + router + 4 * 3 * 1024 * 2048
    assert bytes_per_token(MIXTURE, half_byte, 0).weights == pytest.approx(16 * layer / 2 + 128256 * 2048)


def test_weight_bytes_by_name_are_the_same() -> None:
    table = {weight.name: half_byte(weight) for weight in LLAMA.weights}
    assert bytes_per_token(LLAMA, table, 512) == bytes_per_token(LLAMA, half_byte, 512)


def test_a_bare_size_reads_all_it_has_and_says_less() -> None:
    reads = bytes_per_token(BARE, half_byte, 4096)
    assert reads == TokenReads(3.5e9, 0.0, 0.0, known=False)
    phone = device(decode_efficiency={"llamacpp": share(0.7)})
    sure = known(decode(phone, replace(reads, known=True), runtime="llamacpp", precision="w4"))
    less = known(decode(phone, reads, runtime="llamacpp", precision="w4"))
    assert less[0] < sure[0]
    assert less[2] > sure[2]


def test_decode_is_bandwidth_times_efficiency_over_bytes() -> None:
    reads = bytes_per_token(LLAMA, half_byte, 4096)
    phone = device(80e9, decode_efficiency={"llamacpp": share(0.5), "genie.w4a16": share(0.8)})
    assert known(decode(phone, reads, runtime="llamacpp", precision="q4_0"))[1] == pytest.approx(40e9 / reads.total)
    on_npu = decode(phone, reads, runtime="genie", precision="w4a16")
    assert on_npu.value == pytest.approx(64e9 / (reads.total + NPU.score_bytes * reads.scores))
    assert on_npu.kind is Kind.ESTIMATED
    assert "80 GB/s" in on_npu.source


def test_another_precision_of_the_runtime_is_wider_and_says_so() -> None:
    phone = device(decode_efficiency={"genie.w4a16": share(0.8), "genie.w4": share(0.4)})
    reads = bytes_per_token(LLAMA, half_byte, 1024)
    low, value, high = known(decode(phone, reads, runtime="genie", precision="w8a16"))
    assert value == decode(phone, reads, runtime="genie", precision="w4a16").value
    assert (low / value, high / value) == pytest.approx((0.8 / 1.5, 1.2 * 1.5))
    said = decode(phone, reads, runtime="genie", precision="w8")
    assert said.value == decode(phone, reads, runtime="genie", precision="w4").value
    assert "as genie.w4" in said.source


def test_a_measured_architecture_comes_before_the_general_fit() -> None:
    key = f"genie.w4a16@{shape_label(LLAMA)}"
    phone = device(decode_efficiency={"genie.w4a16": share(0.8), key: share(0.6), "genie.w4a16@1": share(0.1)})
    for facts, expected in ((LLAMA, 0.6), (MIXTURE, 0.8)):
        reads = bytes_per_token(facts, half_byte, 1024)
        found = decode(phone, reads, runtime="genie", precision="w4a16")
        assert found.value == pytest.approx(expected * 80e9 / (reads.total + NPU.score_bytes * reads.scores))
    assert decode(phone, reads, runtime="genie", precision="w8a16").value == found.value


def test_what_nobody_measured_has_a_wide_default_and_says_so() -> None:
    low, value, high = known(decode(device(), bytes_per_token(LLAMA, half_byte, 0), runtime="genie", precision="w4"))
    assert high / low > 2
    assert "nothing was measured" in decode(device(), TokenReads(1e9, 0, 0), runtime="x", precision="w4").source
    assert low < value < high


def test_no_bandwidth_no_figure() -> None:
    found = decode(device(None), TokenReads(1e9, 0, 0), runtime="llamacpp", precision="w4")
    assert found.kind is Kind.UNKNOWN
    assert "bandwidth unknown" in found.source


def test_a_cpu_decodes_no_faster_than_it_multiplies() -> None:
    slow = Unit("cpu", "CPU", {"int8": Quantity(1e9, "op/s", Kind.DATASHEET)}, {}, {}, ("int8",))
    phone = device(decode_efficiency={"llamacpp": share(0.7)})
    found = decode(phone, TokenReads(1e6, 0, 0), runtime="llamacpp", precision="w4", unit=slow, macs=1e9)
    assert found.value == pytest.approx(0.5)
    assert "held to" in found.source


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_of_one_token_is_one_token() -> None:
    language = LLAMA.language
    assert language is not None
    one = language.macs_per_token + language.head_macs + language.attention_macs
    assert prompt_macs(LLAMA, 1) == one == LLAMA.macs
    assert prompt_macs(LLAMA, 3) == 3 * language.macs_per_token + language.head_macs + 6 * language.attention_macs


def test_a_compiled_graph_takes_whole_chunks() -> None:
    assert prompt_macs(LLAMA, 128, "genie") == prompt_macs(LLAMA, 1, "genie")
    assert prompt_macs(LLAMA, 4096, "genie") == 32 * prompt_macs(LLAMA, 1, "genie")
    assert prompt_macs(LLAMA, 1, "genie", 1024) < prompt_macs(LLAMA, 1, "genie", 4096)


def test_a_prompt_takes_its_arithmetic_over_the_rate() -> None:
    phone = device(prefill_efficiency={"genie.w4a16": share(16e12, "op/s")})
    reads = bytes_per_token(LLAMA, half_byte, 1024)
    first = time_to_first_token(phone, LLAMA, 1024, reads, runtime="genie", precision="w4a16")
    assert first.value == pytest.approx(2e3 * prompt_macs(LLAMA, 1024, "genie") / 16e12)


def test_a_share_is_of_the_units_peak_and_without_either_nothing_is_known() -> None:
    npu = Unit("npu", "NPU", {"int8": Quantity(40e12, "op/s", Kind.DATASHEET)}, {}, {}, ("int8",))
    phone = device(prefill_efficiency={"qnn": share(0.25)})
    assert prefill_rate(phone, "qnn", "w4a16", npu).value == pytest.approx(10e12)
    low, _, high = known(prefill_rate(device(), "qnn", "w4a16", npu))
    assert high / low > 4
    assert prefill_rate(device(), "qnn", "w4a16").kind is Kind.UNKNOWN


def test_a_prompt_takes_at_least_one_reading_of_the_weights() -> None:
    phone = device(prefill_efficiency={"llamacpp": share(1e15, "op/s")}, decode_efficiency={"llamacpp": share(0.5)})
    reads = bytes_per_token(LLAMA, half_byte, 8)
    first = time_to_first_token(phone, LLAMA, 8, reads, runtime="llamacpp", precision="w4")
    assert first.value == pytest.approx(1e3 * reads.total / 40e9)


def test_what_makes_no_sense_is_refused() -> None:
    network = ModelFacts("net", "network", 1, 1)
    with pytest.raises(BadInput, match="decodes no tokens"):
        bytes_per_token(network, half_byte, 1)
    with pytest.raises(BadInput, match="131072"):
        bytes_per_token(LLAMA, half_byte, 200_000)
    with pytest.raises(BadInput, match="KV cache type"):
        bytes_per_token(LLAMA, half_byte, 1, "q9")
    with pytest.raises(BadInput, match="0 tokens"):
        prompt_macs(LLAMA, 0)
    with pytest.raises(BadInput, match="131072"):
        prompt_macs(LLAMA, 200_000, "genie")


# -- whatever the numbers ---------------------------------------------------------------------------------------------

CONTEXTS = st.integers(0, 131072)
RUNTIMES = st.sampled_from(["llamacpp", *COMPILED])


def speed(bandwidth: float, reads: TokenReads, runtime: str) -> tuple[float, float, float]:
    return known(decode(device(bandwidth), reads, runtime=runtime, precision="w4"))


@given(st.floats(1e9, 1e12), st.floats(1e9, 1e12), CONTEXTS, RUNTIMES)
def test_a_faster_memory_never_gives_fewer_tokens(one: float, other: float, context: int, runtime: str) -> None:
    reads = bytes_per_token(LLAMA, half_byte, context)
    slow, fast = speed(min(one, other), reads, runtime), speed(max(one, other), reads, runtime)
    assert all(a <= b for a, b in zip(slow, fast, strict=True))


@given(st.floats(1e9, 1e12), st.floats(1e9, 1e12), st.integers(1, 64), st.floats(1e11, 1e13))
def test_a_faster_memory_never_delays_the_first_token(one: float, other: float, tokens: int, rate: float) -> None:
    """Neither its value nor an end of its interval, on either side of where arithmetic becomes the bound."""
    reads = bytes_per_token(LLAMA, half_byte, 1024)
    prefills = {"llamacpp": Quantity(rate, "op/s", Kind.MEASURED, 0.9 * rate, 3 * rate)}
    slow, fast = (
        known(time_to_first_token(device(bandwidth, prefill_efficiency=prefills), LLAMA, tokens, reads,
                                  runtime="llamacpp", precision="w4"))
        for bandwidth in sorted((one, other))
    )  # fmt: skip
    assert all(a >= b * (1 - 1e-12) for a, b in zip(slow, fast, strict=True))


@given(CONTEXTS, CONTEXTS, RUNTIMES, st.sampled_from([LLAMA, SLIDING, MIXTURE]))
def test_a_longer_context_never_gives_more_tokens(one: int, other: int, runtime: str, facts: ModelFacts) -> None:
    short, long = (bytes_per_token(facts, half_byte, context) for context in sorted((one, other)))
    assert short.kv <= long.kv
    assert all(a >= b for a, b in zip(speed(8e10, short, runtime), speed(8e10, long, runtime), strict=True))


@given(st.floats(1, 32), st.floats(1, 32), RUNTIMES)
def test_fewer_bits_are_never_slower(one: float, other: float, runtime: str) -> None:
    few, many = (
        bytes_per_token(LLAMA, lambda weight, bits=bits: weight.parameters * bits / 8, 1024)
        for bits in sorted((one, other))
    )
    assert all(a >= b for a, b in zip(speed(8e10, few, runtime), speed(8e10, many, runtime), strict=True))


@given(st.integers(1, 131072), st.integers(1, 131072), RUNTIMES)
def test_a_longer_prompt_is_never_less_work(one: int, other: int, runtime: str) -> None:
    short, long = (prompt_macs(SLIDING, tokens, runtime) for tokens in sorted((one, other)))
    assert short <= long


@given(st.floats(1e3, 1e12), st.floats(1e9, 1e12), RUNTIMES, st.sampled_from(["w4", "w4a16", "q4_0", "fp16"]))
def test_the_interval_holds_the_value(nbytes: float, bandwidth: float, runtime: str, precision: str) -> None:
    phone = device(bandwidth, decode_efficiency={"genie.w4a16": share(0.8)})
    low, value, high = known(decode(phone, TokenReads(nbytes, 0, 0), runtime=runtime, precision=precision))
    assert 0 < low <= value <= high


def test_a_plan_costs_next_to_nothing() -> None:
    table = {weight.name: half_byte(weight) for weight in LLAMA.weights}
    phone, start = device(), time.perf_counter()
    for context in range(1000):
        decode(phone, bytes_per_token(LLAMA, table, context), runtime="llamacpp", precision="w4")
    assert time.perf_counter() - start < 1.0
