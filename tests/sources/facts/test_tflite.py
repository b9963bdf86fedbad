"""The models of MLPerf Tiny against their published costs, and damaged files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.core.liveness import activation_peak
from octavo.errors import BadInput
from octavo.sources.facts.open import read_facts
from octavo.sources.facts.tflite import tflite_facts

PUBLISHED = {  # Banbury et al., MLPerf Tiny Benchmark (2021), and its models: 12.5, 7.5 and 2.7 million MACs
    "vision/resnet8_cifar10/pretrainedResnet": (12_501_632, 77_706),
    "vision/resnet8_cifar10/pretrainedResnet_quant": (12_501_632, 77_706),
    "vision/vww/vww_96_float": (7_489_664, 210_850),
    "vision/vww/vww_96_int8": (7_489_664, 210_850),
    "audio/kws/kws_ref_model_float32": (2_656_768, 22_604),
    "audio/kws/kws_ref_model": (2_656_768, 22_604),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_costs(shared: Path, name: str) -> None:
    facts = read_facts(shared / f"data/{name}.tflite")
    assert (facts.macs, facts.parameters) == PUBLISHED[name]
    assert facts.missing == ()


def test_depthwise_is_told_apart(shared: Path) -> None:
    facts = read_facts(shared / "data/vision/vww/vww_96_int8.tflite")
    kinds = [operator.kind for operator in facts.operators]
    assert (kinds.count("conv"), kinds.count("depthwise"), kinds.count("matmul")) == (14, 13, 1)


def test_the_peak_of_resnet8_and_a_quarter_of_it_in_int8(shared: Path) -> None:
    floats, codes = (
        read_facts(shared / f"data/vision/resnet8_cifar10/{name}.tflite")
        for name in ("pretrainedResnet", "pretrainedResnet_quant")
    )
    # The shortcut, and the input and output of the second convolution: 32 × 32 × 16 each.
    assert activation_peak(floats).bytes == 3 * 32 * 32 * 16 * 4
    assert activation_peak(codes).bytes == 3 * 32 * 32 * 16
    assert floats.stored_bytes == 4 * 77_706
    assert {weight.stored for weight in codes.weights} == {"int8", "int32"}


def test_agrees_with_the_interpreter(shared: Path) -> None:
    """Every edge's shape, as LiteRT itself has it."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = shared / "data/audio/kws/kws_ref_model.tflite"
    interpreter = litert.Interpreter(str(path))
    theirs = {item["name"]: tuple(item["shape"].tolist()) for item in interpreter.get_tensor_details()}
    facts = tflite_facts(path)
    for edge in facts.edges:
        assert edge.shape == theirs[edge.name]
    for weight in facts.weights:
        assert weight.shape == theirs[weight.name]


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_bad_input_or_harmless(shared: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = (shared / "data/audio/kws/kws_ref_model.tflite").read_bytes()
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 6))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "d.tflite"
    path.write_bytes(damaged)
    with suppress(BadInput):  # any other error fails the test
        tflite_facts(path)
