"""TFLite files that hold exactly our codes, run in LiteRT itself, against torch with the dequantised weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("litert_torch")
pytest.importorskip("ai_edge_litert")
from torch import nn  # noqa: E402

from octavo.api.programs import ModelPrograms  # noqa: E402
from octavo.core.carriage import possible  # noqa: E402
from octavo.core.grid import portable_scale  # noqa: E402
from octavo.core.manifest import EditedManifest  # noqa: E402
from octavo.core.model import CompressedModel, Program, State, TensorRecord, TensorValue  # noqa: E402
from octavo.core.scheme import SCHEMES  # noqa: E402
from octavo.core.tensor import QuantizedTensor, float_digest  # noqa: E402
from octavo.errors import BadInput, Missing, OctavoError, Refused  # noqa: E402
from octavo.runtimes.base import no_progress  # noqa: E402
from octavo.runtimes.litert import LiteRt  # noqa: E402
from octavo.runtimes.tflite import convert  # noqa: E402
from octavo.runtimes.tflite.file import TfliteFile  # noqa: E402
from octavo.runtimes.tflite.graph import Graph  # noqa: E402
from octavo.runtimes.tflite.session import interpreter  # noqa: E402
from octavo.sources.torch import capture, describe, load_graph  # noqa: E402
from octavo.verify.weights import check_weights  # noqa: E402
from tests.models import MemoryReader, random_codes  # noqa: E402
from tests.static_models import convnet, simulated, static_model  # noqa: E402

FLOATS = ("fp32", "fp16", "bf16")
STATIC = tuple(name for name, scheme in SCHEMES.items() if scheme.activation)
MATRIX = tuple(name for name in possible("litert", "matmul") if name not in STATIC)
KERNEL = tuple(name for name in possible("litert", "conv") if name not in STATIC)
INT8_ACTIVATIONS = 0.02  # of the largest output: hybrid kernels round activations to int8, one scale per row or image


@pytest.fixture(scope="module", autouse=True)
def one_conversion_per_model() -> Any:
    """What litert-torch makes of a program is the same every time (tested below): several files share it."""
    patch, kept, original = pytest.MonkeyPatch(), dict[str, Any](), convert.converted
    torch.set_num_threads(1)

    def converted(programs: Any, *, static: bool) -> Any:
        key = programs.model.digest
        if key not in kept:
            kept[key] = original(programs, static=static)
        return kept[key]

    patch.setattr(convert, "converted", converted)
    yield
    patch.undo()


def coded(shape: tuple[int, ...], scheme: str, seed: int) -> TensorValue:
    """Values that a reader would get wrong if it guessed: even codes only, a channel of zeros, scales near 1e-3."""
    rng = np.random.default_rng(seed)
    if scheme in FLOATS:
        values = torch.from_numpy(rng.normal(0, 0.3, shape).astype(np.float32))
        half = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[scheme]
        return values.to(half).float().numpy()
    if len(shape) == 2:
        return random_codes(shape, scheme, seed)
    grid = SCHEMES[scheme]
    assert grid.range is not None
    block = grid.block(shape)
    groups = tuple(s // b for s, b in zip(shape, block, strict=True))
    scale = portable_scale(rng.uniform(1e-3, 2e-2, groups).astype(np.float32))
    codes = rng.integers(grid.range.low, grid.range.high + 1, shape, dtype=np.int8)
    codes[0] = 0
    codes[1] &= np.int8(-2)
    codes[1][codes[1] < grid.range.low] = 0
    return QuantizedTensor(codes, scale, block, grid.range)


def compressed(module: nn.Module, inputs: tuple[Any, ...], schemes: dict[str, str]) -> CompressedModel:
    """The graph of `module` with random weights: {parameter: scheme}, the others as they are."""
    program, tensors = describe(capture(module.eval(), inputs))
    records, values = [], {}
    for seed, (name, array, role) in enumerate(tensors):
        scheme = schemes.get(name, "fp32")
        value = coded(array.shape, scheme, seed) if name in schemes else array
        digest = value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)
        records.append(TensorRecord(name, array.shape, role, scheme, digest))
        values[name] = value
    return CompressedModel(program, tuple(records), MemoryReader(values))


def floats(model: CompressedModel) -> dict[str, Any]:
    values = {record.name: model.tensor(record.name) for record in model.tensors}
    return {n: v.dequantize() if isinstance(v, QuantizedTensor) else v for n, v in values.items()}


def lowered(model: CompressedModel, path: Path, **options: Any) -> Path:
    runtime = LiteRt()
    runtime.lower(model, runtime.carry(model), path, ModelPrograms(model), no_progress, **options)
    return path


def verdict(path: Path, model: CompressedModel | None = None) -> Any:
    back = LiteRt().read_back(path)
    return check_weights(back, back.manifest, model, carry=LiteRt().carry).verdict


def operators(path: Path) -> list[str]:
    return [kind for kind, _, _ in TfliteFile(path).operators()]


class Zoo(nn.Module):
    """One linear layer, one embedding, one grouped and one depthwise convolution (nine weights a channel) per scheme;
    K = 172 where no group has to divide it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleDict(
            {s: nn.Linear(128 if SCHEMES.get(s, SCHEMES["w8"]).group else 172, 24) for s in MATRIX}
        )
        self.embedding = nn.ModuleDict({s: nn.Embedding(40, layer.in_features) for s, layer in self.linear.items()})
        self.conv = nn.ModuleDict({s: nn.Conv2d(6, 9, 3, groups=3, bias=False) for s in KERNEL})
        self.depthwise = nn.ModuleDict({s: nn.Conv2d(6, 6, 3, groups=6) for s in KERNEL})
        self.transposed = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.line = nn.Conv1d(64, 5, 3)

    def forward(self, ids: Any, image: Any) -> Any:
        found = {}
        for name, table in self.embedding.items():
            found[f"embedding.{name}"] = table(ids)
            found[f"linear.{name}"] = self.linear[name](table(ids))
        for kind in ("conv", "depthwise"):
            found |= {f"{kind}.{name}": layer(image) for name, layer in getattr(self, kind).items()}
        found["transposed"] = self.transposed(image)
        return found | {"line": self.line(image.flatten(2).transpose(1, 2))}


def zoo_inputs() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 40, (1, 5), generator=generator), torch.randn(1, 6, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    module = Zoo()
    names = [name for name, _ in module.named_parameters() if name.endswith(".weight") and name.count(".") == 2]
    schemes = {name: name.split(".")[1] for name in names} | {"line.weight": "w8", "line.bias": "fp16"}
    model = compressed(module, zoo_inputs(), schemes)
    return model, lowered(model, tmp_path_factory.mktemp("zoo") / "zoo.tflite")


def test_every_scheme_of_the_table_reads_back_exactly(zoo: tuple[CompressedModel, Path]) -> None:
    model, path = zoo
    assert {record.scheme for record in model.tensors if record.role == "matmul"} == set(MATRIX)
    assert {record.scheme for record in model.tensors if record.role == "conv"} == set(KERNEL)
    assert verdict(path) == verdict(path, model) == "exact"


def test_every_scheme_computes_what_torch_does(zoo: tuple[CompressedModel, Path]) -> None:
    model, path = zoo
    ids, image = zoo_inputs()
    with torch.no_grad():
        expected = load_graph(model.program, floats(model))(ids, image)
    found, state = LiteRt().open(path, threads=1).step({"ids": ids.numpy(), "image": image.numpy()})
    assert state == {}
    assert set(found) == set(expected)
    for name, value in expected.items():
        reference, scheme = value.numpy(), name.partition(".")[2]
        exact = name.startswith(("embedding", "depthwise", "transposed")) or scheme in FLOATS
        error = np.abs(found[name] - reference).max() / np.abs(reference).max()
        assert error <= (1e-5 if exact else INT8_ACTIVATIONS), name
        if name.startswith("embedding"):
            assert np.array_equal(found[name], reference), name


def test_codes_lie_in_their_own_bits(zoo: tuple[CompressedModel, Path]) -> None:
    back: Any = LiteRt().read_back(zoo[1])
    kinds = {name: kind for name, _, kind in back.listing()}
    assert kinds["linear.w4g64.weight"] == kinds["conv.w4.weight"] == kinds["depthwise.ternary.weight"] == "INT4"
    assert kinds["linear.w8.weight"] == kinds["depthwise.w8t.weight"] == kinds["line.weight"] == "INT8"
    assert kinds["linear.fp16.weight"] == kinds["conv.fp16.weight"] == "FLOAT16"
    assert kinds["line.bias"] == "FLOAT32", "beside integer weights"
    carried = {item.name: item for item in back.manifest.tensors}
    assert carried["linear.w3g32.weight"].moves == ("widened to 4 bits",)
    assert carried["linear.w3g32.weight"].why
    assert not carried["linear.w4.weight"].why
    assert any("int8 as they come" in note for note in back.manifest.notes)


def test_every_operator_says_whose_kernel_runs_it(zoo: tuple[CompressedModel, Path]) -> None:
    placed = LiteRt().open(zoo[1], threads=1).placement()
    assert len(placed) == len(operators(zoo[1]))
    assert {item.unit for item in placed} == {"cpu"}
    assert {item.reason for item in placed} == {"XNNPACK", "LiteRT kernel"}
    kernels = {item.op: item.reason for item in placed}
    assert kernels["conv.w8#2 (CONV_2D)"] == "XNNPACK", "its result is turned into the output that is called conv.w8"
    assert kernels["conv.w4#2 (CONV_2D)"] == "LiteRT kernel"


@pytest.fixture(scope="module", params=STATIC)
def static(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    model = static_model(convnet(), (torch.randn(1, 3, 16, 16),), request.param)
    return model, lowered(model, tmp_path_factory.mktemp(request.param) / "m.tflite")


def images(count: int = 4) -> list[Any]:
    return [np.random.default_rng(seed).normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for seed in range(count)]


def test_static_schemes_are_exact_and_compute_the_simulation(static: tuple[CompressedModel, Path]) -> None:
    model, path = static
    back: Any = LiteRt().read_back(path)
    assert verdict(path) == verdict(path, model) == "exact"
    assert back.edges() == {edge.name: edge for edge in model.edges}
    session, expected, step = LiteRt().open(path, threads=1), simulated(model), model.edges[-1].scale
    for x in images():
        found = session.step({"x": x})[0]["output"]
        assert np.abs(found - expected(x)).max() <= 2.1 * step


def test_no_operator_but_the_networks_own(static: tuple[CompressedModel, Path]) -> None:
    """Where channels go and what is padded is settled inside; only the ends cost anything."""
    assert operators(static[1]) == [
        "QUANTIZE", "TRANSPOSE", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MAX_POOL_2D", "PAD", "CONV_2D",
        "MEAN", "FULLY_CONNECTED", "DEQUANTIZE",
    ]  # fmt: skip


def test_integers_at_the_ends_and_channels_last(static: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    model, path = static
    bare = lowered(model, tmp_path / "bare.tflite", io="int8", layout="nhwc")
    assert operators(bare) == operators(path)[2:-1]
    assert verdict(bare, model) == "exact"
    back: Any = LiteRt().read_back(bare)
    ends, edges = back.manifest.extra["io"], {edge.name: edge for edge in model.edges}
    into, out = ends["inputs"]["x"], ends["outputs"]["output"]
    assert (into["scale"], into["zero_point"], into["type"]) == (
        edges["x"].scale,
        edges["x"].zero_point,
        edges["x"].dtype,
    )
    assert (into["layout"], into["shape"]) == ("NHWC", [1, 16, 16, 3])
    assert (out["scale"], out["zero_point"]) == (edges["linear"].scale, edges["linear"].zero_point)
    session, x = LiteRt().open(bare, threads=1), images(1)[0]
    codes = np.clip(np.rint(x.transpose(0, 2, 3, 1) / into["scale"]) + into["zero_point"], -32768, 32767)
    info = np.iinfo(into["type"])
    integers = session.step({"x": np.clip(codes, info.min, info.max).astype(into["type"])})[0]["output"]
    assert integers.dtype == into["type"]
    floats_in = session.step({"x": x})[0]["output"]
    assert np.array_equal(floats_in, LiteRt().open(path, threads=1).step({"x": x})[0]["output"])
    assert np.array_equal(floats_in, (integers.astype(np.float32) - out["zero_point"]) * np.float32(out["scale"]))


def test_the_same_model_gives_the_same_bytes(static: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    model, path = static
    if model.record("first.weight").scheme == "w8a8":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convert, "converted", REAL)
            assert lowered(model, tmp_path / "again.tflite").read_bytes() == path.read_bytes()


REAL = convert.converted


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    model = static_model(convnet(), (torch.randn(1, 3, 16, 16),), "w8a8")
    return model, lowered(model, tmp_path_factory.mktemp("int8") / "m.tflite")


def named(graph: Graph, name: str) -> int:
    return next(index for index, tensor in enumerate(graph.tensors) if tensor.name.decode() == name)


def another_code(graph: Graph) -> str:
    data = graph.data(named(graph, "down.weight")).copy()
    data[5] ^= 1
    graph.set_data(named(graph, "down.weight"), "INT8", data)
    return "down.weight"


def another_scale(graph: Graph) -> str:
    scale, zero, axis = graph.quantization(named(graph, "first.weight"))
    graph.quantize(named(graph, "first.weight"), scale * np.float32(2), zero, axis)
    return "first.weight"


def no_scales(graph: Graph) -> str:
    graph.tensors[named(graph, "pointwise.weight")].quantization = None
    return "pointwise.weight"


def another_zero_point(graph: Graph) -> str:
    scale, zero, axis = graph.quantization(named(graph, "relu_2"))
    graph.quantize(named(graph, "relu_2"), scale, zero + 1, axis)
    return "relu_2"


def another_layout(graph: Graph) -> str:
    values = graph.values(named(graph, "down.weight"))
    turned = np.ascontiguousarray(values.transpose(0, 2, 1, 3))
    graph.set_data(named(graph, "down.weight"), "INT8", turned.reshape(-1).view(np.uint8))
    return "down.weight"


def another_bias(graph: Graph) -> str:
    codes = graph.values(named(graph, "head.bias")).copy()
    codes[0] += 1
    graph.set_data(named(graph, "head.bias"), "INT32", codes.view(np.uint8))
    return "head.bias"


CHANGES = (another_code, another_scale, no_scales, another_zero_point, another_layout, another_bias)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_named(
    int8: tuple[CompressedModel, Path], tmp_path: Path, change: Callable[[Graph], str]
) -> None:
    graph, path = Graph(int8[1].read_bytes()), tmp_path / "changed.tflite"
    name = change(graph)
    path.write_bytes(graph.pack())
    with pytest.raises(EditedManifest) as caught:
        _ = LiteRt().read_back(path).manifest
    assert caught.value.names[0] == name
    assert name in caught.value.names


def test_a_flipped_weight_is_found_though_the_rest_is_whole(int8: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    file = TfliteFile(int8[1])
    start, _ = file.span(file.bytes_of(file.names["depthwise.weight"]))
    data, path = bytearray(int8[1].read_bytes()), tmp_path / "flipped.tflite"
    data[start + 3] ^= 4
    path.write_bytes(data)
    assert verdict(path)["wrong"][0]["name"] == "depthwise.weight"


def test_a_file_cut_short_is_bad_input(int8: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    data, path = int8[1].read_bytes(), tmp_path / "short.tflite"
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(OctavoError, match="short"):
            LiteRt().open(path).step({"x": images(1)[0]})


def test_flipped_bits_never_crash(int8: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    data, path, rng = int8[1].read_bytes(), tmp_path / "flipped.tflite", np.random.default_rng(0)
    refused = 0
    for _ in range(12):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 8):
            changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            LiteRt().open(path, threads=1).step({"x": images(1)[0]})
            _ = LiteRt().read_back(path).manifest
        except OctavoError:
            refused += 1
    assert refused > 6


def test_a_step_costs_little_over_the_vendors_own(int8: tuple[CompressedModel, Path]) -> None:
    session: Any = LiteRt().open(int8[1], threads=1)
    given, x = {"x": images(1)[0]}, images(1)[0]
    plain = interpreter(int8[1], 1)
    plain.allocate_tensors()
    into, out = plain.get_input_details()[0]["index"], plain.get_output_details()[0]["index"]

    def vendor() -> None:
        plain.set_tensor(into, x)
        plain.invoke()
        plain.get_tensor(out)

    times: dict[str, list[float]] = {"ours": [], "vendor": []}
    for _ in range(400):
        for name, call in (("ours", lambda: session.step(given)), ("vendor", vendor)):
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    assert np.median(times["ours"]) - np.median(times["vendor"]) <= 20e-6


def test_inputs_that_do_not_fit_are_refused(int8: tuple[CompressedModel, Path]) -> None:
    session = LiteRt().open(int8[1], threads=1)
    with pytest.raises(BadInput, match=r"\['x'\]"):
        session.step({"y": images(1)[0]})
    with pytest.raises(BadInput, match=r"\[1, 3, 8, 16\]"):
        session.step({"x": images(1)[0][:, :, :8]})
    with pytest.raises(BadInput, match="complex"):
        session.step({"x": images(1)[0].astype(np.complex64)})
    with pytest.raises(Missing, match="gpu"):
        LiteRt().open(int8[1], units=("gpu",))
    with pytest.raises(BadInput, match="KV"):
        LiteRt().open(int8[1], kv="f16")


def test_a_foreign_file_runs_under_its_own_names(int8: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    data, outputs = convert.converted(ModelPrograms(int8[0]), static=True)
    path = tmp_path / "foreign.tflite"
    path.write_bytes(data)
    back: Any = LiteRt().read_back(path)
    assert back.manifest is None
    assert "INT8" in {kind for _, _, kind in back.listing()}
    assert outputs == ["output"]
    session: Any = LiteRt().open(path, threads=1)
    assert session.inputs == {"args_0": ((1, 3, 16, 16), "tensor(int8)")}
    found = session.step({"args_0": images(1)[0]})[0]
    ours = LiteRt().open(int8[1], threads=1).step({"x": images(1)[0]})[0]
    assert np.array_equal(found["output_0"], ours["output"])
    assert session.placement()


def test_a_published_file_runs(shared: Path) -> None:
    found = sorted((shared / "data").rglob("*.tflite"))
    if not found:
        pytest.skip("no .tflite among the shared data")
    for path in found:
        session: Any = LiteRt().open(path, threads=1)
        taken = {name: shape for name, (shape, _) in session.inputs.items()}
        shapes = {name: [s if isinstance(s, int) else 1 for s in shape] for name, shape in taken.items()}
        outputs, _ = session.step({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        assert all(np.isfinite(value).all() for value in outputs.values()), path
        assert session.placement()


def test_a_recurrent_networks_state_goes_around(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.around = nn.Linear(4, 16), nn.Linear(16, 16)

        def forward(self, x: Any, memory: Any) -> Any:
            memory = torch.tanh(self.into(x) + self.around(memory))
            return memory.sum(-1), memory

    model = compressed(Recurrent(), (torch.randn(1, 4), torch.zeros(1, 16)), {})
    model = replace(model, state=(State("memory", (1, 16), "float32"),))
    session, program = LiteRt().open(lowered(model, tmp_path / "m.tflite")), load_graph(model.program, floats(model))
    assert set(session.inputs) == {"x"}  # type: ignore[attr-defined]
    state, memory = None, torch.zeros(1, 16)
    for x in torch.randn(4, 1, 4):
        outputs, state = session.step({"x": x.numpy()}, state)
        expected, memory = program(x, memory)
        assert np.allclose(outputs["output"], expected.detach().numpy(), atol=1e-5)


def test_a_batchnorm_that_is_not_folded_is_refused_with_its_names(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(1, 2)
    with pytest.raises(Refused, match=r"1\.weight.*BatchNorm"):
        lowered(compressed(module, (torch.randn(1, 3, 8, 8),), {}), tmp_path / "m.tflite")


def test_what_the_format_cannot_hold_is_refused() -> None:
    model = compressed(nn.Conv2d(32, 8, 1), (torch.randn(1, 32, 4, 4),), {})
    record = model.record("weight")
    grouped = TensorRecord(record.name, record.shape, record.role, "w4g32", record.digest)
    with pytest.raises(Refused, match=r"weight .*w4g32.*It holds .*w8"):
        LiteRt().carry(CompressedModel(model.program, (grouped,), model.reader))
    with pytest.raises(Refused, match="llamacpp and onnxruntime"):
        LiteRt().carry(CompressedModel(Program("huggingface", {}), (), model.reader))
    free = describe(capture(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), ({0: torch.export.Dim("n")},)))[0]
    with pytest.raises(BadInput, match="free"):
        LiteRt().carry(CompressedModel(free, (), model.reader))


def test_float_ends_cannot_be_integers(zoo: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--io int8"):
        lowered(zoo[0], tmp_path / "m.tflite", io="int8")


def test_doctor_runs_a_model() -> None:
    found = LiteRt().doctor()
    assert found.works
    assert found.units == ("cpu",)
    assert "ai-edge-litert" in found.version
