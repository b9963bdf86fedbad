"""What `verify` catches in a damaged file, and that it names the operator: scales dropped, a transposed layout, a
re-quantised weight, a wrong zero point; in ONNX Runtime, LiteRT and ExecuTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from octavo.api import verify  # noqa: E402
from octavo.api.programs import ModelPrograms  # noqa: E402
from octavo.core.grid import pack  # noqa: E402
from octavo.core.manifest import KEY, Manifest  # noqa: E402
from octavo.core.model import CompressedModel, TensorRecord  # noqa: E402
from octavo.core.store import StoreWriter  # noqa: E402
from octavo.core.tensor import QuantizedTensor, float_digest  # noqa: E402
from octavo.errors import BadInput  # noqa: E402
from octavo.records import VerifyRecord, exit_code  # noqa: E402
from octavo.runtimes.base import no_progress, runtime  # noqa: E402
from octavo.sources.torch import capture, describe  # noqa: E402
from tests.models import MemoryReader  # noqa: E402
from tests.static_models import absmax, convnet, static_model  # noqa: E402

SHAPE = (1, 3, 16, 16)
WEIGHT, EDGE, OPERATOR = "down.weight", "relu_1", "relu_3"  # OPERATOR: the value that WEIGHT's convolution gives
SUFFIXES = {"onnxruntime": ".onnx", "litert": ".tflite"}
Array = np.ndarray[Any, Any]


def stored(model: CompressedModel, directory: Path) -> Path:
    """The model as a directory, for --compressed."""
    directory.mkdir()
    writer = StoreWriter(directory, {item.name: (item.shape, item.scheme) for item in model.tensors})
    for item in model.tensors:
        value = model.tensor(item.name)
        if isinstance(value, QuantizedTensor):
            writer.codes(item.name, 0, pack(value.codes.reshape(value.shape[0], -1), value.range.bits))
            writer.scales(item.name, 0, value.scale)
        else:
            writer.floats(item.name, 0, value)
    writer.finish(model)
    return directory


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.onnx, m.tflite, the compressed model and data.npz."""
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("litert_torch")
    home = tmp_path_factory.mktemp("catches")
    model = static_model(convnet(), (torch.zeros(SHAPE),))
    stored(model, home / "folded")
    rng = np.random.default_rng(5)
    np.savez(home / "data.npz", x=rng.standard_normal((4, *SHAPE[1:])).astype(np.float32))
    for name, suffix in SUFFIXES.items():
        target = runtime(name)
        target.lower(model, target.carry(model), home / f"m{suffix}", ModelPrograms(model), no_progress)
    return home


def verified(path: Path, home: Path, compressed: bool = True, **more: Any) -> VerifyRecord:
    module: Any = convnet()
    return verify(
        path, against=module, example_inputs=(torch.zeros(SHAPE),), data=home / "data.npz", min_sqnr=22,
        compressed=home / "folded" if compressed else None, threads=1, **more,
    )  # fmt: skip


def named(record: VerifyRecord) -> set[str]:
    return {item["name"] for item in record.weights["wrong"]} if isinstance(record.weights, dict) else set()


# What is done to a file, in each format. A damaged weight is done through `change(codes, scales)`.


def requantised(codes: Array, scale: Array) -> tuple[Array, Array]:
    """What a converter makes that quantises the decoded weights again, to a scale of its own: six levels fewer bits."""
    coarse = np.asarray(scale * 24, np.float32)
    wide = (-1, *[1] * (codes.ndim - 1))
    return np.clip(np.rint(codes * scale.reshape(wide) / coarse.reshape(wide)), -127, 127).astype(np.int8), coarse


def dropped(codes: Array, scale: Array) -> tuple[Array, Array]:
    """As if the codes were the weights."""
    return codes, np.ones_like(scale)


def swapped(codes: Array, scale: Array) -> tuple[Array, Array]:
    """Height and width; both formats have them as neighbours, in different places."""
    first = 2 if codes.shape[2] == codes.shape[3] else 1
    return np.ascontiguousarray(codes.swapaxes(first, first + 1)), scale


def in_onnx(path: Path, to: Path, change: Any = None, zero_point: int = 0, turned: tuple[int, ...] = ()) -> None:
    """A weight changed, an edge's zero point moved, the input's axes turned and read as if they were not."""
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    held = {item.name: item for item in model.graph.initializer}

    def put(name: str, array: Array) -> None:
        held[name].CopyFrom(numpy_helper.from_array(array, name))

    if change is not None:
        old = [numpy_helper.to_array(held[f"{WEIGHT}.{part}"]) for part in ("codes", "scale")]
        for part, array, before in zip(("codes", "scale"), change(*old), old, strict=True):
            put(f"{WEIGHT}.{part}", array.astype(before.dtype))
    if zero_point:
        before = numpy_helper.to_array(held[f"{EDGE}.zero"])
        put(f"{EDGE}.zero", np.array(before + zero_point, before.dtype))
    if turned:
        nodes = [
            helper.make_node("Transpose", ["x"], ["x.turned"], perm=turned),
            helper.make_node("Reshape", ["x.turned", "x.shape"], ["x.read"]),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.array(SHAPE, np.int64), "x.shape"))
        for node in model.graph.node:
            node.input[:] = ["x.read" if name == "x" else name for name in node.input]
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *rest])
    onnx.save(model, str(to))


def in_tflite(path: Path, to: Path, change: Any = None, zero_point: int = 0, turned: tuple[int, ...] = ()) -> None:
    """The same in a .tflite; its input's axes are turned by the transposition to channels last that it begins with."""
    from octavo.runtimes.tflite.graph import Graph

    graph = Graph(path.read_bytes())
    names = {item.name.decode(): index for index, item in enumerate(graph.tensors)}
    if change is not None:
        index = names[WEIGHT]
        held = graph.quantization(index)
        assert held is not None
        scale, zero, axis = held
        codes, scale = change(graph.values(index), scale)
        graph.set_data(index, "INT8", codes)
        graph.quantize(index, scale, zero, axis)
    if zero_point:
        index = names[EDGE]
        held = graph.quantization(index)
        assert held is not None
        scale, zero, axis = held
        graph.quantize(index, scale, zero + zero_point, axis)
    if turned:
        first = next(item for item in graph.operators if graph.kind(item) == "TRANSPOSE")
        graph.set_data(int(first.inputs[1]), "INT32", np.array(turned, np.int32))
    to.write_bytes(graph.pack())


FORMATS = {"onnxruntime": in_onnx, "litert": in_tflite}


def unsigned(path: Path) -> None:
    """Take the manifest out, as for a file that somebody else wrote."""
    if path.suffix == ".onnx":
        model = onnx.load(str(path))
        kept = [item for item in model.metadata_props if item.key != KEY]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        onnx.save(model, str(path))
    else:
        data = path.read_bytes()
        assert KEY.encode() in data
        path.write_bytes(data.replace(KEY.encode(), b"somebodys.thing"))


def resealed(path: Path) -> None:
    """Make the manifest agree with the graph: what a converter's own mistake at export looks like."""
    if path.suffix == ".onnx":
        from octavo.runtimes.onnx.write import graph_digest

        model = onnx.load(str(path))
        entry = next(item for item in model.metadata_props if item.key == KEY)
        manifest = Manifest.from_json(entry.value)
        digest = graph_digest(model, [at for item in manifest.tensors for at in item.at])
        entry.value = replace(manifest, extra=manifest.extra | {"graph": digest}).to_json()
        onnx.save(model, str(path))
    else:
        from octavo.runtimes.tflite.file import TfliteFile, manifest_of
        from octavo.runtimes.tflite.graph import Graph
        from octavo.runtimes.tflite.write import write

        written = manifest_of(TfliteFile(path))
        assert written is not None
        graph = Graph(path.read_bytes())
        graph.model.metadata = []
        write(path, graph, written, {})


@pytest.fixture(params=list(FORMATS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def damaged(form: str, home: Path, tmp_path: Path, **how: Any) -> Path:
    path = tmp_path / f"damaged{SUFFIXES[form]}"
    FORMATS[form](home / f"m{SUFFIXES[form]}", path, **how)
    return path


def test_an_untouched_file_passes_and_is_bisected_only_when_asked(form: str, home: Path) -> None:
    path = home / f"m{SUFFIXES[form]}"
    record = verified(path, home)
    assert record.passed
    assert record.diverges is None
    found = verified(path, home, bisect=True).diverges
    assert found is not None
    assert {"x", "relu", OPERATOR, "linear"} <= {item["name"] for item in found["operators"]}
    assert all(item["sqnr_db"] >= item["simulated_db"] - 1 for item in found["operators"])
    assert found["cause"] == "quantisation"


@pytest.mark.parametrize("change", [requantised, dropped, swapped])
def test_a_changed_weight_is_named_and_its_operator(form: str, home: Path, tmp_path: Path, change: Any) -> None:
    path = damaged(form, home, tmp_path, change=change)
    record = verified(path, home)
    assert exit_code(record.gates) == 6
    # A LiteRT bias has the weight's scales: with them it changes.
    assert {WEIGHT} <= named(record) <= {WEIGHT, "down.bias"}
    assert record.diverges is not None
    assert record.diverges["operator"] == OPERATOR
    assert record.diverges["cause"] == ("layout" if change is swapped else "file")
    assert exit_code(verified(path, home, compressed=False).gates) == 6


@pytest.mark.parametrize("change", [requantised, dropped, swapped])
def test_without_a_manifest_the_compressed_model_tells(form: str, home: Path, tmp_path: Path, change: Any) -> None:
    path = damaged(form, home, tmp_path, change=change)
    unsigned(path)
    record = verified(path, home)
    assert exit_code(record.gates) == 6
    assert {WEIGHT} <= named(record) <= {WEIGHT, "down.bias"}
    assert record.diverges is not None
    assert record.diverges["operator"] == OPERATOR


@pytest.mark.parametrize("change", [requantised, dropped, swapped])
def test_with_neither_the_outputs_alone_name_the_operator(form: str, home: Path, tmp_path: Path, change: Any) -> None:
    path = damaged(form, home, tmp_path, change=change)
    unsigned(path)
    record = verified(path, home, compressed=False)
    assert record.weights == "unknown"
    assert exit_code(record.gates) == 6
    assert record.diverges is not None
    assert record.diverges["operator"] == OPERATOR
    assert ("swapped" in record.diverges["reason"]) == (change is swapped)


def test_an_untouched_file_without_a_manifest_is_exact_beside_its_model(form: str, home: Path, tmp_path: Path) -> None:
    path = damaged(form, home, tmp_path)
    unsigned(path)
    record = verified(path, home)
    assert record.weights == "exact"
    assert record.passed


def test_a_wrong_zero_point_is_named_by_its_edge(form: str, home: Path, tmp_path: Path) -> None:
    path = damaged(form, home, tmp_path, zero_point=40)
    for compressed in (True, False):
        record = verified(path, home, compressed=compressed)
        assert exit_code(record.gates) == 6
        assert named(record) == {EDGE}
    unsigned(path)
    record = verified(path, home)
    assert exit_code(record.gates) == 6
    assert named(record) == {EDGE}


LAYOUTS = {"onnxruntime": {"height and width": (0, 1, 3, 2), "NHWC": (0, 2, 3, 1)}, "litert": {"height": (0, 3, 2, 1)}}


def test_a_transposed_input_is_named_even_where_the_manifest_agrees(form: str, home: Path, tmp_path: Path) -> None:
    for words, axes in LAYOUTS[form].items():
        path = damaged(form, home, tmp_path, turned=axes)
        edited = verified(path, home)
        assert exit_code(edited.gates) == 6
        assert edited.outputs is None
        resealed(path)
        record = verified(path, home)
        for found in (edited, record):
            assert found.diverges is not None
            assert found.diverges["operator"] == ("x" if form == "onnxruntime" else "relu")
            assert found.diverges["cause"] == "layout"
            assert words in found.diverges["reason"]
        if form == "onnxruntime":
            assert record.weights == "exact"
            assert [gate["gate"] for gate in record.gates] == ["min_sqnr"]


def test_bisect_needs_data_and_says_so(home: Path) -> None:
    with pytest.raises(BadInput, match="--data"):
        verify(home / "m.onnx", bisect=True)


class Pair(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 96), nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


def pair() -> Any:
    torch.manual_seed(0)
    return Pair().eval()


LOWERS = """
import sys, torch, torchao.quantization as quantization
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.granularity import PerAxis
from tests.api.test_verify_catches import pair
module, inputs = pair(), (torch.zeros(1, 64),)
how = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
quantization.quantize_(module, how)
lowered = to_edge_transform_and_lower(torch.export.export(module, inputs), partitioner=[XnnpackPartitioner()])
open(sys.argv[1], "wb").write(lowered.to_executorch().buffer)
"""


def test_executorchs_weight_only_trap_is_caught_and_explained(tmp_path: Path) -> None:
    """torchao's weight-only int8 lowered to XNNPACK: the codes go in without their scales, and nobody is told."""
    pytest.importorskip("executorch")
    pytest.importorskip("torchao")
    path, root = tmp_path / "trap.pte", Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", LOWERS, str(path)], check=True, cwd=root, capture_output=True, timeout=600)
    program, found = describe(capture(pair(), (torch.zeros(1, 64),)))
    values: dict[str, Any] = {name: absmax(a, "w8") if role == "matmul" else a for name, a, role in found}
    records = tuple(
        TensorRecord(name, a.shape, role, "w8" if role == "matmul" else "fp32", digest_of(values[name]))
        for name, a, role in found
    )
    folded = stored(CompressedModel(program, records, MemoryReader(values)), tmp_path / "folded")
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32))
    given: dict[str, Any] = {
        "against": pair(), "example_inputs": (torch.zeros(1, 64),), "data": data, "min_sqnr": 20, "threads": 1,
    }  # fmt: skip
    record = verify(path, compressed=folded, **given)
    assert exit_code(record.gates) == 6
    assert {gate["gate"] for gate in record.gates} == {"weights", "min_sqnr"}
    assert {"a.weight", "b.weight"} <= named(record)
    assert record.outputs is not None
    assert record.outputs["sqnr_db"] < -60
    assert record.diverges is not None
    assert record.diverges["operator"] == "linear_1"
    assert "scales of all weights dropped" in record.diverges["reason"]
    alone = verify(path, **given)
    assert alone.weights == "unknown"
    assert exit_code(alone.gates) == 6


def digest_of(value: Any) -> str:
    return str(value.digest() if isinstance(value, QuantizedTensor) else float_digest(value))
