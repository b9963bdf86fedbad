"""Hexagon through Qualcomm's provider, on its x86-64 emulation: placement, context binary, and failures as errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime_qnn")

from octavo.errors import BadInput, Missing, OctavoError
from octavo.runtimes.npu.qnn import QnnSession, check, compile_onnx


class Samples:
    """Eight random inputs, as onnxruntime's quantiser reads them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        random = np.random.default_rng(0)
        self.left = iter([{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(8)])

    def get_next(self) -> Any:
        return next(self.left, None)


def network(path: Path, batch: int | str = 1, tail: str = "Relu") -> Path:
    """Conv → Relu → Conv → `tail`, [batch, 3, 16, 16]."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(1)
    weights = {"w": random.standard_normal((8, 3, 3, 3)), "v": random.standard_normal((8, 8, 3, 3)) / 5}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "v"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node(tail, ["c"], ["y"], "tail"),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, n, 16, 16])] for name, n in (("x", 3), ("y", 8))
    ]
    held = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    made = helper.make_model(helper.make_graph(nodes, "net", *ends, held), opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    save(made, path)
    return path


def quantised(source: Path, out: Path) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source, out, Samples((1, 3, 16, 16)), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("qnn")
    return quantised(network(home / "float.onnx"), home / "int8.onnx")


def test_a_quantised_net_is_compiled_for_the_npu_with_its_ends(int8: Path, tmp_path: Path) -> None:
    report = compile_onnx(int8, tmp_path / "context.onnx")
    assert {item.unit for item in report.placement} == {"npu"}
    assert any("(QuantizeLinear)" in item.op for item in report.placement)  # what turns floats into codes as well
    import onnx

    (context,) = onnx.load(tmp_path / "context.onnx").graph.node
    assert context.op_type == "EPContext"
    if report.setting["emulated"]:
        assert report.cycles is None  # an emulation's clock is not the NPU's
        assert report.operators
        assert "emulation" in report.notes[0]


def test_it_computes_what_the_cpu_computes_to_a_few_codes(int8: Path) -> None:
    import onnxruntime

    x = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(int8), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    session = QnnSession(int8)
    try:
        assert session.inputs == {"x": ((1, 3, 16, 16), "tensor(float)")}
        outputs, state = session.step({"x": x})
        assert state is None
        assert np.abs(outputs["y"] - expected).max() <= 3 * expected.max() / 255
        assert {item.unit for item in session.placement()} == {"npu"}
        with pytest.raises(BadInput, match=r"\[1, 3, 8, 8\]"):
            session.step({"x": x[:, :, :8, :8]})
    finally:
        session.close()


def test_a_length_that_is_free_stays_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    free = quantised(network(tmp_path / "float.onnx", batch="N"), tmp_path / "free.onnx")
    report = compile_onnx(free, tmp_path / "context.onnx")
    assert {item.unit for item in report.placement} == {"cpu"}
    assert any("shape" in item.reason for item in report.placement)
    assert not (tmp_path / "context.onnx").exists()


def test_an_operator_that_the_npu_lacks_is_on_the_cpu_with_a_reason(tmp_path: Path) -> None:
    report = compile_onnx(network(tmp_path / "float.onnx", tail="Atanh"), tmp_path / "context.onnx")
    left = [item for item in report.placement if item.unit == "cpu"]
    assert [item.op for item in left] == ["tail (Atanh)"]
    assert left[0].reason


def test_a_damaged_file_is_an_error(int8: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(int8.read_bytes()[:900])
    with pytest.raises(OctavoError):
        compile_onnx(tmp_path / "cut.onnx", tmp_path / "context.onnx")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Missing, match=r"octavo\[qnn\]"):
        check()


def test_a_library_that_kills_its_process_is_an_ordinary_error(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime_qnn").mkdir()
    (tmp_path / "onnxruntime_qnn" / "__init__.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OctavoError, match="SIGABRT"):
        compile_onnx(int8, tmp_path / "context.onnx")
