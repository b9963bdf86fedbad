"""The outline of an ONNX file: everything but the data of its large weights, and nothing taken for granted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.errors import BadInput
from octavo.runtimes.onnx.outline import LARGE, outline
from octavo.runtimes.onnx.read import parse

onnx = pytest.importorskip("onnx")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    from onnx import helper, numpy_helper

    large = numpy_helper.from_array(np.ones((256, LARGE // 512), np.float32), "large")
    small = numpy_helper.from_array(np.arange(4, dtype=np.int64), "small")
    nodes = [helper.make_node("MatMul", ["x", "large"], ["y"])]
    values = [helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 256), ("y", LARGE // 512))]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [large, small])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, {"key": "value"})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_only_the_data_of_large_weights_is_left_out(file: Path) -> None:
    whole, bare = onnx.load_model(str(file)), parse(file, headers=True)
    assert len(outline(file)) < 1000 < LARGE < file.stat().st_size
    large = whole.graph.initializer[0]
    assert bare.graph.initializer[0].raw_data == b""
    large.ClearField("raw_data")
    assert bare == whole


def test_a_file_that_ends_early_is_refused(file: Path) -> None:
    data = file.read_bytes()
    for count in (0, 1, 5, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:count])
        with pytest.raises(BadInput, match="onnx"):
            parse(file, headers=True)
