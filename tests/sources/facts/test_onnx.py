"""ONNX facts: published counts, sums by hand for each kind of operator, quantised forms, branches, free sizes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.facts import ModelFacts
from octavo.core.liveness import activation_peak
from octavo.errors import BadInput
from octavo.sources.facts.onnx import onnx_facts
from octavo.sources.facts.open import read_facts
from tests.conftest import Built

onnx = pytest.importorskip("onnx")
F, I8, I32, I64 = 1, 3, 6, 7


def value(name: str, shape: list[Any] | None, kind: int = F) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return onnx.numpy_helper.from_array(np.ones(shape, dtype), name)


def constant(name: str, data: Any, dtype: str = "int64") -> Any:
    return onnx.numpy_helper.from_array(np.array(data, dtype), name)


def saved(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], held: list[Any], **kwargs: Any) -> Path:
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, held)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1),
              onnx.helper.make_opsetid("my.domain", 1)]  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path, **kwargs)
    return path


def one(
    tmp_path: Path, op: str, inputs: dict[str, Any], held: list[Any], outputs: int = 1, shapes: Any = None, **given: Any
) -> ModelFacts:
    """Facts of a graph of one node; `inputs` {name: shape} in order, then the held ones by name."""
    names = [*inputs, *(tensor.name for tensor in held)]
    domain = given.pop("domain", "")
    out = [f"y{index}" for index in range(outputs)]
    node = onnx.helper.make_node(op, names, out, name="n", domain=domain, **given)
    ends = [value(name, None) for name in out]
    path = saved(tmp_path / "m.onnx", [node], [value(n, s) for n, s in inputs.items()], ends, held)
    return onnx_facts(path, shapes)


def test_squeezenet_is_what_is_published(shared: Path) -> None:
    facts = read_facts(shared / "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx")
    assert facts.parameters == 1_235_496  # 1.24 M
    assert facts.macs == 349_151_936  # 0.35 G
    assert facts.stored_bytes == 4 * facts.parameters
    assert facts.missing == ()
    # The first convolution's output and its activation, 64 × 111 × 111 floats each.
    assert activation_peak(facts).bytes == 2 * 64 * 111 * 111 * 4


@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_16k_op15.onnx"])
def test_silero_counts_the_branch_that_runs(shared: Path, name: str) -> None:
    shapes = {"input": (1, 576), "state": (2, 1, 128)}
    facts = read_facts(shared / "data/audio/silero_vad" / name, shapes=shapes)
    lstm = next(operator for operator in facts.operators if operator.op == "LSTM")
    assert lstm.macs == 4 * 128 * (128 + 128)
    assert facts.macs == 679_552  # the 16 kHz branch, the larger of the two
    assert facts.parameters == 309_633
    assert {edge.name: edge.shape for edge in facts.edges}["stateN"] == (2, 1, 128)
    assert any("If" in text for text in facts.missing) == (name == "silero_vad.onnx")


def test_free_sizes_are_one_and_said(shared: Path) -> None:
    facts = read_facts(shared / "data/audio/silero_vad/silero_vad_16k_op15.onnx")
    assert any("Free sizes taken as 1: sequence" in text for text in facts.missing)


@pytest.mark.parametrize(
    ("op", "inputs", "shapes", "given", "macs", "kind"),
    [
        ("Conv", {"x": [1, 8, 10, 10]}, [(16, 8, 3, 3)], {"pads": [1] * 4}, 16 * 100 * 8 * 9, "conv"),
        ("Conv", {"x": [1, 8, 10, 10]}, [(16, 2, 3, 3)], {"group": 4}, 16 * 64 * 2 * 9, "conv"),
        ("Conv", {"x": [1, 8, 10, 10]}, [(8, 1, 3, 3)], {"group": 8, "strides": [2, 2]}, 8 * 16 * 9, "depthwise"),
        ("ConvTranspose", {"x": [1, 8, 5, 5]}, [(8, 4, 2, 2)], {"strides": [2, 2]}, 8 * 25 * 4 * 4, "conv"),
        ("Gemm", {"x": [3, 7]}, [(5, 7), (5,)], {"transB": 1}, 3 * 7 * 5, "matmul"),
        ("Gemm", {"x": [7, 3]}, [(7, 5)], {"transA": 1}, 3 * 7 * 5, "matmul"),
        ("MatMul", {"x": [2, 3, 7]}, [(7, 5)], {}, 2 * 3 * 7 * 5, "matmul"),
        ("MatMul", {"a": [4, 3, 7], "b": [4, 7, 5]}, [], {}, 4 * 3 * 7 * 5, "attention"),
        ("Einsum", {"a": [4, 3, 7], "b": [4, 5, 7]}, [], {"equation": "bik,bjk->bij"}, 4 * 3 * 7 * 5, "attention"),
        ("LSTM", {"x": [6, 1, 5]}, [(1, 28, 5), (1, 28, 7)], {"hidden_size": 7}, 6 * 4 * 7 * 12, "recurrent"),
        ("GRU", {"x": [6, 1, 5]}, [(2, 21, 5), (2, 21, 7)], {"hidden_size": 7, "direction": "bidirectional"},
         6 * 2 * 3 * 7 * 12, "recurrent"),
        ("Relu", {"x": [2, 3]}, [], {}, 0, "activation"),
        ("GlobalAveragePool", {"x": [1, 2, 3, 3]}, [], {}, 0, "pool"),
    ],
)  # fmt: skip
def test_multiply_accumulates_by_hand(
    tmp_path: Path, op: str, inputs: Any, shapes: Any, given: Any, macs: int, kind: str
) -> None:
    held = [weight(f"w{index}", shape) for index, shape in enumerate(shapes)]
    facts = one(tmp_path, op, inputs, held, **given)
    assert [(operator.macs, operator.kind) for operator in facts.operators] == [(macs, kind)]
    assert facts.parameters == sum(prod(shape) for shape in shapes)
    assert facts.missing == ()


def test_matmulnbits_holds_what_it_packs(tmp_path: Path) -> None:
    held = [weight("codes", (16, 2, 16), "uint8"), weight("scale", (16, 2))]
    given: dict[str, Any] = {"K": 64, "N": 16, "bits": 4, "block_size": 32, "domain": "com.microsoft"}
    facts = one(tmp_path, "MatMulNBits", {"x": [1, 5, 64]}, held, **given)
    (found,) = facts.weights
    assert (found.shape, found.stored, found.stored_bytes) == ((16, 64), "int4", 16 * 2 * 16 + 16 * 2 * 4)
    assert (facts.parameters, facts.macs) == (1024, 5 * 1024)
    assert {edge.name: edge.shape for edge in facts.edges}["y0"] == (1, 5, 16)


def test_qdq_is_the_quantised_network(tmp_path: Path) -> None:
    """Codes and their scales are the weights, and quantised activations take a byte each."""
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["xq"]), make("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
        make("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0), make("DequantizeLinear", ["b", "ws"], ["bf"]),
        make("Conv", ["xf", "wf", "bf"], ["yf"]), make("QuantizeLinear", ["yf", "s", "z"], ["yq"]),
        make("DequantizeLinear", ["yq", "s", "z"], ["y1"]), make("Relu", ["y1"], ["y2"]),
        make("QuantizeLinear", ["y2", "s", "z"], ["y3"]), make("DequantizeLinear", ["y3", "s", "z"], ["y"]),
    ]  # fmt: skip
    held = [
        constant("s", 0.1, "float32"), constant("z", 0, "int8"), weight("w", (4, 3, 3, 3), "int8"), weight("ws", (4,)),
        weight("wz", (4,), "int8"), weight("b", (4,), "int32"),
    ]  # fmt: skip
    path = saved(tmp_path / "q.onnx", nodes, [value("x", [1, 3, 8, 8])], [value("y", None)], held)
    facts = onnx_facts(path)
    stored = {weight.name: (weight.stored, weight.stored_bytes) for weight in facts.weights}
    assert stored["w"] == ("int8", 108 + 16 + 4)
    assert "ws" not in stored
    assert [operator.op for operator in facts.operators] == ["QuantizeLinear", "Conv", "Relu", "DequantizeLinear"]
    assert {edge.name: edge.bytes for edge in facts.edges} == {"x": 768, "xq": 192, "yq": 144, "y3": 144, "y": 576}
    assert facts.operators[1].macs == 4 * 36 * 27


def test_shape_arithmetic_is_followed(tmp_path: Path) -> None:
    """What torch writes for `x.reshape(x.shape[0] * x.shape[1], -1)[: n]`, and a Range over a size."""
    make = onnx.helper.make_node
    nodes = [
        make("Shape", ["x"], ["s"]), make("Gather", ["s", "zero"], ["b"]), make("Gather", ["s", "one"], ["n"]),
        make("Mul", ["b", "n"], ["bn"]), make("Unsqueeze", ["bn", "first"], ["bn1"]),
        make("Concat", ["bn1", "minus"], ["to"], axis=0), make("Reshape", ["x", "to"], ["flat"]),
        make("Range", ["zero", "n", "one"], ["at"]), make("Cast", ["at"], ["atf"], to=1),
        make("Add", ["flat", "one_f"], ["y"]), make("ReduceSum", ["x"], ["t"], keepdims=0),
        make("Add", ["atf", "t"], ["r"]),
    ]  # fmt: skip
    held = [constant("zero", 0), constant("one", 1), constant("first", [0]), constant("minus", [-1]),
            constant("one_f", 1, "float32")]  # fmt: skip
    path = saved(
        tmp_path / "s.onnx", nodes, [value("x", ["batch", "n", 6])], [value("y", None), value("r", None)], held
    )
    facts = onnx_facts(path, {"n": 5})
    shapes = {edge.name: edge.shape for edge in facts.edges}
    assert (shapes["y"], shapes["r"]) == ((5, 6), (5,))
    assert facts.missing == ()


def test_a_given_shape_must_fit(tmp_path: Path) -> None:
    held = [weight("w", (7, 5))]
    assert one(tmp_path, "MatMul", {"x": ["b", "n", 7]}, held, shapes={"x": (2, 3, 7)}).macs == 210
    assert one(tmp_path, "MatMul", {"x": ["b", "n", 7]}, held, shapes={"n": 3}).macs == 105
    for shapes in ({"x": (2, 3, 8)}, {"x": (2, 3)}, {"z": 3}, {"n": -1}):
        with pytest.raises(BadInput):
            one(tmp_path, "MatMul", {"x": ["b", "n", 7]}, held, shapes=shapes)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    facts = one(tmp_path, "Frobnicate", {"x": [2, 2]}, [], domain="my.domain")
    assert any("Frobnicate" in text for text in facts.missing)
    assert any("not inferred" in text for text in facts.missing)


def test_external_data_is_not_opened(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    held = [weight("w", (70, 50))]
    external = {"save_as_external_data": True, "location": "data.bin", "size_threshold": 0}
    path = saved(tmp_path / "e.onnx", [node], [value("x", [1, 70])], [value("y", [1, 50])], held, **external)
    (tmp_path / "data.bin").unlink()
    facts = onnx_facts(path)
    assert (facts.macs, facts.stored_bytes) == (3500, 14000)


@pytest.mark.parametrize("data", [b"", b"not onnx at all", b"\x08\x09" * 100])
def test_what_is_no_onnx_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(BadInput, match=r"x\.onnx"):
        onnx_facts(tmp_path / "x.onnx")


def run_whole(path: Path, feeds: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every value, as ONNX Runtime computes it."""
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.load(path)
    ends = {item.name for item in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name and name not in ends]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run([*ends, *inner], feeds)
    return {name: value.shape for name, value in zip([*ends, *inner], values, strict=True)}


def agrees(facts: ModelFacts, theirs: dict[str, tuple[int, ...]], least: int) -> None:
    ours = {edge.name: edge.shape for edge in facts.edges if edge.name in theirs}
    assert {name: (shape, theirs[name]) for name, shape in ours.items() if shape != theirs[name]} == {}
    assert len(ours) >= least


def test_every_shape_is_what_onnx_runtime_computes(shared: Path) -> None:
    path = shared / "data/audio/silero_vad/silero_vad_16k_op15.onnx"
    feeds = {"input": np.zeros((1, 576), np.float32), "state": np.zeros((2, 1, 128), np.float32),
             "sr": np.array(16000)}  # fmt: skip
    facts = onnx_facts(path, {"input": (1, 576), "state": (2, 1, 128)})
    agrees(facts, run_whole(path, feeds), 25)


def test_every_shape_of_an_exported_decoder_is_what_onnx_runtime_computes(built: Callable[[str], Built]) -> None:
    path = built("stories260K").artifacts["onnxruntime"]
    shapes = {f"past_key_values.{layer}.{part}": (1, 4, 7, 8) for layer in range(5) for part in ("key", "value")}
    feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    facts = onnx_facts(path, {"ids": (1, 3), **shapes})
    assert facts.missing == ()
    agrees(facts, run_whole(path, {"ids": np.ones((1, 3), np.int64), **feeds}), 200)


def test_what_octavo_exports_counts_like_its_source(built: Callable[[str], Built]) -> None:
    model = built("stories260K")
    source = read_facts(model.source)
    compressed, gguf = read_facts(model.directory), read_facts(model.artifacts["llamacpp"])
    exported = read_facts(model.artifacts["onnxruntime"])
    assert source.parameters == compressed.parameters == gguf.parameters == 260_032
    assert exported.parameters == source.parameters + 4  # the four frequencies of RoPE are a constant of the graph
    assert source.language == compressed.language == gguf.language
    matrices = {operator.name: operator.macs for operator in source.operators if operator.kind == "matmul"}
    assert sum(matrices.values()) == sum(o.macs for o in exported.operators if o.kind == "matmul" and o.weights)
    assert compressed.stored_bytes < source.stored_bytes
    assert {weight.stored for weight in compressed.weights} == {"w4g32", "w8", "fp32"}
    read = {name for operator in gguf.operators for name in operator.weights}
    assert read == {weight.name for weight in gguf.weights}
