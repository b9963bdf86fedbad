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


def optimised(path: Path, folder: Path):
    """The graph as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


def test_convolutions_and_the_linear_layer_run_on_integers(path, model, tmp_path):
    graph = optimised(path, tmp_path)
    kinds = [node.op_type for node in graph.node]
    if model.edges[0].dtype == "int16":  # ONNX Runtime's CPU kernels take 8 bit activations: floats between the edges
        assert "QLinearConv" not in kinds
        assert kinds.count("QuantizeLinear") >= len(model.edges) - 1
        return
    assert kinds.count("QLinearConv") == 4
    assert "QGemm" in kinds
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(kinds)


def test_a_convolution_of_three_channels_gets_a_fourth_of_zeros_on_integers(path, model, tmp_path):
    graph = optimised(path, tmp_path)
    widths = {
        tuple(item.dims)
        for item in graph.initializer
        if len(item.dims) == 4 and item.data_type == onnx.TensorProto.INT8
    }
    if model.edges[0].dtype == "int16":
        assert (16, 3, 3, 3) in widths  # a float kernel has nothing of it
        return
    assert (16, 4, 3, 3) in widths
    assert not {"Concat", "Pad", "Expand"} & {node.op_type for node in graph.node}
    kept = next(item for item in onnx.load(str(path)).graph.initializer if item.name == "first.weight.codes")
    assert tuple(kept.dims) == (16, 3, 3, 3)


class Uneven(torch.nn.Module):
    """Zeros on two sides only, as TensorFlow pads at stride 2, and an adaptive pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, 16, 3, stride=2)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(torch.nn.functional.pad(x, (0, 1, 0, 1))))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_uneven_padding_and_an_adaptive_pool_run_on_integers(tmp_path):
    torch.manual_seed(0)
    shape = (1, 4, 16, 16)
    made = static_model(Uneven().eval(), (torch.zeros(shape),))
    file = lowered(made, tmp_path / "m.onnx")
    kinds = sorted(node.op_type for node in optimised(file, tmp_path).node)
    assert not {"Pad", "Gather", "GlobalAveragePool"} & set(kinds)
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1
    assert OnnxRuntime().read_back(file).edges() == {edge.name: edge for edge in made.edges}
    session, run = OnnxRuntime().open(file, threads=1), simulated(made)
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    assert np.abs(session.step({"x": x})[0]["output"] - run(x)).max() <= 2.01 * made.edges[-1].scale


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
