"""Static int8 models in ONNX Runtime: exact codes, fused integer kernels, the simulation's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from octavo.api.programs import ModelPrograms  # noqa: E402
from octavo.runtimes.base import no_progress  # noqa: E402
from octavo.runtimes.onnxruntime import OnnxRuntime  # noqa: E402
from octavo.verify.weights import check_weights  # noqa: E402
from tests.static_models import convnet, simulated, static_model  # noqa: E402

SHAPE = (1, 3, 16, 16)


@pytest.fixture(scope="module", params=["w8a8", "w8ta8", "w8a16"])
def model(request):
    return static_model(convnet(), (torch.zeros(SHAPE),), request.param)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory) -> Path:
    return lowered(model, tmp_path_factory.mktemp("onnx") / "m.onnx")


def lowered(model, path: Path) -> Path:
    runtime = OnnxRuntime()
    runtime.lower(model, runtime.carry(model), path, ModelPrograms(model), no_progress)
    return path


def test_every_weight_reads_back_exactly(model, path):
    back = OnnxRuntime().read_back(path)
    report = check_weights(back, back.manifest, model, carry=OnnxRuntime().carry)
    assert report.verdict == "exact"
    assert report.checked == len(model.tensors)


def test_every_edge_reads_back_under_its_name(model, path):
    found = OnnxRuntime().read_back(path).edges()
    assert found == {edge.name: edge for edge in model.edges}


def test_it_runs_as_simulated(model, path):
    session, run = OnnxRuntime().open(path, threads=1), simulated(model)
    step = model.edges[-1].scale
    rng = np.random.default_rng(3)
    for _ in range(8):
        x = rng.standard_normal(SHAPE).astype(np.float32)
        found = session.step({"x": x})[0]["output"]
        assert np.abs(found - run(x)).max() <= (2.01 if model.edges[0].dtype == "int8" else 40) * step


def test_convolutions_and_the_linear_layer_run_on_integers(path, model, tmp_path):
    if model.edges[0].dtype == "int16":
        pytest.skip("ONNX Runtime's CPU kernels take 8 bit activations")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert kinds.count("QLinearConv") == 4
    assert "QGemm" in kinds
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(kinds)


def test_a_changed_zero_point_is_found_and_its_operator_named(model, path, tmp_path):
    edited = onnx.load(str(path))
    del edited.metadata_props[:]
    node = next(n for n in edited.graph.node if n.op_type == "QuantizeLinear" and n.output[0].startswith("relu."))
    point = next(item for item in edited.graph.initializer if item.name == node.input[2])
    array = onnx.numpy_helper.to_array(point) + 3
    point.CopyFrom(onnx.numpy_helper.from_array(array.astype(array.dtype), point.name))
    onnx.save(edited, str(tmp_path / "edited.onnx"))
    back = OnnxRuntime().read_back(tmp_path / "edited.onnx")
    report = check_weights(back, back.manifest, model, carry=OnnxRuntime().carry)
    assert any(item.name == "relu" and "zero point" in item.reason for item in report.wrong)


def test_the_same_model_gives_the_same_bytes(model, path, tmp_path):
    assert lowered(model, tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_another_scale_is_another_file(model, path, tmp_path):
    first = replace(model.edges[0], scale=model.edges[0].scale * 2)
    other = lowered(replace(model, edges=(first, *model.edges[1:])), tmp_path / "other.onnx")
    assert OnnxRuntime().read_back(other).edges()[first.name] == first
