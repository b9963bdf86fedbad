"""ML programs that hold exactly our codes, decoded by coremltools, and run in our interpreter against torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")
from torch import nn  # noqa: E402

from octavo.api.programs import ModelPrograms  # noqa: E402
from octavo.core.carriage import possible  # noqa: E402
from octavo.core.grid import portable_scale  # noqa: E402
from octavo.core.manifest import KEY, EditedManifest  # noqa: E402
from octavo.core.model import CompressedModel, Edge, State, TensorRecord, TensorValue  # noqa: E402
from octavo.core.scheme import SCHEMES  # noqa: E402
from octavo.core.tensor import QuantizedTensor, float_digest  # noqa: E402
from octavo.errors import BadInput, Missing, OctavoError, Refused  # noqa: E402
from octavo.runtimes.base import no_progress  # noqa: E402
from octavo.runtimes.coreml import CoreMl  # noqa: E402
from octavo.runtimes.mlpackage.session import OURS  # noqa: E402
from octavo.sources.torch import capture, describe, load_graph  # noqa: E402
from octavo.verify.weights import check_weights  # noqa: E402
from tests.models import MemoryReader  # noqa: E402
from tests.static_models import convnet, simulated, static_model  # noqa: E402

FLOATS = ("fp32", "fp16", "bf16")
STATIC = ("w8a8", "w8ta8")
MATRIX = tuple(name for name in possible("coreml", "matmul") if name not in STATIC)
KERNEL = tuple(name for name in possible("coreml", "conv") if name not in STATIC)
CLOSE = 1e-5  # torch against torch, on the same decoded weights


def coded(shape: tuple[int, ...], scheme: str, seed: int) -> TensorValue:
    """Random values of `scheme`: codes over the whole range, a group of zeros among them, or floats exact in it."""
    rng = np.random.default_rng(seed)
    if scheme in FLOATS:
        values = torch.from_numpy(rng.normal(0, 0.3, shape).astype(np.float32))
        half = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[scheme]
        return values.to(half).float().numpy()
    grid = SCHEMES[scheme]
    assert grid.range is not None
    block = grid.block(shape)
    groups = tuple(s // b for s, b in zip(shape, block, strict=True))
    scale = portable_scale(rng.uniform(1e-3, 2e-2, groups).astype(np.float32))
    codes = rng.integers(grid.range.low, grid.range.high + 1, shape, dtype=np.int8)
    codes[0] = 0
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


def in_torch(model: CompressedModel) -> Any:
    """The module with the decoded weights."""
    held = {record.name: model.tensor(record.name) for record in model.tensors}
    return load_graph(
        model.program, {n: v.dequantize() if isinstance(v, QuantizedTensor) else v for n, v in held.items()}
    )


def lowered(model: CompressedModel, path: Path, runtime: CoreMl | None = None) -> Path:
    runtime = runtime or CoreMl()
    runtime.lower(model, runtime.carry(model), path, ModelPrograms(model), no_progress)
    return path


def verdict(path: Path, model: CompressedModel) -> Any:
    """The check that `verify` makes."""
    back = CoreMl().read_back(path)
    try:
        return check_weights(back, back.manifest, model, carry=CoreMl().carry).verdict
    finally:
        back.close()


def outputs(path: Path, **inputs: Any) -> dict[str, Any]:
    session = CoreMl().open(path)
    try:
        return session.step({name: np.asarray(value) for name, value in inputs.items()})[0]
    finally:
        session.close()


def layer(scheme: str) -> nn.Linear:
    """172 columns where no group has to divide them."""
    grid = SCHEMES.get(scheme)
    return nn.Linear(128 if grid is not None and grid.group else 172, 24)


class Zoo(nn.Module):
    """One linear layer, one embedding and one grouped convolution per scheme."""

    def __init__(self, matrix: tuple[str, ...], kernel: tuple[str, ...]) -> None:
        super().__init__()
        self.linear = nn.ModuleDict({scheme: layer(scheme) for scheme in matrix})
        self.embedding = nn.ModuleDict({s: nn.Embedding(40, linear.in_features) for s, linear in self.linear.items()})
        self.conv = nn.ModuleDict({s: nn.Conv2d(6, 9, 3, groups=3, bias=False) for s in kernel})

    def forward(self, ids: Any, image: Any) -> Any:
        found = {}
        for name, table in self.embedding.items():
            found[f"linear.{name}"] = self.linear[name](table(ids))
        for name, kernel in self.conv.items():
            found[f"conv.{name}"] = kernel(image)
        return found


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    """Every cell of the table that is no static scheme, in one package."""
    schemes = {f"{kind}.{s}.weight": s for kind in ("linear", "embedding") for s in MATRIX}
    schemes |= {f"conv.{s}.weight": s for s in KERNEL} | {f"linear.{s}.bias": s for s in FLOATS}
    inputs = (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(1, 6, 8, 8))
    model = compressed(Zoo(MATRIX, KERNEL), inputs, schemes)
    return model, lowered(model, tmp_path_factory.mktemp("zoo") / "m.mlpackage")


def test_every_cell_of_the_table_is_read_back_exactly(zoo: tuple[CompressedModel, Path]) -> None:
    model, path = zoo
    assert verdict(path, model) == "exact"


def test_every_cell_runs_like_torch_on_the_decoded_weights(zoo: tuple[CompressedModel, Path]) -> None:
    model, path = zoo
    rng = np.random.default_rng(0)
    ids, image = rng.integers(0, 40, (2, 5)), rng.normal(size=(1, 6, 8, 8)).astype(np.float32)
    expected = in_torch(model)(torch.from_numpy(ids), torch.from_numpy(image))
    found = outputs(path, ids=ids, image=image)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=CLOSE, err_msg=name)


def test_weights_of_few_bits_take_few_bits(zoo: tuple[CompressedModel, Path]) -> None:
    """Codes of 2 and 3 bits lie in fields of 2 and 3 bits: the file is no larger than its parts say."""
    model, path = zoo
    weights = (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    bits = 0.0
    for record in model.tensors:
        value = model.tensor(record.name)
        if isinstance(value, QuantizedTensor):
            bits += value.codes.size * value.range.bits + value.scale.size * 32
        else:
            bits += value.size * (16 if record.scheme == "fp16" else 32)
    blobs = 2 * len(model.tensors)
    assert weights <= bits / 8 + 256 * blobs  # a header of 64 bytes each, and aligned


def test_the_manifest_says_what_lies_where(zoo: tuple[CompressedModel, Path]) -> None:
    model, path = zoo
    back = CoreMl().read_back(path)
    try:
        manifest = back.manifest
        assert manifest is not None
        assert manifest.digest == model.digest
        listed = {name for name, _, _ in back.listing()}
        assert all(item.at[0] in listed for item in manifest.tensors)
    finally:
        back.close()
    assert manifest.extra["target"] == "iOS18"
    assert any("fp32" in note and "Neural Engine" in note for note in manifest.notes)


def test_without_a_manifest_the_compressed_model_says_where_to_look(
    zoo: tuple[CompressedModel, Path], tmp_path: Path
) -> None:
    model, path = zoo
    bare = Path(shutil.copytree(path, tmp_path / "bare.mlpackage"))
    edit(bare, lambda spec: spec.description.metadata.userDefined.pop(KEY))
    back = CoreMl().read_back(bare)
    try:
        assert back.manifest is None
        assert check_weights(back, None, model, carry=CoreMl().carry).verdict == "exact"
    finally:
        back.close()


class Plain(nn.Module):
    """Two layers, one of them tied to a second use, a product with an untransposed parameter, and zeros as a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.same = nn.Linear(12, 12)
        self.again = nn.Linear(12, 12, bias=False)
        self.again.weight = self.same.weight
        self.product = nn.Parameter(torch.randn(12, 5))
        self.shift = nn.Parameter(torch.zeros(5))

    def forward(self, x: Any) -> Any:
        x = nn.functional.hardtanh(self.conv(x), 0, 6)
        x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.avg_pool2d(x, 2, ceil_mode=True).mean((2, 3))
        return self.again(torch.relu(self.same(x))) @ self.product + self.shift, x


def test_tied_and_untransposed_weights_and_zeros_are_all_there(tmp_path: Path) -> None:
    """Only int8 per channel: so the package is for iOS 17."""
    x = torch.randn(1, 3, 22, 22)
    model = compressed(Plain(), (x,), {"conv.weight": "w8", "same.weight": "w8"})
    path = lowered(model, tmp_path / "m.mlpackage")
    assert verdict(path, model) == "exact"
    manifest = CoreMl().read_back(path).manifest
    assert manifest is not None
    assert manifest.extra["target"] == "iOS17"
    expected = in_torch(model)(x)
    found = outputs(path, x=x.numpy())
    for name, value in zip(("output.0", "output.1"), expected, strict=True):
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=CLOSE)
    weights = (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert weights < 6000  # the tied weight lies there once, in bytes


class Variety(nn.Module):
    """Operators of small networks, each on an image [1, 4, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.batch, self.instance, self.group = nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(2, 6)
        self.layer, self.slopes = nn.LayerNorm(12), nn.PReLU(6)
        self.line = nn.Conv1d(4, 6, 3, padding=1)
        self.back = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)
        self.query, self.key = nn.Linear(12, 12), nn.Linear(12, 12)
        for name, value in self.batch.named_buffers():
            if value.is_floating_point():
                value.uniform_(0.5, 2.0) if "var" in name else value.normal_()

    def forward(self, x: Any) -> Any:
        f, y = nn.functional, self.batch(self.conv(x))
        return {
            "norms": self.slopes(self.instance(y)) + self.group(y) + self.layer(y),
            "line": torch.tanh(self.line(x[:, :, 0])),
            "back": self.back(x),
            "attention": f.scaled_dot_product_attention(self.query(x), self.key(x), x),
            "gates": f.hardswish(y) * f.hardsigmoid(y.mean((2, 3), keepdim=True)) + f.silu(y) + f.gelu(y),
            "slopes": f.leaky_relu(y) + f.elu(y) + f.relu6(y) + torch.sigmoid(y),
            "pieces": torch.cat([part * 2 for part in y.chunk(2, 1)], 1)[:, 1:4, ::2, 3:],
            "edges": f.pad(y, (1, 2, 0, 1)),
            "larger": f.interpolate(y, scale_factor=2.0) + f.interpolate(y, size=(24, 24), mode="bilinear"),
            "pools": f.avg_pool2d(f.max_pool2d(y, 3, 2, 1, ceil_mode=True), 3, 2, 1, count_include_pad=False),
            "mean": f.adaptive_avg_pool2d(y, 1).flatten(1),
            "sums": (y.clamp(min=0).sum(1) / (x.abs().amax(1) + 1e-3)).log1p(),
            "axes": y.permute(0, 2, 3, 1).reshape(1, 12, -1),
            "largest": y.argmax(1),
        }


def test_a_variety_of_operators_runs_like_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 12, 12)
    model = compressed(Variety(), (x,), {"conv.weight": "w8", "line.weight": "w4", "query.weight": "w8"})
    path = lowered(model, tmp_path / "m.mlpackage")
    assert verdict(path, model) == "exact"
    found, expected = outputs(path, x=x.numpy()), in_torch(model)(x)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=1e-4, err_msg=name)  # a norm of zeros


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = compressed(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(2, 8),), {"0.weight": "w4"})
    first, second = (lowered(model, tmp_path / f"{name}.mlpackage") for name in "ab")
    files = CoreMl().files(first)
    assert [file.name for file in files] == ["Manifest.json", "model.mlmodel", "weight.bin"]
    for file in files:
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CompressedModel, Path]]:
    home = tmp_path_factory.mktemp("static")
    models = {scheme: static_model(convnet(), (torch.randn(1, 3, 16, 16),), scheme) for scheme in STATIC}
    return {scheme: (model, lowered(model, home / f"{scheme}.mlpackage")) for scheme, model in models.items()}


@pytest.mark.parametrize("scheme", STATIC)
def test_a_static_model_is_carried_with_its_edges(scheme: str, static: dict[str, tuple[CompressedModel, Path]]) -> None:
    model, path = static[scheme]
    assert verdict(path, model) == "exact"
    back = CoreMl().read_back(path)
    try:
        assert back.edges() == {edge.name: edge for edge in model.edges}
    finally:
        back.close()


@pytest.mark.parametrize("scheme", STATIC)
def test_a_static_model_runs_within_a_code_of_torch(
    scheme: str, static: dict[str, tuple[CompressedModel, Path]]
) -> None:
    model, path = static[scheme]
    run, step = simulated(model), model.edges[-1].scale
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(1, 3, 16, 16)).astype(np.float32)
        found = outputs(path, x=x)["output"]
        assert np.abs(found - run(x)).max() <= step * 1.01


class Moves(nn.Module):
    """Operators that only move codes, each an edge with its input's numbers, which coremltools would merge or drop."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(3, 2, 3, stride=2)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Any) -> Any:
        f, x = nn.functional, nn.functional.pad(x, (0, 1, 0, 1))
        y = torch.cat((torch.relu(self.one(x)), torch.relu(self.two(x))), 1)
        y = f.max_pool2d(y, 2, 2).permute(0, 2, 3, 1)
        return torch.softmax(self.head(y.reshape(1, 128).clone()), -1)


def test_an_edge_on_what_only_moves_codes_is_there_all_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = static_model(Moves().eval(), (torch.randn(1, 3, 16, 16),))
    numbers = [(edge.scale, edge.zero_point) for edge in model.edges]
    assert len(numbers) - len(set(numbers)) >= 5  # a pad, a pool, a permutation, a reshape, and a copy
    path = lowered(model, tmp_path / "m.mlpackage")
    assert verdict(path, model) == "exact"
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    assert np.abs(outputs(path, x=x)["output"] - simulated(model)(x)).max() <= model.edges[-1].scale * 1.01


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the program's message."""
    from coremltools.proto import Model_pb2

    file = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    change(spec)
    file.write_bytes(spec.SerializeToString())


def main_block(spec: Any) -> Any:
    return next(iter(spec.mlProgram.functions["main"].block_specializations.values()))


def test_an_edited_activation_scale_is_noticed_by_name(
    static: dict[str, tuple[CompressedModel, Path]], tmp_path: Path
) -> None:
    model, path = static["w8a8"]
    copy = Path(shutil.copytree(path, tmp_path / "m.mlpackage"))
    scale = float(np.float32(model.edges[1].scale))

    def change(spec: Any) -> None:
        for operation in main_block(spec).operations:
            values = (
                operation.attributes["val"].immediateValue.tensor.floats.values if operation.type == "const" else []
            )
            if list(values) == [scale]:
                values[0] = scale * 1.5

    edit(copy, change)
    back = CoreMl().read_back(copy)
    with pytest.raises(EditedManifest, match=model.edges[1].name):
        _ = back.manifest


def test_quantised_constants_keep_their_own_values(tmp_path: Path) -> None:
    """A parameter used elementwise, with an edge of its own: float values, quantised by the program."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.gain, self.shift = (nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5) for _ in range(2))

        def forward(self, x: Any) -> Any:
            return torch.relu(self.conv(x)) * self.gain + self.shift

    torch.manual_seed(0)
    model = static_model(Scaled().eval(), (torch.randn(1, 3, 8, 8),))
    own = (Edge("p_gain", 2.0**-6, -20, "int8"), Edge("p_shift", 2.0**-6, 3, "int8"))
    model = replace(model, edges=(*model.edges, *own))
    path = lowered(model, tmp_path / "m.mlpackage")
    assert verdict(path, model) == "exact"
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    assert np.abs(outputs(path, x=x)["output"] - simulated(model)(x)).max() <= model.edges[3].scale * 1.01


def test_another_program_with_the_same_weights_is_noticed(
    static: dict[str, tuple[CompressedModel, Path]], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(static["w8a8"][1], tmp_path / "m.mlpackage"))

    def change(spec: Any) -> None:
        next(operation for operation in main_block(spec).operations if operation.type == "relu").type = "sigmoid"

    edit(copy, change)
    with pytest.raises(EditedManifest, match="program was changed"):
        _ = CoreMl().read_back(copy).manifest


def test_a_changed_code_is_wrong_and_named(zoo: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    model, path = zoo
    copy = Path(shutil.copytree(path, tmp_path / "m.mlpackage"))
    codes = model.tensor("linear.w8.weight")
    assert isinstance(codes, QuantizedTensor)
    file = copy / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    place = data.index(codes.codes[1:3].tobytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert [wrong["name"] for wrong in verdict(copy, model)["wrong"]] == ["linear.w8.weight"]


def damages() -> dict[str, Callable[[Path], Any]]:
    def file(name: str) -> Callable[[Path], Path]:
        return lambda path: path / "Data/com.apple.CoreML" / name

    model, weights = file("model.mlmodel"), file("weights/weight.bin")

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])

    return {
        "no weights": lambda path: weights(path).unlink(),
        "weights cut": lambda path: cut(weights(path)),
        "weights empty": lambda path: weights(path).write_bytes(b""),
        "weights of noise": lambda path: weights(path).write_bytes(b"\xff" * 5000),
        "no program": lambda path: model(path).unlink(),
        "program cut": lambda path: cut(model(path)),
        "program of noise": lambda path: model(path).write_bytes(b"\x0a\xff" * 300),
        "program empty": lambda path: model(path).write_bytes(b""),
        "no list": lambda path: (path / "Manifest.json").unlink(),
        "list of noise": lambda path: (path / "Manifest.json").write_text("[1, 2"),
        "list leads out": lambda path: (path / "Manifest.json").write_text(
            json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../x"}}})
        ),
        "no directory": lambda path: (shutil.rmtree(path), path.write_bytes(b"x")),
        "nothing": shutil.rmtree,
    }


@pytest.mark.parametrize("what", damages())
def test_a_damaged_package_is_bad_input(what: str, zoo: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(zoo[1], tmp_path / "m.mlpackage"))
    damages()[what](copy)
    with pytest.raises(BadInput, match=r"m\.mlpackage"):
        CoreMl().open(copy)
    with pytest.raises(BadInput, match=r"m\.mlpackage"):
        CoreMl().read_back(copy)


def test_flipped_bits_never_bring_the_process_down(zoo: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    """Whatever a flipped byte does to the headers or the message, it is an ordinary error or a wrong tensor."""
    model, path = zoo
    rng = np.random.default_rng(0)
    for name in ("model.mlmodel", "weights/weight.bin"):
        for trial in range(6):
            copy = Path(shutil.copytree(path, tmp_path / f"{trial}{Path(name).stem}.mlpackage"))
            file = copy / "Data/com.apple.CoreML" / name
            data = bytearray(file.read_bytes())
            for place in rng.integers(0, min(len(data), 4000), 3):
                data[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(data)
            with suppress(OctavoError):
                verdict(copy, model)
            shutil.rmtree(copy)
    assert verdict(path, model) == "exact"  # the worker is alive, or was started again


def test_a_session_says_whose_semantics_it_has_and_what_it_takes(zoo: tuple[CompressedModel, Path]) -> None:
    session: Any = CoreMl().open(zoo[1])
    assert session.inputs == {"ids": ((2, 5), "tensor(int32)"), "image": ((1, 6, 8, 8), "tensor(float)")}
    assert session.timing_is_native is False
    assert session.logits_from == OURS
    assert "not Apple's" in OURS
    assert session.placement() == []
    assert any("macOS" in note for note in session.notes)
    image = np.zeros((1, 6, 8, 8), np.float32)
    with pytest.raises(BadInput, match="image"):
        session.step({"ids": np.zeros((2, 5), np.int64)})
    with pytest.raises(BadInput, match=r"ids is \[2, 4\]"):
        session.step({"ids": np.zeros((2, 4), np.int64), "image": image})
    session.close()
    with pytest.raises(Missing, match="macOS"):
        CoreMl().open(zoo[1], units=("npu",))
    with pytest.raises(BadInput, match="KV"):
        CoreMl().open(zoo[1], kv="f16")


def test_state_goes_around(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Any, total: Any) -> Any:
            return (x + total) * 2, x + total

    model = compressed(Sum(), (torch.zeros(1, 4), torch.zeros(1, 4)), {})
    model = replace(model, state=(State("total", (1, 4), "float32"),))
    path = lowered(model, tmp_path / "m.mlpackage")
    session: Any = CoreMl().open(path)
    assert list(session.inputs) == ["x"]
    x, state = np.ones((1, 4), np.float32), None
    for turn in range(1, 4):
        found, state = session.step({"x": x}, state)
        np.testing.assert_array_equal(found["output"], np.full((1, 4), 2 * turn))
    session.close()


def test_a_program_that_computes_in_fp16_holds_the_same_numbers(tmp_path: Path) -> None:
    """What the Neural Engine takes. Biases in fp32 lie there whole; only the arithmetic is another."""
    model = static_model(convnet(), (torch.randn(1, 3, 16, 16),))
    with pytest.raises(Refused, match="not exact in fp16"):
        CoreMl("fp16").carry(model)
    edges = tuple(replace(edge, scale=float(np.float16(edge.scale))) for edge in model.edges)
    model, runtime = replace(model, edges=edges), CoreMl().for_units(("npu", "cpu"))
    path = lowered(model, tmp_path / "m.mlpackage", runtime)
    assert verdict(path, model) == "exact"
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    found = outputs(path, x=x)["output"]
    assert found.dtype == np.float32
    assert np.abs(found - simulated(model)(x)).max() <= 4 * edges[-1].scale
    weights = {record.name: "w4" for record in model.tensors if record.role == "conv"}
    mixed = compressed(convnet(), (torch.from_numpy(x),), weights | {"head.weight": "fp16"})
    path = lowered(mixed, tmp_path / "mixed.mlpackage", runtime)
    assert verdict(path, mixed) == "exact"
    expected = in_torch(mixed)(torch.from_numpy(x)).detach().numpy()
    assert np.abs(outputs(path, x=x)["output"] - expected).max() <= 1e-2 * np.abs(expected).max()


def test_squeezenet_runs_like_torch_on_the_decoded_weights(shared: Path, tmp_path: Path) -> None:
    import octavo

    octavo.compress(shared / "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx", scheme="w4", out=tmp_path / "c")
    record = octavo.export(tmp_path / "c", runtime="coreml", out=tmp_path / "m.mlpackage")
    assert record.weights == "exact"
    model = octavo.load(tmp_path / "c")
    with np.load(shared / "data/vision/squeezenet1.1/reference_io.npz") as held:
        image = held["input_0"]
    expected = in_torch(model)(torch.from_numpy(image))["logits"].detach().numpy()
    found = outputs(tmp_path / "m.mlpackage", data=image)["logits"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_what_an_ml_program_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = compressed(nn.Sequential(nn.Conv2d(32, 32, 1)), (torch.zeros(1, 32, 4, 4),), {})
    wide = replace(model, tensors=tuple(replace(t, scheme="w4g32") if t.role == "conv" else t for t in model.tensors))
    with pytest.raises(Refused, match="no exact form of w4g32"):
        CoreMl().carry(wide)
    with pytest.raises(Refused, match="int8"):
        CoreMl().carry(static_model(convnet(), (torch.randn(1, 3, 16, 16),), "w8a16"))
    with pytest.raises(Refused, match="llamacpp"):
        CoreMl().carry(replace(model, program=replace(model.program, kind="huggingface")))


def test_the_doctor_says_what_needs_macos() -> None:
    found = CoreMl().doctor()
    assert found.works, found.reason
    assert "coremltools" in found.version
    assert "macOS" in found.reason
