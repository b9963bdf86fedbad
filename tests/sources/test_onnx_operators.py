"""Every imported operator against ONNX Runtime: a graph of its own, run by the module and by its exported program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from octavo.sources.onnx.node import OPERATORS  # noqa: E402
from octavo.sources.onnx.open import import_onnx  # noqa: E402
from octavo.sources.torch import capture  # noqa: E402
from tests.sources.onnx_cases import CASES, FOLDED, Case, f, graph_of, i, in_onnxruntime, save  # noqa: E402


def check(path: Path, feed: dict[str, np.ndarray], traced: bool = True) -> None:  # type: ignore[type-arg]
    """The module, and if `traced` its exported program, answer as ONNX Runtime does: values, shapes, types."""
    expected = in_onnxruntime(path, feed)
    module, example = import_onnx(path)
    tensors = [torch.from_numpy(value) for value in feed.values()]
    runs = [module, capture(module, example).module()] if traced else [module]
    for run in runs:
        with torch.no_grad():
            found = [value.numpy() for value in run(*tensors).values()]
        for have, want in zip(found, expected, strict=True):
            assert have.shape == want.shape
            assert have.dtype == want.dtype
            np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_node_computes_what_onnxruntime_computes(case: Case, tmp_path: Path) -> None:
    check(save(case.model(), tmp_path), case.feed(), traced=case.op not in UNTRACED)


UNTRACED = {"Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"}  # plain functions


def test_every_operator_of_the_table_has_a_case() -> None:
    tried = {f"{case.domain}.{case.op}" if case.domain else case.op for case in CASES}
    assert set(OPERATORS) == tried | FOLDED


def test_sizes_and_constants_are_known_at_import(tmp_path: Path) -> None:
    """Shape → Gather → Range → …: the arithmetic on sizes that exporters write leaves no step behind."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Constant", [], ["one"], value_int=1),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.int64))),
        helper.make_node("Gather", ["shape", "one"], ["columns"]),
        helper.make_node("Range", ["zero", "columns", "one"], ["positions"]),
        helper.make_node("Cast", ["positions"], ["offsets"], to=TensorProto.FLOAT),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("EyeLike", ["square"], ["eye"], k=1),
        helper.make_node("NonZero", ["offsets"], ["places"]),
        helper.make_node("Cast", ["size"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats"], ["total"]),
        helper.make_node("Add", ["x", "offsets"], ["a"]),
        helper.make_node("Mul", ["a", "ones"], ["b"]),
        helper.make_node("MatMul", ["b", "eye"], ["c"]),
        helper.make_node("Div", ["c", "count"], ["d"]),
        helper.make_node("Add", ["d", "total"], ["y"]),
    ]
    square = numpy_helper.from_array(np.zeros((3, 3), np.float32), "square")
    path = save(graph_of(nodes, {"x": f(2, 3)}, ["y"], [square]), tmp_path)
    check(path, {"x": f(2, 3)})
    module, _ = import_onnx(path)
    assert [run.node for run in module._runs] == ["a", "b", "c", "d", "y"]


def test_the_opset_of_the_model_decides(tmp_path: Path) -> None:
    """Unsqueeze takes its axes as an attribute before opset 13 and as an input since: each only where it is right."""
    for opset in (11, 13, 21):
        case = (
            Case("Unsqueeze", [f(2)], attributes={"axes": [0]}, opset=opset)
            if opset < 13
            else Case("Unsqueeze", [f(2)], {1: i(0)}, opset=opset)
        )
        check(save(case.model(), tmp_path), case.feed())
