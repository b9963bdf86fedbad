"""Windows of every shape: convolutions and pools with drawn attributes, against ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from octavo.sources.onnx.open import import_onnx  # noqa: E402
from tests.sources.onnx_cases import Case, f, in_onnxruntime, save  # noqa: E402


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[int], list[int], dict[str, Any]]:
    """(sizes, kernel, attributes) over two axes; pads stay below the kernel, as every runtime demands."""
    two = lambda low, high: draw(st.lists(st.integers(low, high), min_size=2, max_size=2))  # noqa: E731
    sizes, kernel = two(5, 9), two(1, 3)
    attributes: dict[str, Any] = {"strides": two(1, 3)}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    else:
        attributes["auto_pad"] = auto  # with a longer stride ONNX Runtime wants negative pads, and refuses them
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    return sizes, kernel, attributes


def agrees(case: Case) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = save(case.model(), Path(directory))
        (wanted,) = in_onnxruntime(path, case.feed())
        with torch.no_grad():
            found = import_onnx(path)[0](torch.from_numpy(case.inputs[0]))["y0"].numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    windows(), st.sampled_from([(1, 4, 4), (2, 4, 6), (4, 4, 4)]), st.lists(st.integers(1, 2), min_size=2, max_size=2)
)
def test_convolutions(window: Any, channels: tuple[int, int, int], dilations: list[int]) -> None:
    (sizes, kernel, attributes), (group, into, out) = window, channels
    spread = dilations if attributes.get("auto_pad", "VALID") == "VALID" else [1, 1]
    weight = f(out, into // group, *kernel)
    agrees(Case("Conv", [f(1, into, *sizes)], {1: weight}, {**attributes, "group": group, "dilations": spread}))


@settings(max_examples=80, deadline=None)
@given(windows(), st.sampled_from(["MaxPool", "AveragePool"]), st.booleans(), st.booleans())
def test_pools(window: Any, op: str, up: bool, counted: bool) -> None:
    sizes, kernel, attributes = window
    attributes = {**attributes, "kernel_shape": kernel}
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = int(up)
    if op == "AveragePool":
        attributes["count_include_pad"] = int(counted)
    agrees(Case(op, [f(1, 2, *sizes)], attributes=attributes, opset=19))
