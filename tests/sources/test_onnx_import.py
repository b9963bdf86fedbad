"""Whole ONNX files: what comes out of them, under which names, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

import octavo  # noqa: E402
from octavo.api.load import open_source  # noqa: E402
from octavo.errors import BadInput  # noqa: E402
from octavo.sources.onnx.open import import_onnx, open_onnx  # noqa: E402
from octavo.sources.torch import load_graph  # noqa: E402
from tests.sources.onnx_cases import Case, f, graph_of, i, in_onnxruntime, save  # noqa: E402

SIZES = {"input": (1, 576), "state": (2, 1, 128)}


def run(module: Any, *arrays: NDArray[Any]) -> dict[str, NDArray[Any]]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in module(*map(torch.from_numpy, arrays)).items()}


def test_squeezenet_has_onnxruntimes_logits(shared: Path) -> None:
    path = shared / "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx"
    source = open_source(path)
    image = f(1, 3, 224, 224)
    found = run(load_graph(source.program, source.arrays), image)["logits"]  # type: ignore[attr-defined]
    assert abs(found - in_onnxruntime(path, {"data": image})[0]).max() <= 1e-4
    stored = {item.name for item in onnx.load(str(path)).graph.initializer}
    assert set(source.tensors) == stored
    assert sum(spec.role == "conv" for spec in source.tensors.values()) == 26


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("silero_vad.onnx", {"sr": 16000, **SIZES}),
        ("silero_vad.onnx", {"sr": 8000, "input": (1, 288), "state": (2, 1, 128)}),
        ("silero_vad_16k_op15.onnx", {"sr": 16000, "sequence": 576}),
    ],
)
def test_a_stateful_speech_model_stays_with_onnxruntime(shared: Path, file: str, fix: dict[str, Any]) -> None:
    """The If on the sample rate is folded, the LSTM unrolled; its state goes in and comes out, over eight steps."""
    path = shared / "data/audio/silero_vad" / file
    source = open_onnx(path, fix)
    program = load_graph(source.program, source.arrays)
    assert sum(spec.role == "matmul" for spec in source.tensors.values()) == 2  # the LSTM's two matrices
    state = kept = np.zeros((2, 1, 128), np.float32)
    for _ in range(8):
        sound = f(1, 288 if fix["sr"] == 8000 else 576, low=-0.3, high=0.3)
        rate = np.array(fix["sr"], np.int64)
        wanted, state = in_onnxruntime(path, {"input": sound, "state": state, "sr": rate})
        found = run(program, sound, kept)
        kept = found["stateN"]
        assert abs(found["output"] - wanted).max() <= 1e-4
        assert abs(kept - state).max() <= 1e-4


def test_an_if_on_an_input_names_the_input_to_fix(shared: Path) -> None:
    path = shared / "data/audio/silero_vad/silero_vad.onnx"
    with pytest.raises(BadInput, match=r"Node 'If_0' \(If, opset 16\).*the input sr.*--fix sr=VALUE"):
        import_onnx(path, SIZES)


def test_free_sizes_are_asked_for(shared: Path) -> None:
    path = shared / "data/audio/silero_vad/silero_vad_16k_op15.onnx"
    with pytest.raises(BadInput, match=r"'input' \[batch, sequence\] has free sizes.*--fix input=1x"):
        import_onnx(path, {"sr": 16000})
    with pytest.raises(BadInput, match=r"no input or dimension 'seqence'.*Nearest: sequence"):
        import_onnx(path, {"sr": 16000, "seqence": 576})
    with pytest.raises(BadInput, match=r"fixed to the shape \[1, 2, 3\]"):
        import_onnx(path, {"sr": 16000, "input": (1, 2, 3)})


def branches(condition: list[Any], feed: dict[str, Any], tmp_path: Path) -> Path:
    """y = x + w or x − w, as `flag` says; both branches see x and w of the outer graph."""
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, [2])
    graphs = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["x", "w"], ["r"])], name, [], [out])
        for name, op in (("then", "Add"), ("else", "Sub"))
    }
    nodes = [*condition, helper.make_node("If", ["flag"], ["y"], name="choice", **graphs)]
    return save(graph_of(nodes, feed, ["y"], [numpy_helper.from_array(f(2), "w")]), tmp_path)


def test_an_if_on_a_size_takes_its_branch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["two"], value_ints=[2]),
        helper.make_node("Less", ["shape", "two"], ["flag"]),
    ]
    x = f(2)
    path = branches(nodes, {"x": x}, tmp_path)
    np.testing.assert_array_equal(run(import_onnx(path)[0], x)["y"], in_onnxruntime(path, {"x": x})[0])


@pytest.mark.parametrize("mode", [0, 1])
def test_an_if_on_a_fixed_input_takes_its_branch(mode: int, tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["mode"], ["flag"], to=TensorProto.BOOL)]
    x, given = f(2), np.array(mode, np.int64)
    path = branches(nodes, {"x": x, "mode": given}, tmp_path)
    module, example = import_onnx(path, {"mode": mode})
    assert len(example) == 1
    np.testing.assert_array_equal(run(module, x)["y"], in_onnxruntime(path, {"x": x, "mode": given})[0])


def test_an_if_on_the_data_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["flag"], to=9),
    ]
    with pytest.raises(BadInput, match=r"Node 'choice' \(If.*'flag' depends on the data: the input x"):
        import_onnx(branches(nodes, {"x": f(2)}, tmp_path))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("GridSample", [f(1, 1, 3, 3), f(1, 2, 2, 2)]), r"Node 'the node' \(GridSample, opset 17\).*not imported"),
        (
            Case("Conv", [f(1, 2, 5, 5)], {1: f(2, 2, 3, 3)}, opset=10),
            "opset 10; 11 to 21 are imported.*convert_version",
        ),
        (Case("Reshape", [f(4), i(2, 2)]), "'x1' is computed from the model's inputs.*--fix"),
        (Case("NonZero", [f(4)]), "'x0' is computed from the model's inputs"),
        (Case("MaxPool", [f(1, 1, 4)], attributes={"kernel_shape": [2]}, outputs=2), "the indices, is asked for"),
        (Case("MatMul", [f(2, 3)], {1: f(4, 5)}), r"cannot be imported with inputs \[2, 3\], \[4, 5\]"),
        (Case("FastGelu", [f(3)], domain="com.microsoft"), "operator of domain com.microsoft is not imported"),
    ],
    ids=lambda value: value.op if isinstance(value, Case) else "",
)
def test_what_is_not_imported_is_named(case: Case, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    try:
        model = case.model()
    except onnx.shape_inference.InferenceError:
        pytest.skip("onnx builds no such model")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=message):
        import_onnx(path)


def test_a_file_that_is_no_onnx_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x07\xff\xff not protobuf")
    with pytest.raises(BadInput, match="not an ONNX model"):
        import_onnx(path)
    path.write_bytes(onnx.ModelProto().SerializeToString())
    with pytest.raises(BadInput, match="without operators"):
        import_onnx(path)


def test_weights_lie_as_the_compressor_expects_under_their_own_names(tmp_path: Path) -> None:
    """MatMul's [in, out] becomes a linear's [out, in]; a table that is also multiplied, turned, stays one tensor."""
    table, matrix, gemm = f(7, 4), f(4, 4), f(4, 4)
    nodes = [
        helper.make_node("Gather", ["table.weight", "ids"], ["h"]),
        helper.make_node("MatMul", ["h", "proj"], ["a"]),
        helper.make_node("Transpose", ["proj"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "turned"], ["b"]),
        helper.make_node("Gemm", ["b", "fc.weight", "fc.bias"], ["c"], transB=1),
        helper.make_node("Transpose", ["table.weight"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "head"], ["logits"]),
    ]
    weights = {"table.weight": table, "proj": matrix, "fc.weight": gemm, "fc.bias": f(4)}
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    ids = np.array([1, 6, 3])
    path = save(graph_of(nodes, {"ids": ids}, ["logits"], stored), tmp_path)
    source = open_onnx(path)
    roles = {name: spec.role for name, spec in source.tensors.items()}
    assert roles["table.weight"] == "embedding"
    assert roles["proj"] == "matmul"
    assert roles["fc.weight"] == "matmul"
    np.testing.assert_array_equal(source.arrays["proj"], matrix.T)
    np.testing.assert_array_equal(source.arrays["fc.weight"], gemm)
    found = run(load_graph(source.program, source.arrays), ids)["logits"]
    np.testing.assert_allclose(found, in_onnxruntime(path, {"ids": ids})[0], rtol=1e-5, atol=1e-5)


def test_awkward_names_survive(tmp_path: Path) -> None:
    """Names that Python or torch cannot call a thing: slashes, dots at the ends, keywords, torch's own attributes."""
    names = ["/layer.0/W", "a", "a.b", ".x.", "forward", "x.training.y", "::1"]
    nodes = [
        helper.make_node("Add", ["in.1" if n == 0 else f"s{n - 1}", name], [f"s{n}"]) for n, name in enumerate(names)
    ]
    stored = [numpy_helper.from_array(f(3), name) for name in names]
    x = f(3)
    path = save(graph_of(nodes, {"in.1": x}, [f"s{len(names) - 1}"], stored), tmp_path)
    source = open_onnx(path)
    assert len(source.tensors) == len(names)
    assert {"/layer.0/W", "a", "::1"} <= set(source.tensors)
    (found,) = run(load_graph(source.program, source.arrays), x).values()
    np.testing.assert_allclose(found, in_onnxruntime(path, {"in.1": x})[0], rtol=1e-6)


@pytest.mark.parametrize("scheme", ["w8", "w4g32"])
def test_what_octavo_exports_can_be_imported(scheme: str, tmp_path: Path) -> None:
    """Our own file, with its codes and scales: as float arithmetic it computes what ONNX Runtime makes of it; as a
    source it is refused, since its weights are no float weights any more."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 9)
    )
    octavo.compress(network.eval(), example_inputs=(torch.zeros(1, 64),), scheme=scheme, out=tmp_path / "x")
    octavo.export(tmp_path / "x", runtime="onnxruntime", out=tmp_path / "x.onnx")
    x = f(1, 64)
    module, _ = import_onnx(tmp_path / "x.onnx")
    wanted = in_onnxruntime(tmp_path / "x.onnx", {"input": x}, optimised=True)[0]
    (found,) = run(module, x).values()
    folded = octavo.load(tmp_path / "x")
    tensors = {record.name: folded.tensor(record.name) for record in folded.tensors}
    floats = {name: value if isinstance(value, np.ndarray) else value.dequantize() for name, value in tensors.items()}
    (decoded,) = torch.utils._pytree.tree_leaves(load_graph(folded.program, floats)(torch.from_numpy(x)))
    np.testing.assert_allclose(found, decoded.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert abs(found - wanted).max() <= 0.05 * abs(wanted).max()  # MatMulNBits quantises activations to int8 there
    with pytest.raises(BadInput, match="quantised already: 2 of its weights are integer codes"):
        open_source(tmp_path / "x.onnx")


def test_a_float_network_goes_through_an_export_and_back(tmp_path: Path) -> None:
    """fp32: out to ONNX, in again, out again; the same numbers from the same tensors."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 5)
    )
    octavo.compress(network.eval(), example_inputs=(torch.zeros(1, 3, 4, 4),), scheme="fp32", out=tmp_path / "a")
    octavo.export(tmp_path / "a", runtime="onnxruntime", out=tmp_path / "a.onnx")
    octavo.compress(tmp_path / "a.onnx", scheme="w8", out=tmp_path / "b")
    octavo.export(tmp_path / "b", runtime="onnxruntime", out=tmp_path / "b.onnx")
    np.savez(tmp_path / "d.npz", x=f(12, 3, 4, 4))
    found = octavo.verify(tmp_path / "b.onnx", against=tmp_path / "a.onnx", data=tmp_path / "d.npz")
    assert found.weights == "exact"
    assert found.outputs is not None
    assert found.outputs["sqnr_db"] > 30
    assert {t.name for t in octavo.load(tmp_path / "a").tensors} == {
        t.name for t in octavo.load(tmp_path / "b").tensors
    }


def test_half_precision_runs_as_float32(tmp_path: Path) -> None:
    weight = f(4, 4).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    x = f(2, 4)
    path = save(graph_of(nodes, {"x": x}, ["y"], [numpy_helper.from_array(weight, "w")]), tmp_path)
    np.testing.assert_allclose(run(import_onnx(path)[0], x)["y"], x @ weight.astype(np.float32), rtol=1e-5, atol=1e-6)


def test_fix_is_for_onnx_files_only(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--fix is for the inputs of an \.onnx file"):
        open_source(tmp_path, fix=["sr=16000"])


@pytest.mark.parametrize("text", ["sr", "=3", "sr=many"])
def test_a_fix_that_says_nothing_is_refused(text: str, shared: Path) -> None:
    with pytest.raises(BadInput, match="--fix"):
        open_source(shared / "data/audio/silero_vad/silero_vad.onnx", fix=[text])
