"""Candidates and their order, reasons, remedies; and that a better device never does worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_models import LLAMA_3B, LLAMA_8B, SMALL, device, known, llama, network

from octavo.core.facts import ModelFacts
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan.cost import Setting, fits
from octavo.plan.device import Coefficients, Device
from octavo.plan.memory import Memory
from octavo.plan.planner import DevicePlan, plan, precision_bits
from octavo.plan.reckon import unknown
from octavo.plan.remedy import remedies
from octavo.plan.schemes import KNOWN
from octavo.plan.sentence import answer
from octavo.plan.weights import scale_of
from octavo.sources.facts.params import bare_size


def planned(facts: ModelFacts, on: Device | None = None, *, granted: Quantity | None = None, context: int | None = 4096,
            reserve: float = 0.0, kv: str | None = None, **names: tuple[str, ...]) -> DevicePlan:  # fmt: skip
    on = on or device()
    at = context if facts.language else None
    setting = Setting(granted or on.slice_bytes, reserve, at, min(512, (at or 2) // 2), kv)
    return plan(facts, [on], [setting], scale=scale_of(facts), **names)[0]


def test_every_candidate_has_figures_or_a_reason():
    for facts in (llama(LLAMA_3B), network(), bare_size("3B")):
        found = planned(facts)
        assert found.candidates
        for candidate in found.candidates:
            if candidate.fits:
                assert candidate.costs is not None
                assert candidate.memory is not None
                assert candidate.reason == ""
            else:
                assert candidate.reason


def test_what_fits_comes_first_and_of_it_the_most_bits():
    found = planned(llama(LLAMA_3B), granted=known(5e9, "B"))
    assert found.best is not None
    assert (found.best.scheme, found.best.runtime, found.best.unit) == ("w8", "llamacpp", "cpu")
    fitting = [c.fits is True for c in found.candidates]
    assert fitting == sorted(fitting, reverse=True)
    groups = [(precision_bits(KNOWN[c.scheme]) < 4, c.tight) for c in found.candidates if c.fits]
    assert groups == sorted(groups)
    ours = [c for c in found.candidates if c.fits and not c.tight and c.made]
    bits = [min(8.0, precision_bits(KNOWN[c.scheme])) for c in ours]
    assert bits == sorted(bits, reverse=True)


def test_more_than_eight_bits_are_no_reason_to_be_slower():
    found = planned(llama(SMALL), context=1024)
    assert found.best is not None
    assert found.best.scheme == "w8"


def test_what_does_not_fit_has_numbers_and_no_speed():
    found = planned(llama(LLAMA_8B), schemes=("fp16",), runtimes=("llamacpp",))
    (candidate,) = found.candidates
    assert found.best is None
    assert candidate.costs is None
    assert candidate.reason.startswith("does not fit: 16.8 GB (weights 16.1 GB, KV cache 537 MB")
    assert "of 4 GB" in candidate.reason
    assert "0.018 tokens/s" in answer(found)


@pytest.mark.parametrize(("names", "reason"), [
    ({"schemes": ("w8",), "runtimes": ("coreml",)}, "Core ML does not reach Test Phone: LiteRT, ONNX Runtime"),
    ({"schemes": ("w8",), "units": ("dsp",)}, "Test Phone has no DSP: it has CPU, GPU and NPU"),
    ({"schemes": ("fp32",), "runtimes": ("qnn",)}, "not in fp32: take fp16"),
    ({"schemes": ("w4g32",), "runtimes": ("qnn",)}, "activations quantised together with the weights"),
    ({"schemes": ("w8a16",), "runtimes": ("litert",), "units": ("cpu",)}, "16-bit integer activations"),
    ({"schemes": ("w8",), "runtimes": ("llamacpp",)}, "not operator graphs"),
    ({"schemes": ("w4g32",), "runtimes": ("onnxruntime",)}, "groups along the input of a matrix"),
])  # fmt: skip
def test_a_pair_that_cannot_be_says_why(names, reason):
    found = planned(network(), **names)
    assert found.candidates
    assert all(reason in c.reason and c.refused and c.fits is False for c in found.candidates)
    assert answer(found).startswith("No:")


def test_a_runtime_without_the_format_says_what_it_has_instead():
    found = planned(llama(SMALL), context=512, schemes=("w8g32",), runtimes=("litert",), units=("cpu",))
    assert "litert has no exact form of w8g32" in found.candidates[0].reason
    assert "int8 in blocks" in found.candidates[0].reason


def test_a_scheme_stored_in_no_fewer_bytes_than_a_finer_one_is_out_unless_named():
    found = planned(llama(LLAMA_3B), runtimes=("llamacpp",))
    reasons = {c.scheme: c.reason for c in found.candidates if c.refused}
    assert "no fewer bytes than w4g32" in reasons["w4"]
    named = planned(llama(LLAMA_3B), runtimes=("llamacpp",), schemes=("w4g32", "w4"))
    assert not any(c.refused for c in named.candidates)


def test_what_octavo_cannot_write_yet_says_so_and_comes_later():
    found = planned(network())
    assert found.best is not None
    assert found.best.made
    static = next(c for c in found.candidates if c.scheme == "w8a8" and c.unit == "npu" and c.runtime == "qnn")
    assert static.fits
    assert not static.made
    assert any("cannot export w8a8" in note for note in static.notes)


@pytest.mark.parametrize(("total", "granted", "verdict"), [
    ((90, 95, 99), (100, 100, 100), (True, False)),
    ((90, 95, 101), (100, 100, 100), (True, True)),
    ((90, 95, 99), (97, 100, 110), (True, True)),
    ((90, 105, 120), (100, 100, 100), (False, True)),
    ((101, 105, 120), (100, 100, 100), (False, False)),
    ((101, 105, 120), (90, 100, 103), (False, True)),
])  # fmt: skip
def test_a_verdict_whose_intervals_overlap_is_tight(total, granted, verdict):
    low, value, high = total
    memory = Memory(value, 0, 0, 0, value, low, high)
    assert fits(memory, Quantity(granted[1], "B", Kind.ESTIMATED, granted[0], granted[2])) == verdict


def test_a_slice_that_nobody_knows_gives_no_verdict():
    found = planned(llama(SMALL), granted=unknown("B"), context=512)
    assert found.best is None
    assert {c.fits for c in found.candidates if not c.refused} == {None}
    assert answer(found).startswith("Cannot say")


def test_each_remedy_alone_makes_it_fit():
    facts = llama(LLAMA_3B)
    found = planned(facts, context=32768, schemes=("w8",), runtimes=("llamacpp",), granted=known(6e9, "B"))
    (candidate,) = found.candidates
    offered = {remedy.change: remedy for remedy in remedies(found, candidate)}
    assert {"shorter context", "smaller KV cache", "fewer parameters", "larger slice"} <= set(offered)
    shorter = offered["shorter context"].to
    assert isinstance(shorter, int)
    assert found.holds(found.memory(candidate, shorter))
    assert not found.holds(found.memory(candidate, shorter + 256))
    cache = offered["smaller KV cache"].to
    assert isinstance(cache, str)
    assert found.holds(found.memory(candidate, kv_type=cache))
    wider = planned(facts, context=32768, schemes=("w8",), runtimes=("llamacpp",),
                    granted=known(float(offered["larger slice"].to), "B"))  # fmt: skip
    assert wider.best is not None


def test_fewer_bits_and_parameters_are_computed_for_a_bare_size():
    found = planned(bare_size("7B"), schemes=("w8",), granted=known(5e9, "B"), reserve=0.3)
    offered = {remedy.change: remedy for remedy in remedies(found, found.candidates[0])}
    assert offered["fewer bits"].to == "w3g32"  # w4 takes exactly 3.5 GB, and the runtime comes on top
    assert offered["fewer parameters"].to == 3_500_000_000 - 20_000_000
    assert offered["larger slice"].to == round((7_000_000_000 + 20_000_000) / 0.7)


def test_a_verdict_does_not_rest_on_energy():
    facts = llama(LLAMA_3B)
    dear = device(dram_energy=known(1.0, "J/B"), sustained_power=unknown("W"))
    for one, other in zip(planned(facts).candidates, planned(facts, dear).candidates, strict=True):
        assert (one.scheme, one.runtime, one.unit, one.fits) == (other.scheme, other.runtime, other.unit, other.fits)


def test_a_roofline_is_wide_and_says_that_nothing_was_measured():
    found = planned(network(), schemes=("w8",), runtimes=("onnxruntime",))
    costs = found.candidates[0].costs
    assert costs is not None
    assert costs.latency is not None
    assert costs.latency.kind is Kind.ESTIMATED
    assert costs.latency.low is not None
    assert costs.latency.high is not None
    assert costs.latency.high > 3 * costs.latency.low
    assert "nothing measured" in costs.latency.source


def test_a_fit_to_measurements_comes_before_the_roofline():
    fitted = Coefficients(
        "tflite", "npu", "w8a8", {"inference": 0.5, "hundred_operators": 10.0}, 0.8, 1.5, 0.15, 0.6, 100, 27,
        {"inference": (1.0, 1.0)}, "test rows", "2026-11-22",
    )  # fmt: skip
    found = planned(network(), device(coefficients=(fitted,)), schemes=("w8a8",))
    by_unit = {c.unit: c.costs.latency for c in found.candidates if c.runtime == "litert" and c.costs}
    assert by_unit["npu"] is not None
    assert by_unit["npu"].value == pytest.approx(0.5 + 10 * 4 / 100)
    assert by_unit["npu"].low == pytest.approx(0.8 * 0.9)
    assert "27 models" in by_unit["npu"].source
    assert by_unit["cpu"] is not None
    assert "nothing measured" in by_unit["cpu"].source


@settings(deadline=None, max_examples=30)
@given(st.floats(1e9, 1e11), st.floats(1.0, 8.0), st.sampled_from(["w8", "w4g32"]), st.integers(1, 2048))
def test_a_faster_memory_never_decodes_slower(bandwidth, factor, scheme, context):
    facts = llama(SMALL)
    rates = []
    for speed in (bandwidth, bandwidth * factor):
        found = planned(facts, device(bandwidth=known(speed, "B/s")), context=context, schemes=(scheme,),
                        runtimes=("llamacpp",))  # fmt: skip
        costs = found.candidates[0].costs
        assert costs is not None
        assert costs.rate is not None
        assert costs.rate.value is not None
        rates.append(costs.rate.value)
    assert rates[0] <= rates[1] * (1 + 1e-9)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e8, 1e10), st.floats(1.0, 4.0))
def test_a_larger_slice_never_holds_less(granted, factor):
    facts = llama(LLAMA_3B)
    small, large = (planned(facts, granted=known(g, "B")) for g in (granted, granted * factor))
    holds = [{(c.scheme, c.runtime, c.unit) for c in p.candidates if c.fits} for p in (small, large)]
    assert holds[0] <= holds[1]


@pytest.mark.parametrize(("names", "message"), [
    ({"schemes": ("w4g33",)}, "Unknown scheme 'w4g33'. Nearest: .*w4g32"),
    ({"runtimes": ("lama.cpp",)}, "Nearest: .*llamacpp"),
    ({"units": ("tpu",)}, "Unknown unit 'tpu'"),
])  # fmt: skip
def test_unknown_names_are_answered_with_the_nearest(names, message):
    with pytest.raises(BadInput, match=message):
        planned(network(), **names)


def test_weights_that_are_read_in_place_take_no_ram():
    micro = device(
        slice_bytes=known(1e6, "B"), weight_storage=known(8e6, "B"),
        runtime_memory={"onnxruntime": known(1e4, "B")},
    )  # fmt: skip
    facts = network(channels=32, size=28)
    found = planned(facts, micro, schemes=("w8",), runtimes=("onnxruntime",))
    memory = found.candidates[0].memory
    assert memory is not None
    assert memory.total == (memory.activations or 0) + memory.runtime
    tiny = replace(micro, weight_storage=known(1e3, "B"))
    assert "for weights" in planned(facts, tiny, schemes=("w8",), runtimes=("onnxruntime",)).candidates[0].reason


def finished(width: float) -> DevicePlan:
    """A network of int8 weights that is planned as it is, with activations of `width` bytes."""
    facts = network()
    weights = tuple(replace(w, stored="int8" if len(w.shape) > 1 else "fp32") for w in facts.weights)
    facts = replace(facts, weights=weights, edges=tuple(replace(edge, element_bytes=width) for edge in facts.edges))
    on = device()
    return plan(facts, [on], [Setting(on.slice_bytes)], scale=scale_of(facts, file_runtime="litert"))[0]


def test_a_finished_file_that_computes_in_floats_runs_on_no_integer_unit():
    dynamic, static = ({c.unit: c for c in finished(width).candidates if c.runtime == "litert"} for width in (4.0, 1.0))
    assert "activations" in dynamic["npu"].reason
    assert dynamic["cpu"].fits
    assert static["npu"].fits
    assert static["npu"].costs is not None


def test_what_a_tiny_model_takes_is_starting_its_operators():
    tiny = next(c for c in planned(bare_size("0.5M")).candidates if c.runtime == "llamacpp").costs.rate
    assert tiny.value < 5_000
    assert tiny.high < 20_000
    assert "start its operators" in tiny.source
    first = planned(bare_size("7B"), schemes=("w4",), runtimes=("llamacpp",)).candidates[0]
    assert 0.95 < first.costs.rate.value / (0.6 * 50e9 / 3.5e9) < 1  # which is hardly felt where reading takes long
    phone = device()
    measured = tuple(replace(unit, overhead_ms={"llamacpp": known(1e-4, "ms")}) for unit in phone.units)
    quick = planned(bare_size("0.5M"), replace(phone, units=measured))
    assert next(c for c in quick.candidates if c.runtime == "llamacpp").costs.rate.value > tiny.value
