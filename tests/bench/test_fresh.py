"""A fresh process's memory is the model's and the runtime's, wherever the session lives, and not the caller's."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from octavo.bench.fresh import measure_fresh
from octavo.errors import BadInput

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
COLUMNS, ROWS = 4096, 4096  # 64 MiB of weights


@pytest.fixture(scope="module")
def big_matmul(tmp_path_factory):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((COLUMNS, ROWS), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, ROWS])],
        [weight],
    )
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture(autouse=True)
def importable_openers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize(("opener", "processes"), [("onnx", 1), ("elsewhere", 2)])
def test_memory_and_times_of_a_fresh_process(big_matmul, opener, processes):
    ballast = np.ones(300 << 20, np.uint8)
    inputs = {"x": np.ones((1, COLUMNS), np.float32)}
    found = measure_fresh(f"bench_openers:{opener}", big_matmul, inputs, threads=1, repeat=5, warmup=1, timeout=120)
    assert found.processes == processes
    assert 64 << 20 < found.peak_memory_bytes < 280 << 20 < len(ballast), "the weights, not the caller's ballast"
    assert found.peak_rss_bytes - found.baseline_bytes == found.peak_memory_bytes
    assert 10 << 20 < found.baseline_bytes < processes * (120 << 20)
    assert found.latency_ms.n >= 5
    assert 0 < found.latency_ms.p50 <= found.latency_ms.p99
    assert found.load_ms > 1
    assert found.first_ms > 0
    assert len(found.calls) == found.latency_ms.n
    record = found.as_dict()
    assert json.dumps(record)
    assert record["tokens_per_second"] is None


def test_what_the_opener_raises_arrives(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        measure_fresh("bench_openers:onnx", tmp_path / "none.onnx", {})
    with pytest.raises(BadInput, match="names no function"):
        measure_fresh("bench_openers:nothing", tmp_path, {})
