"""Every operator of the importer against LiteRT's interpreter: by itself, and between two that work channels first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ai_edge_litert.schema_py_generated")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from octavo.sources.tflite.node import OPERATORS  # noqa: E402
from octavo.sources.tflite.open import import_tflite  # noqa: E402
from tests.sources.tflite_cases import Array, Net, Op, f, i, in_litert  # noqa: E402

SAME, VALID = 0, 1
IMAGE = (1, 7, 6, 4)
STRIDES = {"strideW": 1, "strideH": 1}


@dataclass
class Case:
    """One operator: `x` goes in, or is what `at` says among the inputs; the others are stored, or given."""

    op: str
    x: Array = field(default_factory=lambda: f(*IMAGE))
    stored: dict[int, Array] = field(default_factory=dict)
    given: dict[int, Array] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    at: int = 0
    kind: str = ""
    outputs: int = 1
    absent: tuple[int, ...] = ()
    results: dict[str, int] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}{'-' if self.note else ''}{self.note}"

    def net(self, inside: bool) -> Net:
        """`inside`: after a convolution, and with one behind it where the result is an image."""
        places = range(1 + max([self.at, *self.stored, *self.given, *self.absent]))
        names = ["" if n in self.absent else "x" if n == self.at else f"c{n}" for n in places]
        outs = [f"y{n}" for n in range(self.outputs)]
        given = {"x": self.x, **{f"c{n}": value for n, value in self.given.items()}}
        stored = {f"c{n}": value for n, value in self.stored.items()}
        ops = [Op(self.op, names, outs, self.options, self.kind, 2 if self.op == "BROADCAST_TO" else 1)]
        if inside:
            names[self.at] = "inner"
            stored["before"] = np.sign(f(1, 1, 1, 4)) * f(1, 1, 1, 4, low=0.5, high=1.5, seed=1)
            stored["bias"] = f(4, seed=2)
            options = {"padding": SAME, **STRIDES, "depthMultiplier": 1}
            ops = [Op("DEPTHWISE_CONV_2D", ["x", "before", "bias"], ["inner"], options), *ops]
        return Net(ops, given, stored, outs, kinds=self.results)


def image(op: str, *, note: str = "", kind: str = "", **options: Any) -> Case:
    return Case(op, options=options, note=note, kind=kind)


def conv(kernel: tuple[int, int], padding: int, stride: int = 1, dilation: int = 1, act: int = 0, **more: Any) -> Case:
    options = {"padding": padding, "strideW": stride, "strideH": stride, "fusedActivationFunction": act}
    options |= {"dilationWFactor": dilation, "dilationHFactor": dilation}
    stored = {1: f(5, *kernel, 4), 2: f(5)}
    note = f"{kernel}-{padding}-s{stride}-d{dilation}-a{act}"
    return Case("CONV_2D", stored=stored, options=options, note=note, **more)


def depthwise(multiplier: int, padding: int, stride: int = 1, dilation: int = 1) -> Case:
    options = {"padding": padding, "strideW": stride, "strideH": stride, "depthMultiplier": multiplier}
    options |= {"dilationWFactor": dilation, "dilationHFactor": dilation}
    stored = {1: f(1, 3, 3, 4 * multiplier), 2: f(4 * multiplier)}
    return Case(
        "DEPTHWISE_CONV_2D", stored=stored, options=options, note=f"m{multiplier}-{padding}-s{stride}-d{dilation}"
    )


def deconv(kernel: int, stride: int, padding: int, size: tuple[int, int], bias: bool = False) -> Case:
    stored = {0: i(1, *size, 3), 1: f(3, kernel, kernel, 4), **({3: f(3)} if bias else {})}
    options = {"padding": padding, "strideW": stride, "strideH": stride}
    return Case("TRANSPOSE_CONV", stored=stored, options=options, at=2, note=f"k{kernel}-s{stride}-{padding}")


def pool(op: str, padding: int, stride: int, height: int, width: int, act: int = 0) -> Case:
    options = {"padding": padding, "strideW": stride, "strideH": stride, "filterWidth": width, "filterHeight": height}
    options["fusedActivationFunction"] = act
    return Case(op, options=options, kind="Pool2D", note=f"{padding}-s{stride}-{height}x{width}")


def resized(op: str, size: tuple[int, int], corners: bool, half: bool) -> Case:
    options = {"alignCorners": corners, "halfPixelCenters": half}
    return Case(op, stored={1: i(*size)}, options=options, note=f"{size}-{corners:d}{half:d}")


POSITIVE = f(*IMAGE, low=0.1)
UNARY = "RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LOGISTIC TANH ELU HARD_SWISH EXP SQUARE NEG ABS SIN COS".split()  # noqa: SIM905
UNARY += ["FLOOR", "CEIL", "ROUND"]
POOLS = ("MAX_POOL_2D", "AVERAGE_POOL_2D")
CHANNELS = {1: f(4, low=0.5)}
CLIPPED = {"fusedActivationFunction": 1}
IMAGES = [
    *(Case(op, f(*IMAGE, low=-8, high=8)) for op in UNARY),
    image("LEAKY_RELU", alpha=0.3),
    image("GELU", approximate=False),
    image("GELU", note="tanh", approximate=True),
    Case("PRELU", stored={1: f(1, 1, 4, low=0.1)}),
    Case("PRELU", stored={1: f(7, 6, 4, low=0.1)}, note="everywhere"),
    image("SOFTMAX", beta=1.0),
    image("SOFTMAX", note="beta", beta=0.5),
    image("LOG_SOFTMAX"),
    image("L2_NORMALIZATION", kind="L2Norm"),
    *(Case(op, stored={1: f(*IMAGE, low=0.5, seed=2)}, options=CLIPPED) for op in ("ADD", "MUL")),
    *(Case(op, stored=CHANNELS, note="channels") for op in ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM")),
    Case("SUB", stored={0: f(6, 1)}, at=1, note="columns"),
    Case("ADD", stored={1: np.array(1.5, np.float32)}, note="scalar"),
    Case("ADD", given={1: f(*IMAGE, seed=3)}, options={"fusedActivationFunction": 3}, note="two-inputs"),
    Case("MUL", given={1: f(1, 1, 1, 4)}, note="gate"),
    Case("MUL", given={1: f(6, 4)}, note="lower-rank"),
    Case("SQUARED_DIFFERENCE", given={1: f(*IMAGE, seed=3)}),
    conv((3, 3), SAME), conv((3, 3), SAME, 2), conv((2, 2), SAME, 2), conv((3, 3), VALID, 2, act=1),
    conv((2, 5), SAME, 1, act=3), conv((3, 3), SAME, 1, 2), conv((3, 2), VALID, 1, 2), conv((1, 1), SAME, 2, act=2),
    Case("CONV_2D", stored={1: f(6, 3, 3, 2), 2: f(6)}, options={"padding": SAME, **STRIDES}, note="groups"),
    depthwise(1, SAME), depthwise(1, SAME, 2), depthwise(2, VALID), depthwise(1, SAME, 1, 2),
    deconv(3, 2, SAME, (14, 12)), deconv(3, 2, VALID, (15, 13)), deconv(4, 2, SAME, (14, 12)),
    deconv(2, 2, VALID, (14, 12)), deconv(2, 3, SAME, (21, 18)), deconv(3, 2, SAME, (13, 11), bias=True),
    *(pool(op, SAME, 2, 2, 2) for op in POOLS),
    *(pool(op, SAME, 2, 3, 3) for op in POOLS),
    *(pool(op, SAME, 1, 3, 2) for op in POOLS),
    *(pool(op, SAME, 1, 3, 3, act=1) for op in POOLS),
    *(pool(op, VALID, 2, 3, 2) for op in POOLS),
    pool("AVERAGE_POOL_2D", VALID, 1, 7, 6),
    *(
        Case(op, stored={1: i(*axes)}, options={"keepDims": keep}, kind="Reducer", note=f"{axes}-{keep:d}")
        for op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")
        for axes in ((1, 2), (2, 1), (3,), (1,), (-1, 1), (1, 2, 3))
        for keep in (False, True)
    ),
    Case("CONCATENATION", given={1: f(1, 7, 6, 2)}, options={"axis": 3}),
    Case("CONCATENATION", given={1: f(1, 2, 6, 4)}, options={"axis": -3}, note="rows"),
    Case("CONCATENATION", stored={1: f(1, 7, 6, 1)}, options={"axis": -1}, note="stored"),
    Case("PAD", stored={1: np.array([[0, 0], [1, 2], [3, 0], [0, 1]], np.int32)}),
    Case("PADV2", stored={1: np.array([[0, 0], [1, 2], [3, 0], [0, 0]], np.int32), 2: np.array(-3, np.float32)}),
    Case("MIRROR_PAD", stored={1: np.array([[0, 0], [1, 2], [3, 0], [0, 0]], np.int32)}, options={"mode": 0}),
    Case("SLICE", stored={1: i(0, 1, 2, 1), 2: i(1, 3, -1, 2)}),
    *(
        Case("STRIDED_SLICE", stored={1: i(*begin), 2: i(*end), 3: i(*steps)}, options=options, note=note)
        for note, begin, end, steps, options in (
            ("plain", (0, 1, 0, 1), (1, 6, 6, 3), (1, 2, 1, 1), {}),
            ("masks", (0, 3, 3, 1), (1, 3, 3, 9), (1, 1, 2, 1), {"beginMask": 2, "endMask": 4}),
            ("negative", (0, -1, 4, 0), (1, 0, 0, 4), (1, -2, -1, 1), {}),
            ("whole-back", (0, 0, 0, 0), (0, 0, 0, 0), (1, -1, 1, -1), {"beginMask": 15, "endMask": 15}),
            ("shrink", (0, 2, -2, 0), (1, 3, 3, 4), (1, 1, 1, 1), {"shrinkAxisMask": 5}),
            ("fewer-axes", (0, 2), (1, 5), (1, 1), {}),
        )
    ),
    Case("SPLIT", stored={0: np.array(3, np.int32)}, at=1, options={"numSplits": 2}, outputs=2),
    Case("SPLIT_V", stored={1: i(2, -1, 1), 2: np.array(1, np.int32)}, options={"numSplits": 3}, outputs=3),
    Case("RESHAPE", stored={1: i(1, -1)}),
    Case("RESHAPE", stored={1: i(1, 42, 4)}, note="positions"),
    Case("RESHAPE", stored={1: i(1, 6, 7, 4)}, note="image"),
    Case("TRANSPOSE", stored={1: i(0, 3, 1, 2)}, note="to-first"),
    Case("TRANSPOSE", stored={1: i(0, 2, 3, 1)}, note="to-last"),
    Case("TRANSPOSE", stored={1: i(0, 2, 1, 3)}, note="turned"),
    Case("EXPAND_DIMS", stored={1: np.array(-1, np.int32)}),
    Case("UNPACK", options={"num": 6, "axis": 2}, outputs=6),
    Case("PACK", given={1: f(*IMAGE, seed=2)}, options={"valuesCount": 2, "axis": 1}),
    Case("TILE", stored={1: i(1, 2, 1, 3)}),
    Case("GATHER", stored={1: i(3, 0, 3)}, options={"axis": 3}, note="channels"),
    *(resized("RESIZE_BILINEAR", (14, 9), corners, half) for corners, half in ((0, 0), (1, 0), (0, 1))),
    *(resized("RESIZE_BILINEAR", (3, 4), corners, half) for corners, half in ((0, 0), (1, 0), (0, 1))),
    *(resized("RESIZE_NEAREST_NEIGHBOR", (14, 9), corners, half) for corners, half in ((0, 0), (1, 0), (0, 1))),
    *(resized("RESIZE_NEAREST_NEIGHBOR", (3, 4), corners, half) for corners, half in ((0, 0), (1, 0), (0, 1))),
]  # fmt: skip
TURNED_BOTH = {"adjX": True, "adjY": True}
OTHERS = [
    *(Case(op, POSITIVE) for op in ("LOG", "SQRT", "RSQRT")),
    Case("POW", POSITIVE, given={1: f(*IMAGE)}),
    Case("CAST", i(3, 4).reshape(1, 2), options={"inDataType": 2, "outDataType": 0}),
    Case("CAST", f(1, 5, high=9), options={"inDataType": 0, "outDataType": 2}, results={"y0": 2}, note="to-int"),
    Case("DIV", i(7, -7, 9), stored={1: i(2, 2, -4)}, results={"y0": 2}, note="integers"),
    Case("FULLY_CONNECTED", f(3, 5), {1: f(4, 5), 2: f(4)}, options={"fusedActivationFunction": 1}),
    Case("FULLY_CONNECTED", f(2, 3, 5), {1: f(4, 5), 2: f(4)}, options={"keepNumDims": True}, note="keep"),
    Case("FULLY_CONNECTED", f(2, 3, 5), {1: f(4, 5)}, absent=(2,), options={"keepNumDims": False}, note="flatten"),
    Case("FULLY_CONNECTED", f(3, 5), given={1: f(4, 5)}, absent=(2,), note="given-weight"),
    Case("BATCH_MATMUL", f(2, 3, 5), given={1: f(2, 5, 4)}),
    Case("BATCH_MATMUL", f(2, 5, 3), given={1: f(2, 4, 5)}, options=TURNED_BOTH, note="turned"),
    Case("BATCH_MATMUL", f(2, 3, 5), {1: f(5, 4)}, note="stored"),
    Case("GATHER", i(3, 0, 2).reshape(1, 3), {0: f(5, 4)}, at=1, note="embedding"),
    Case("SQUEEZE", f(1, 1, 3, 1), options={"squeezeDims": [1, -1]}),
    Case("SQUEEZE", f(1, 1, 3, 1), options={"squeezeDims": []}, note="all"),
    Case("RESHAPE", f(2, 6), options={"newShape": [3, 4]}, note="option"),
    Case("RESHAPE", f(1, 42), {1: i(1, 7, 6, 1)}, note="to-image"),
    Case("BROADCAST_TO", f(1, 3), {1: i(4, 3)}),
    Case("PAD", f(3, 4), {1: np.array([[1, 0], [0, 2]], np.int32)}, note="matrix"),
    Case("MIRROR_PAD", f(5, 6), {1: np.array([[0, 0], [1, 2]], np.int32)}, options={"mode": 0}, note="matrix"),
    Case("TRANSPOSE", f(2, 3, 4), {1: i(2, 0, 1)}, note="three"),
    Case("CONCATENATION", f(2, 3), given={1: f(2, 1)}, options={"axis": 1}, note="matrix"),
    Case("SUM", f(2, 3), {1: i(0)}, kind="Reducer", note="matrix"),
]  # fmt: skip


class Permutes(TorchDispatchMode):
    """How many times something is turned."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.permute.default
        return func(*args, **(kwargs or {}))


def compared(net: Net, folder: Path) -> int:
    """Compare with LiteRT; how many permutes there were."""
    path, values = net.save(folder), list(net.given.values())
    module, example = import_tflite(path)
    assert [tuple(item.shape) for item in example] == [value.shape for value in values]
    with torch.no_grad(), Permutes() as turned:
        found = module(*map(torch.from_numpy, values))
    wanted = in_litert(path, *values)
    assert list(found) == net.outputs
    for mine, theirs in zip(found.values(), wanted, strict=True):
        assert (mine.shape, mine.numpy().dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=2e-5, atol=2e-5)
    return turned.count


@pytest.mark.parametrize("case", [*IMAGES, *OTHERS], ids=str)
def test_alone(case: Case, tmp_path: Path) -> None:
    compared(case.net(inside=False), tmp_path)


@pytest.mark.parametrize("case", IMAGES, ids=str)
def test_after_a_convolution(case: Case, tmp_path: Path) -> None:
    compared(case.net(inside=True), tmp_path)


TURNED = {"RESHAPE", "EXPAND_DIMS", "UNPACK", "PACK", "TILE", "GATHER"}  # those that count elements in the file's order


@pytest.mark.parametrize(
    "case", [c for c in IMAGES if c.op not in TURNED and not c.given and c.note not in ("turned", "to-last")], ids=str
)
def test_between_convolutions_nothing_is_turned(case: Case, tmp_path: Path) -> None:
    """One permute at the input, one for each output that is an image."""
    net = case.net(inside=True)
    shapes = [value.shape for value in in_litert(net.bytes(), case.x)]
    images = sum(len(shape) == 4 for shape in shapes) - (case.note == "to-first")
    moved = case.op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN") and len(shapes[0]) == 3 and shapes[0][-1] == 4
    shrunk = case.note == "shrink"
    assert compared(net, tmp_path) == 1 + images + moved + shrunk


def test_every_operator_has_a_case() -> None:
    elsewhere = {"DEQUANTIZE", "SHAPE"}  # in test_tflite_import
    assert set(OPERATORS) == {case.op for case in [*IMAGES, *OTHERS]} | elsewhere
