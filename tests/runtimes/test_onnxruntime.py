"""ONNX files that hold exactly our codes, run in ONNX Runtime itself, against torch with the dequantised weights."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402

from octavo.api.programs import ModelPrograms  # noqa: E402
from octavo.core.architecture import decoder_spec  # noqa: E402
from octavo.core.carriage import possible  # noqa: E402
from octavo.core.grid import portable_scale  # noqa: E402
from octavo.core.manifest import EditedManifest  # noqa: E402
from octavo.core.model import CompressedModel, State, TensorRecord, TensorValue  # noqa: E402
from octavo.core.scheme import SCHEMES  # noqa: E402
from octavo.core.tensor import QuantizedTensor, float_digest  # noqa: E402
from octavo.errors import BadInput, Missing, OctavoError, Refused  # noqa: E402
from octavo.runtimes.base import no_progress  # noqa: E402
from octavo.runtimes.generate import Sampling, choose, generate  # noqa: E402
from octavo.runtimes.onnx import write  # noqa: E402
from octavo.runtimes.onnxruntime import OnnxRuntime  # noqa: E402
from octavo.sources.decoder import build, empty_cache  # noqa: E402
from octavo.sources.torch import capture, describe, load_graph  # noqa: E402
from tests.models import MemoryReader, assets_of, from_directory, model_of, random_codes  # noqa: E402

# MatMulNBits at accuracy_level 4 rounds activations to int8 per block: at most 1/254 of a block's largest, per product.
INT8_ACTIVATIONS = 0.02
FLOATS = ("fp32", "fp16", "bf16")
MATRIX = tuple(possible("onnxruntime", "matmul"))
KERNEL = tuple(possible("onnxruntime", "conv"))


def coded(shape: tuple[int, ...], scheme: str, seed: int) -> TensorValue:
    """Random values of `scheme`: codes over the whole range, or floats that the float type holds exactly."""
    if scheme not in FLOATS and len(shape) == 2:
        return random_codes(shape, scheme, seed)
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
    return QuantizedTensor(codes, scale, block, grid.range)


def compressed(
    module: nn.Module, inputs: tuple[Any, ...], schemes: dict[str, str], dynamic: Any = None
) -> CompressedModel:
    """The graph of `module` with random weights: {parameter: scheme}, the others as they are."""
    program, tensors = describe(capture(module.eval(), inputs, dynamic))
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


def lowered(model: CompressedModel, path: Path) -> Path:
    runtime = OnnxRuntime()
    runtime.lower(model, runtime.carry(model), path, ModelPrograms(model), no_progress)
    return path


def wrong_tensors(path: Path, model: CompressedModel) -> list[str]:
    """Names of the tensors that the onnx package reads back other than they were; the check that `verify` makes."""
    back = OnnxRuntime().read_back(path)
    manifest = back.manifest
    assert manifest is not None
    assert manifest.digest == model.digest
    found = {}
    for carried in manifest.tensors:
        value = back.tensor(carried)
        found[carried.name] = value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)
    back.close()
    return [record.name for record in model.tensors if found[record.name] != record.digest]


class Zoo(nn.Module):
    """One linear layer, one embedding and one convolution per scheme; K = 172 where no group has to divide it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleDict(
            {s: nn.Linear(128 if SCHEMES.get(s, SCHEMES["w8"]).group else 172, 24) for s in MATRIX}
        )
        self.embedding = nn.ModuleDict({s: nn.Embedding(40, layer.in_features) for s, layer in self.linear.items()})
        self.conv = nn.ModuleDict({s: nn.Conv2d(6, 9, 3, groups=3, bias=False) for s in KERNEL})

    def forward(self, ids: Any, image: Any) -> Any:
        found = {}
        for name, table in self.embedding.items():
            found[f"embedding.{name}"] = table(ids)
            found[f"linear.{name}"] = self.linear[name](table(ids))
            found[f"flat.{name}"] = self.linear[name](table(ids)[0])  # two axes: the exporter writes a Gemm
        return found | {f"conv.{name}": layer(image) for name, layer in self.conv.items()}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    torch.set_num_threads(1)
    module = Zoo()
    names = [name for name, _ in module.named_parameters() if name.endswith(".weight")]
    dynamic = ({1: torch.export.Dim.DYNAMIC}, None)
    model = compressed(module, zoo_inputs(), {name: name.split(".")[1] for name in names}, dynamic)
    return model, lowered(model, tmp_path_factory.mktemp("zoo") / "zoo.onnx")


def zoo_inputs(length: int = 5) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 40, (1, length), generator=generator), torch.randn(1, 6, 8, 8, generator=generator)


def test_every_scheme_of_the_table_reads_back_exactly(zoo: tuple[CompressedModel, Path]) -> None:
    model, path = zoo
    assert {record.scheme for record in model.tensors if record.role == "matmul"} == set(MATRIX)
    assert {record.scheme for record in model.tensors if record.role == "conv"} == set(KERNEL)
    assert wrong_tensors(path, model) == []


@pytest.mark.parametrize("length", [5, 1])
def test_every_scheme_computes_what_torch_does(zoo: tuple[CompressedModel, Path], length: int) -> None:
    model, path = zoo
    ids, image = zoo_inputs(length)
    with torch.no_grad():
        expected = load_graph(model.program, floats(model))(ids, image)
    session = OnnxRuntime().open(path, threads=1)
    found, state = session.step({"ids": ids.numpy(), "image": image.numpy()})
    assert state == {}
    assert set(found) == set(expected)
    for name, value in expected.items():
        reference = value.numpy()
        exact = name.startswith(("embedding", "conv")) or name.split(".")[1] in FLOATS
        error = np.abs(found[name] - reference).max() / np.abs(reference).max()
        assert error <= (1e-5 if exact else INT8_ACTIVATIONS), name
        if name.startswith("embedding"):
            assert np.array_equal(found[name], reference), name


def test_what_was_chosen_is_recorded(zoo: tuple[CompressedModel, Path]) -> None:
    back = OnnxRuntime().read_back(zoo[1])
    manifest = back.manifest
    assert manifest is not None
    carried = {item.name: item for item in manifest.tensors}
    assert carried["linear.w4g64.weight"].stored_as == "MatMulNBits 4-bit, block 64"
    assert carried["linear.ternary.weight"].stored_as.startswith("MatMulNBits 2-bit")
    assert carried["linear.w3g32.weight"].moves == ("widened to 4 bits",)
    assert carried["linear.w3g32.weight"].why
    assert carried["conv.w4.weight"].stored_as == "DequantizeLinear INT4"
    assert not carried["linear.w2g32.weight"].moves


def test_matrices_run_in_the_kernel_on_the_cpu(zoo: tuple[CompressedModel, Path]) -> None:
    session = OnnxRuntime().open(zoo[1])
    placed = session.placement()
    kernels = [item for item in placed if "(MatMulNBits)" in item.op]
    weight_only = [scheme for scheme in MATRIX if scheme not in FLOATS and not SCHEMES[scheme].activation]
    assert len(kernels) == 2 * len(weight_only)
    assert {item.unit for item in placed} == {"cpu"}


def test_a_network_with_batchnorm_takes_another_batch(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    module[1].running_mean.uniform_(-1, 1)
    model = compressed(
        module, (torch.randn(2, 4, 8),), {"0.weight": "w8", "4.weight": "w8"}, ({0: torch.export.Dim("n")},)
    )
    path = lowered(model, tmp_path / "m.onnx")
    onnx.checker.check_model(str(path))
    x = torch.randn(7, 4, 8)
    expected = load_graph(model.program, floats(model))(x).detach().numpy()
    found, _ = OnnxRuntime().open(path).step({"input": x.numpy()})
    assert wrong_tensors(path, model) == []
    assert np.abs(found["output"] - expected).max() <= INT8_ACTIVATIONS * np.abs(expected).max()


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
    session, program = OnnxRuntime().open(lowered(model, tmp_path / "m.onnx")), load_graph(model.program, floats(model))
    state, memory = None, torch.zeros(1, 16)
    for x in torch.randn(4, 1, 4):
        outputs, state = session.step({"x": x.numpy()}, state)
        expected, memory = program(x, memory)
        assert np.allclose(outputs["output"], expected.detach().numpy(), atol=1e-5)


def test_grouped_convolutions_are_refused_with_what_is_possible() -> None:
    model = compressed(nn.Conv2d(32, 8, 1), (torch.randn(1, 32, 4, 4),), {})
    record = model.record("weight")
    grouped = TensorRecord(record.name, record.shape, record.role, "w4g32", record.digest)
    with pytest.raises(Refused, match=r"weight .*w4g32.*It holds .*w8"):
        OnnxRuntime().carry(CompressedModel(model.program, (grouped,), model.reader))


@pytest.fixture(scope="module")
def story(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    """stories260K with random-free weights folded by rounding: w8 for the tied embedding, w4 and w4g32 elsewhere."""
    model = from_directory(stories260k)
    values: dict[str, TensorValue] = {}
    schemes: dict[str, str] = {}
    for record in model.tensors:
        value = np.asarray(model.tensor(record.name), np.float32)
        values[record.name] = value
        if record.role != "other":
            schemes[record.name] = (
                "w8" if record.role == "embedding" else "w4g32" if record.shape[1] % 32 == 0 else "w4"
            )
            values[record.name] = rounded(value, schemes[record.name])
    folded = model_of(model.program.body, values, schemes=schemes, assets=assets_of(stories260k))
    return folded, lowered(folded, tmp_path_factory.mktemp("story") / "story.onnx")


def rounded(values: Any, scheme: str) -> QuantizedTensor:
    """Round to nearest, absmax."""
    grid = SCHEMES[scheme]
    assert grid.range is not None
    block = grid.block(values.shape)
    groups = values.reshape(values.shape[0], -1, block[1])
    scale = portable_scale(np.abs(groups).max(2).astype(np.float32) / grid.range.high)
    codes = np.clip(np.rint(groups / scale[..., None]), grid.range.low, grid.range.high).reshape(values.shape)
    return QuantizedTensor(codes.astype(np.int8), scale, block, grid.range)


def logits_of(path: Path, ids: list[int], cuts: tuple[int, ...]) -> Any:
    session, state, found = OnnxRuntime().open(path, threads=1), None, []
    for start, stop in zip((0, *cuts), (*cuts, len(ids)), strict=True):
        outputs, state = session.step({"ids": np.array([ids[start:stop]])}, state)
        found.append(outputs["logits"])
    return np.concatenate(found, 1)


def test_a_language_model_reads_back_and_runs_with_its_cache(story: tuple[CompressedModel, Path]) -> None:
    model, path = story
    assert wrong_tensors(path, model) == []
    ids = [1, *np.random.default_rng(0).integers(3, 500, 40).tolist()]
    whole, parts = logits_of(path, ids, ()), logits_of(path, ids, (17, 20, *range(21, 41)))
    assert np.abs(whole - parts).max() <= 1e-4
    spec = decoder_spec(model.program.body)
    torch_model = build(spec, {name: torch.from_numpy(value) for name, value in floats(model).items()})
    with torch.no_grad():
        expected = torch_model(torch.tensor([ids]), empty_cache(spec))[0].numpy()
    assert np.abs(whole - expected).max() <= 0.05 * np.abs(expected).max()  # int8 activations through five layers


def test_a_tied_weight_is_stored_once(story: tuple[CompressedModel, Path]) -> None:
    model, path = story
    record = model.record("model.embed_tokens.weight")
    beside = len(path.read_bytes()) - model.bytes  # graph, manifest, tokenizer
    tensors = onnx.load(str(path)).graph.initializer
    assert sum(np.prod(tensor.dims) >= record.parameters // 2 for tensor in tensors) == 1
    assert beside < 160_000


def test_the_tokenizer_travels_in_the_file(story: tuple[CompressedModel, Path], stories260k: Path) -> None:
    session: Any = OnnxRuntime().open(story[1])
    assert session.assets["tokenizer.json"] == (stories260k / "tokenizer.json").read_bytes()
    assert session.manifest.extra["eos"] == [2]


def test_greedy_ids_equal_those_of_transformers(stories260k: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32).eval()
    prompt = [1, 403, 407, 261]
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[0, len(prompt) :].tolist()
    session = OnnxRuntime().open(lowered(from_directory(stories260k), tmp_path / "m.onnx"), threads=1)
    streamed: list[int] = []
    assert generate(session, prompt, tokens=60, eos=(2,), on_token=streamed.append) == expected == streamed


def test_weights_beyond_one_file_lie_beside_it(
    story: tuple[CompressedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = story
    monkeypatch.setattr(write, "EXTERNAL_BYTES", 10_000)
    path = lowered(model, tmp_path / "m.onnx")
    data = tmp_path / f"{model.digest[:16]}.onnx.data"
    assert sorted(tmp_path.iterdir()) == sorted([path, data])
    assert wrong_tensors(path, model) == []
    assert np.array_equal(logits_of(path, [1, 5, 9], ()), logits_of(whole, [1, 5, 9], ()))
    data.write_bytes(data.read_bytes()[:-5000])
    back = OnnxRuntime().read_back(path)
    assert back.manifest is not None
    last = back.manifest.tensors[-1]
    with pytest.raises(Refused, match=last.name):
        back.tensor(last)


def test_no_data_file_is_left_by_what_failed(
    story: tuple[CompressedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = story
    monkeypatch.setattr(write, "EXTERNAL_BYTES", 10_000)
    complete = write._write_message

    def cut(*given: Any) -> None:
        complete(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_message", cut)
    with pytest.raises(KeyboardInterrupt):
        lowered(model, tmp_path / "m.onnx")
    assert not list(tmp_path.glob("*.data"))
    monkeypatch.setattr(write, "_write_message", complete)
    data = tmp_path / f"{model.digest[:16]}.onnx.data"

    runtime = OnnxRuntime()
    for path in (tmp_path / "first.onnx", tmp_path / "second.onnx"):
        runtime.lower(model, runtime.carry(model), path, ModelPrograms(model), no_progress)
        assert runtime.files(path) == [path, data]
    runtime.discard(tmp_path / "second.onnx")  # the data file belongs to the first too
    assert wrong_tensors(tmp_path / "first.onnx", model) == []
    runtime.discard(tmp_path / "first.onnx")
    assert not data.exists()


def test_a_second_file_is_told_of_and_missed(
    story: tuple[CompressedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = story
    assert not any("both files" in note for note in OnnxRuntime().carry(model).notes)
    monkeypatch.setattr(write, "EXTERNAL_BYTES", 10_000)
    path = lowered(model, tmp_path / "m.onnx")
    data = tmp_path / f"{model.digest[:16]}.onnx.data"
    manifest = OnnxRuntime().read_back(path).manifest
    assert manifest is not None
    assert any(data.name in note for note in manifest.notes)
    data.unlink()
    for use in (OnnxRuntime().read_back, OnnxRuntime().open, OnnxRuntime().files, OnnxRuntime().run_line):
        with pytest.raises(BadInput, match=data.name):
            use(path)


def test_a_foreign_files_weights_may_lie_in_a_folder(story: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    foreign = onnx.load(str(story[1]))
    del foreign.metadata_props[:]
    (tmp_path / "weights").mkdir()
    path = tmp_path / "foreign.onnx"
    onnx.save(foreign, str(path), save_as_external_data=True, location="weights/all.bin", size_threshold=1000)
    assert OnnxRuntime().files(path) == [path, tmp_path / "weights/all.bin"]
    assert OnnxRuntime().read_back(path).manifest is None


@pytest.mark.parametrize("made", ["story", "ids", "graph"])
def test_the_line_runs_the_file(story: tuple[CompressedModel, Path], tmp_path: Path, made: str) -> None:
    path = tmp_path / "a file.onnx"
    if made == "story":
        path.write_bytes(story[1].read_bytes())
    elif made == "ids":
        lowered(replace(story[0], assets={}), path)
    else:
        lowered(compressed(nn.Linear(4, 3), (torch.randn(1, 4),), {}), path)
        np.savez(tmp_path / "X.npz", input=np.ones((1, 4), np.float32))
    words = shlex.split(OnnxRuntime().run_line(path))
    assert words[:3] == ["octavo", "run", str(path)]
    assert words[3] == {"story": "-p", "ids": "--ids", "graph": "--input"}[made]
    done = subprocess.run(
        [sys.executable, "-c", "from octavo.cli import main; main()", *words[1:]],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time") if made == "story" else done.stdout.strip()


def test_int8_activations_are_on_record(story: tuple[CompressedModel, Path]) -> None:
    manifest = OnnxRuntime().read_back(story[1]).manifest
    assert manifest is not None
    assert any("int8" in note and "accuracy_level=4" in note for note in manifest.notes)
    assert any(node.op_type == "MatMulNBits" for node in onnx.load(str(story[1])).graph.node)
    untouched = compressed(nn.Conv2d(4, 4, 1), (torch.randn(1, 4, 2, 2),), {"weight": "w8"})
    assert OnnxRuntime().carry(untouched).notes == ()


def rewritten(path: Path, out: Path, edit: Callable[[Any], None]) -> Path:
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(out))
    return out


def initializer(model: Any, name: str) -> Any:
    return next(item for item in model.graph.initializer if item.name == name)


def test_an_edited_code_and_an_edited_scale_are_seen(story: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    model, path = story
    for part in ("codes", "scale"):
        name = "model.layers.2.mlp.up_proj.weight"

        def edit(proto: Any, at: str = f"{name}.{part}") -> None:
            tensor = initializer(proto, at)
            tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]

        assert wrong_tensors(rewritten(path, tmp_path / "edited.onnx", edit), model) == [name]


def test_swapped_tensors_are_seen(story: tuple[CompressedModel, Path], tmp_path: Path) -> None:
    model, path = story
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]

    def swap(proto: Any) -> None:
        one, two = (initializer(proto, f"{name}.codes") for name in names)
        one.raw_data, two.raw_data = two.raw_data, one.raw_data

    assert wrong_tensors(rewritten(path, tmp_path / "edited.onnx", swap), model) == names


@pytest.mark.parametrize("what", ["node", "attribute", "constant", "manifest", "asset"])
def test_a_changed_graph_or_manifest_is_seen_and_not_run(
    story: tuple[CompressedModel, Path], tmp_path: Path, what: str
) -> None:
    def edit(proto: Any) -> None:
        kernels = [node for node in proto.graph.node if node.op_type == "MatMulNBits"]
        if what == "node":
            kernels[0].input[1], kernels[1].input[1] = kernels[1].input[1], kernels[0].input[1]
        elif what == "attribute":
            next(item for item in kernels[0].attribute if item.name == "K").i = 1 << 40
        elif what == "constant":
            tensor = next(item for item in proto.graph.initializer if item.data_type == onnx.TensorProto.INT64)
            tensor.raw_data = b"\x7f" * len(tensor.raw_data)
        else:
            key = "octavo.manifest" if what == "manifest" else "octavo.asset.tokenizer.json"
            entry = next(item for item in proto.metadata_props if item.key == key)
            entry.value = entry.value.replace("w8", "w4") if what == "manifest" else entry.value + " "

    edited = rewritten(story[1], tmp_path / "edited.onnx", edit)
    with pytest.raises(EditedManifest):
        _ = OnnxRuntime().read_back(edited).manifest
    with pytest.raises(EditedManifest):
        OnnxRuntime().open(edited)


def damaged(data: bytes) -> Iterator[bytes]:
    """Cut short, and with bits flipped where structure and weights lie."""
    yield from (data[: len(data) // part] for part in (2, 3, 50))
    yield b""
    yield b"not an onnx file"
    random = np.random.default_rng(5)
    for position in random.integers(0, len(data), 25).tolist():
        yield data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]


def test_a_damaged_file_is_an_error_or_wrong_numbers_never_a_crash(
    story: tuple[CompressedModel, Path], tmp_path: Path
) -> None:
    model, path = story
    bad = tmp_path / "bad.onnx"
    for data in damaged(path.read_bytes()):
        bad.write_bytes(data)
        try:
            noticed = bool(wrong_tensors(bad, model))
            OnnxRuntime().open(bad, threads=1).step({"ids": np.array([[1, 2]])})
        except OctavoError:
            noticed = True
        assert noticed


def test_wrong_inputs_and_absent_units_are_named(story: tuple[CompressedModel, Path]) -> None:
    session = OnnxRuntime().open(story[1])
    with pytest.raises(BadInput, match="takes \\['ids'\\]"):
        session.step({"tokens": np.array([[1]])})
    with pytest.raises(BadInput, match=r"ids is \[3\]"):
        session.step({"ids": np.array([1, 2, 3])})
    with pytest.raises(Missing, match="npu"):
        OnnxRuntime().open(story[1], units=("npu",))
    fallen = OnnxRuntime().open(story[1], units=("npu", "cpu")).placement()
    assert all("npu" in item.reason for item in fallen)


def test_sampling_is_seeded_and_top_p_cuts_the_tail() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    draws = lambda p, seed: [  # noqa: E731
        choose(logits, Sampling(1.0, p), random) for random in [np.random.default_rng(seed)] for _ in range(400)
    ]
    assert draws(1.0, 1) == draws(1.0, 1)
    assert set(draws(1.0, 1)) == {0, 1, 2, 3}
    assert set(draws(0.75, 1)) == {0, 1}
    assert set(draws(0.4, 1)) == {0}
    assert abs(np.mean(np.array(draws(1.0, 2)) == 0) - 0.5) < 0.1
    with pytest.raises(BadInput, match="top-p"):
        Sampling(1.0, 0.0)


def test_generation_ends_at_eos_and_at_the_context(story: tuple[CompressedModel, Path]) -> None:
    session = OnnxRuntime().open(story[1], threads=1)
    free = generate(session, [1, 403], tokens=12)
    assert generate(session, [1, 403], tokens=12, eos=(free[5],)) == free[: free.index(free[5]) + 1]
    assert len(generate(session, [1, 403], tokens=12, context=6)) == 4
    with pytest.raises(BadInput, match="no tokens"):
        generate(session, [], tokens=3)


TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 128,
}  # fmt: skip
MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("mistral", {"sliding_window": 5}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("phi3", {"sliding_window": 6, "partial_rotary_factor": 0.5}),
        ("gemma2", MIXED | {"query_pre_attn_scalar": 10}),
        ("gemma3_text", MIXED | {"query_pre_attn_scalar": 6}),
        ("smollm3", {"no_rope_layers": [1, 0]}),
    ],
)
def test_every_family_computes_what_torch_does(family: str, extra: dict[str, Any], tmp_path: Path) -> None:
    config = TINY | extra | {"model_type": family}
    spec = decoder_spec(config)
    random = np.random.default_rng(4)
    values: dict[str, TensorValue] = {
        name: (random.normal(0, 0.3, item.shape) + (item.role == "other")).astype(np.float32)
        for name, item in spec.tensors().items()
    }
    model = model_of(config, values)
    path = lowered(model, tmp_path / "m.onnx")
    assert wrong_tensors(path, model) == []
    ids = random.integers(3, 97, 21).tolist()
    program = build(spec, {name: torch.from_numpy(value) for name, value in floats(model).items()})
    with torch.no_grad():
        expected = program(torch.tensor([ids]), empty_cache(spec))[0].numpy()
    for cuts in ((), (9, 12, 13, 20)):
        assert np.abs(logits_of(path, ids, cuts) - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
