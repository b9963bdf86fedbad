"""The session of a foreign file: what it accepts, in whose words it refuses, and the time of each operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

from octavo.errors import BadInput  # noqa: E402
from octavo.runtimes.base import open_artifact  # noqa: E402


def write(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> Path:
    ends = [[helper.make_tensor_value_info(name, *kind) for name, kind in side.items()] for side in (inputs, outputs)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(model, str(path))
    return path


@pytest.fixture
def scaled(tmp_path: Path) -> Iterator[Any]:
    """y = x · s: x float [n, 4], s a single float."""
    path = write(
        tmp_path / "scaled.onnx", [helper.make_node("Mul", ["x", "s"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 4]), "s": (TensorProto.FLOAT, [])}, {"y": (TensorProto.FLOAT, ["n", 4])},
    )  # fmt: skip
    session = open_artifact(path, threads=1)
    yield session
    session.close()


X, S = np.arange(8, dtype=np.float32).reshape(2, 4), np.array(2.0, np.float32)


@pytest.mark.parametrize(
    "x", [X, X.astype(np.float64), np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X.tolist()],
    ids=["plain", "float64", "columns first", "strided", "list"],
)  # fmt: skip
def test_arrays_of_any_layout_and_float_are_taken(scaled: Any, x: Any) -> None:
    outputs, state = scaled.step({"x": x, "s": S})
    assert np.array_equal(outputs["y"], 2 * X)
    assert outputs["y"].dtype == np.float32
    assert state == {}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"x": X}, r"\['x'\] given; the model takes \['s', 'x'\]"),
        ({"x": X, "s": S, "z": S}, r"\['s', 'x', 'z'\] given"),
        ({"x": X[:, :3], "s": S}, r"Input x is \[2, 3\]; the model takes \['n', 4\]"),
        ({"x": X[0], "s": S}, r"Input x is \[4\]"),
        ({"x": X[:0], "s": S}, r"Input x is \[0, 4\]"),
        ({"x": X, "s": S[None]}, r"Input s is \[1\]; the model takes \[\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_our_words(scaled: Any, inputs: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        scaled.step(inputs)
    assert np.array_equal(scaled.step({"x": X, "s": S})[0]["y"], 2 * X), "the session goes on"


def test_the_operators_of_a_stateful_graph_are_timed(tmp_path: Path) -> None:
    """A running sum, whose state is called as decoders call theirs."""
    nodes = [
        helper.make_node("Add", ["x", "past_key_values.sum"], ["present.sum"], name="sum"),
        helper.make_node("Erf", ["present.sum"], ["y"], name="erf"),
    ]
    shape = (TensorProto.FLOAT, [1, 1000])
    path = write(
        tmp_path / "sum.onnx", nodes, {"x": shape, "past_key_values.sum": shape}, {"y": shape, "present.sum": shape}
    )
    session: Any = open_artifact(path, threads=1)
    try:
        ones = {"x": np.ones((1, 1000), np.float32)}
        state = session.step(ones, session.step(ones)[1])[1]
        found = session.profile(ones, state, runs=4)
        assert {item.op: (item.kind, item.unit) for item in found} == {"sum": ("Add", "cpu"), "erf": ("Erf", "cpu")}
        assert all(item.ms >= 0 for item in found)
        assert sum(item.share for item in found) == pytest.approx(1)
        with pytest.raises(BadInput, match="0 runs"):
            session.profile(ones, None, runs=0)
    finally:
        session.close()
