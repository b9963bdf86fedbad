"""ONNX Runtime Mobile: the .ort format with its required operators, and the vendor's tables for NNAPI and Core ML."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from octavo import api
from octavo.core.placement import TABLE
from octavo.errors import BadInput
from octavo.runtimes.onnx.mobile import mobile_placement


def net(path: Path, batch: int | str = 1) -> Path:
    """Conv → Relu → Erf, [batch, 3, 8, 8]: neither table has Erf for NNAPI."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Erf", ["b"], ["y"], "erf"),
    ]
    shapes = {"x": [batch, 3, 8, 8], "y": [batch, 4, 6, 6]}
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in shapes.items()]
    made = helper.make_model(helper.make_graph(nodes, "net", *ends, [weight]))
    made.ir_version = 8
    save(made, path)
    return path


def test_the_tables_say_what_a_phone_would_take(tmp_path: Path) -> None:
    found = {item.op: item for item in mobile_placement(net(tmp_path / "net.onnx"))}
    assert [item.unit for item in found.values()] == ["npu", "npu", "cpu"]
    assert "not in the table for NNAPI" in found["erf (Erf)"].reason
    assert {item.source for item in found.values()} == {TABLE}


def test_a_free_length_keeps_all_on_the_cpu(tmp_path: Path) -> None:
    found = mobile_placement(net(tmp_path / "net.onnx", batch="N"))
    assert {item.unit for item in found} == {"cpu"}
    assert all("dynamic shape of x" in item.reason for item in found)


def test_a_damaged_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xfe no model")
    with pytest.raises(BadInput, match=r"bad\.onnx"):
        mobile_placement(tmp_path / "bad.onnx")


def test_a_static_model_becomes_an_ort_file_with_its_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from tests.static_models import convnet, static_model

    model = static_model(convnet(), (torch.zeros(1, 3, 16, 16),))
    monkeypatch.setattr(sys.modules[api.export.__module__], "load", lambda directory: model)
    out = tmp_path / "net.ort"
    record = api.export(tmp_path, runtime="onnxruntime", unit="npu", out=out)
    assert record.weights == "by numerics only"
    assert out.read_bytes()[4:8] == b"ORTM"
    listed = (tmp_path / "net.required_operators.config").read_text()
    assert "QLinearConv" in listed
    assert "/tmp" not in listed
    assert any("differ by at most" in note for note in record.notes)
    assert {row["source"] for row in record.placement} == {TABLE}
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 16, 16), np.float32)})[0].shape == (1, 10)
