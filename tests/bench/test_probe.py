"""What the probe measures is real, has an interval, and knows when noise drowned it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.bench.probe import Effort, Trial, float_products, quantity, runtime_figures, stream
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.runtimes.llama import tiny as llama
from octavo.runtimes.onnx import tiny as onnx

SHORT = Effort(2, 0.5)
OPENER = "octavo.runtimes.base:open_artifact"


def measured(found: Quantity, unit: str) -> float:
    """The value of a figure that must be measured, in `unit`, with an interval around it."""
    assert (found.kind, found.unit) == (Kind.MEASURED, unit)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high
    assert found.source
    assert found.date
    return found.value


def chain(path: Path, length: int, write: object) -> Trial:
    return Trial(path.name, path, write(path, length))  # type: ignore[operator]


def test_memory_is_faster_than_a_gigabyte_per_second() -> None:
    found = stream(2, 8 << 20, 2 << 30, SHORT)
    for rate in (found.read, found.copy, found.read_one):
        assert 1e9 < measured(rate, "B/s") < 1e13


def test_the_stream_stays_within_the_memory_that_is_spare() -> None:
    assert "64 MiB" in stream(1, 1 << 30, 1 << 20, Effort(1, 0.1)).read.source


def test_a_matrix_product_does_more_per_second_than_one_with_a_vector() -> None:
    found = float_products(2, SHORT)
    assert measured(found["matrix"], "op/s") > measured(found["vector"], "op/s") > 1e7


def test_onnxruntime_takes_memory_and_time_per_operator(tmp_path: Path) -> None:
    short, long = (chain(tmp_path / f"{length}.onnx", length, onnx.write_chain) for length in (2, 202))
    product = tmp_path / "product.onnx"
    trial = Trial("product", product, onnx.write_product(product, "int8", 64, 256, 256))
    found = runtime_figures("onnxruntime", OPENER, short, long, 200, [trial], threads=1, effort=SHORT)
    assert 5e6 < (found.memory.value or 0) < 5e8
    assert found.memory.low is None  # one process was measured: no interval to show
    assert 1e-5 < measured(found.overhead_ms, "ms") < 10
    assert measured(found.seconds["product"], "s") < 1


def test_llamacpp_takes_memory_and_time_per_operator(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    short, long = (chain(tmp_path / f"{length}.gguf", length, llama.write_chain) for length in (1, 41))
    found = runtime_figures("llamacpp", OPENER, short, long, 40 * llama.OPERATORS, threads=1, effort=SHORT)
    assert 1e6 < (found.memory.value or 0) < 1e9
    assert 1e-6 < measured(found.overhead_ms, "ms") < 10


def test_an_overhead_below_the_noise_is_unknown(tmp_path: Path) -> None:
    """The two chains exchanged: more operators seem to take less time, as they do when a neighbour steals the core."""
    short, long = (chain(tmp_path / f"{length}.onnx", length, onnx.write_chain) for length in (2, 402))
    found = runtime_figures("onnxruntime", OPENER, long, short, 400, threads=1, effort=SHORT)
    assert found.overhead_ms.kind is Kind.UNKNOWN
    assert "noise" in found.overhead_ms.source


def test_an_opener_that_does_not_exist_is_named(tmp_path: Path) -> None:
    short = chain(tmp_path / "1.onnx", 1, onnx.write_chain)
    with pytest.raises(BadInput, match=r"octavo\.errors:absent"):
        runtime_figures("none", "octavo.errors:absent", short, short, 1, threads=1, effort=SHORT)


@pytest.mark.parametrize("number", ["fp32", "int8", "int4"])
def test_the_products_compute_what_their_weights_say(tmp_path: Path, number: str) -> None:
    """A product that the runtime skipped or folded away would measure nothing."""
    from onnx import load, numpy_helper

    from octavo.runtimes.base import open_artifact

    path = tmp_path / "product.onnx"
    inputs = onnx.write_product(path, number, 3, 64, 32)
    session = open_artifact(path, threads=1)
    found = session.step(inputs)[0]["y"]
    session.close()
    weight = numpy_helper.to_array(load(path).graph.initializer[0])
    if number == "int4":
        codes = np.stack([weight & 15, weight >> 4], -1).reshape(32, 64).astype(np.float32) - 8
        weight = (codes * 2.0**-7).T
    expected = inputs["x"].astype(np.float64) @ weight.astype(np.float64)
    assert np.allclose(found, expected, atol=0 if number == "int8" else 0.05 * np.abs(expected).max())


def test_the_median_stands_between_its_extremes() -> None:
    found = quantity([3.0, 1.0, 2.0], "s", "three")
    assert (found.low, found.value, found.high, found.n) == (1.0, 2.0, 3.0, 3)
