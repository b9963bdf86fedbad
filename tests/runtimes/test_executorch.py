"""ExecuTorch's .pte files: exact codes in XNNPACK's constants, every cell of the table, damage, placement, sessions.

Lowering and loading are slow, so all networks are lowered once, in one worker, and shared by the tests.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("executorch")
from torch import nn  # noqa: E402

from octavo.api.programs import ModelPrograms  # noqa: E402
from octavo.core.carriage import possible, table  # noqa: E402
from octavo.core.manifest import EditedManifest, Manifest  # noqa: E402
from octavo.core.model import CompressedModel, State, TensorRecord, TensorValue  # noqa: E402
from octavo.core.tensor import QuantizedTensor, float_digest  # noqa: E402
from octavo.errors import BadInput, OctavoError, Refused  # noqa: E402
from octavo.runtimes.base import no_progress  # noqa: E402
from octavo.runtimes.executorch import ExecuTorch  # noqa: E402
from octavo.runtimes.pte import lowering, xnnpack  # noqa: E402
from octavo.runtimes.pte.container import Container  # noqa: E402
from octavo.runtimes.pte.read import PteReadBack  # noqa: E402
from octavo.runtimes.pte.session import FALLBACK, PteSession  # noqa: E402
from octavo.sources.torch import capture, describe, load_graph  # noqa: E402
from octavo.verify.weights import check_weights  # noqa: E402
from tests.models import MemoryReader, random_codes  # noqa: E402
from tests.static_models import convnet, simulated, static_model  # noqa: E402

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MATRIX = tuple(name for name in possible("executorch", "matmul") if name not in ("w8a8", "w8ta8"))
ROWS = tuple(possible("executorch", "embedding"))
WIDTH = 128
IMAGE = (torch.zeros(1, 3, 16, 16),)


class Mixed(nn.Module):
    """A linear layer in every weight-only scheme, a product with a transposed weight, convolutions and embeddings in
    every type they have, one operator that XNNPACK lacks, and a state. Every layer's result comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleDict({name: nn.Linear(WIDTH, 24) for name in MATRIX})
        self.conv = nn.ModuleDict({name: nn.Conv2d(4, 8, 3, padding=1, groups=2) for name in FLOATS})
        self.embedding = nn.ModuleDict({name: nn.Embedding(12, WIDTH) for name in ROWS})
        self.product = nn.Parameter(torch.zeros(10, WIDTH))

    def forward(self, x: Any, image: Any, ids: Any, h: Any) -> tuple[Any, ...]:
        out = [layer(x) for layer in self.linear.values()]
        out += [layer(image) for layer in self.conv.values()]
        out += [layer(ids) for layer in self.embedding.values()]
        return (*out, torch.matmul(x, self.product.t()), torch.erf(x), torch.tanh(h + x))


class Odd(nn.Module):
    """Rows of odd length, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.twice = nn.Linear(35, 35), nn.Linear(35, 35, bias=False)

    def forward(self, x: Any) -> Any:
        return self.twice(torch.relu(self.twice(self.narrow(x))))


def drawn(shape: tuple[int, ...], scheme: str, seed: int) -> TensorValue:
    if scheme not in FLOATS:
        return random_codes(shape, scheme, seed)
    values = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32))
    return values.to(FLOATS[scheme]).float().numpy()


def compressed(module: nn.Module, inputs: tuple[Any, ...], schemes: dict[str, str], **parts: Any) -> CompressedModel:
    program, tensors = describe(capture(module.eval(), inputs))
    values = {name: drawn(array.shape, schemes.get(name, "fp32"), n) for n, (name, array, _) in enumerate(tensors)}
    records = tuple(
        TensorRecord(name, array.shape, role, schemes.get(name, "fp32"), digest_of(values[name]))
        for name, array, role in tensors
    )
    return CompressedModel(program, records, MemoryReader(values), **parts)


def digest_of(value: TensorValue) -> str:
    return value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)


def mixed() -> CompressedModel:
    schemes = {f"linear.{name}.weight": name for name in MATRIX} | {"product": "w8", "linear.w8.bias": "fp16"}
    schemes |= {f"conv.{name}.weight": name for name in FLOATS} | {f"embedding.{name}.weight": name for name in ROWS}
    inputs = (
        torch.zeros(2, WIDTH),
        torch.zeros(1, 4, 9, 9),
        torch.zeros(1, 5, dtype=torch.int64),
        torch.zeros(2, WIDTH),
    )
    state = (State("h", (2, WIDTH), "float32"),)
    return compressed(Mixed(), inputs, schemes, state=state, assets={"labels.txt": b"cat\ndog\n"})


MODELS = {
    "w8a8": lambda: static_model(convnet(), IMAGE),
    "w8ta8": lambda: static_model(convnet(), IMAGE, "w8ta8"),
    "mixed": mixed,
    "odd": lambda: compressed(Odd(), (torch.zeros(3, 35),), {"narrow.weight": "w4", "twice.weight": "w8"}),
}


class Made:
    """The files of MODELS, each lowered when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.models, self.sessions = folder, {}, {}

    def model(self, name: str) -> CompressedModel:
        if name not in self.models:
            self.models[name] = MODELS[name]()
        return self.models[name]

    def path(self, name: str) -> Path:
        path = self.folder / f"{name}.pte"
        if not path.exists():
            lowered(self.model(name), path)
        return path

    def session(self, name: str) -> PteSession:
        if name not in self.sessions:
            self.sessions[name] = ExecuTorch().open(self.path(name))
        return self.sessions[name]


def lowered(model: CompressedModel, path: Path) -> None:
    runtime = ExecuTorch()
    runtime.lower(model, runtime.carry(model), path, ModelPrograms(model), no_progress)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    found = Made(tmp_path_factory.mktemp("pte"))
    yield found
    for session in found.sessions.values():
        session.close()


def checked(path: Path, model: CompressedModel | None = None) -> Any:
    """verify's own comparison of a file's weights."""
    back = ExecuTorch().read_back(path)
    try:
        return check_weights(back, back.manifest, model)
    finally:
        back.close()


def sqnr(right: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    noise = float(((right - found).astype(np.float64) ** 2).sum())
    return 10 * np.log10(float((right.astype(np.float64) ** 2).sum()) / max(noise, 1e-300))


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_read_back_with_its_digest(made: Made, name: str) -> None:
    report = checked(made.path(name), made.model(name))
    assert not report.wrong
    assert report.checked == len(made.model(name).tensors)
    assert report.digest == made.model(name).digest


@pytest.mark.parametrize("name", ["w8a8", "w8ta8"])
def test_a_static_file_computes_what_the_simulation_computes(made: Made, name: str) -> None:
    run = simulated(made.model(name))
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(1, 3, 16, 16)).astype(np.float32)
        found, _ = made.session(name).step({"x": x})
        step = next(edge.scale for edge in reversed(made.model(name).edges))
        assert np.abs(found["output"] - run(x)).max() <= 1.01 * step, "within one code of the output"


def test_every_layer_of_every_scheme_agrees_with_its_decoded_weights(made: Made) -> None:
    rng = np.random.default_rng(0)
    model = made.model("mixed")
    given = {
        "x": rng.normal(size=(2, WIDTH)).astype(np.float32),
        "image": rng.normal(size=(1, 4, 9, 9)).astype(np.float32),
        "ids": rng.integers(0, 12, (1, 5)),
    }
    values = {record.name: model.tensor(record.name) for record in model.tensors}
    floats = {n: v.dequantize() if isinstance(v, QuantizedTensor) else v for n, v in values.items()}
    h = rng.normal(size=(2, WIDTH)).astype(np.float32)
    with torch.inference_mode():
        right = load_graph(model.program, floats)(*(torch.from_numpy(v) for v in (*given.values(), h)))
    found, state = made.session("mixed").step(given, {"h": h})
    names = [*(f"linear {n}" for n in MATRIX), *(f"conv {n}" for n in FLOATS), *(f"embedding {n}" for n in ROWS)]
    for name, wanted, got in zip([*names, "product", "erf"], right, found.values(), strict=False):
        rounded = name == "product" or ("linear" in name and name.split()[-1] not in FLOATS)
        assert sqnr(wanted.numpy(), got) > (33 if rounded else 100), name
    assert sqnr(right[-1].numpy(), state["h"]) > 90
    again, _ = made.session("mixed").step(given)
    assert all(np.array_equal(found[key], again[key]) for key in found), "only the state depends on the state"


def test_every_cell_of_the_table_was_tried(made: Made) -> None:
    tried: dict[tuple[str, str], str] = {}
    for name in MODELS:
        back = PteReadBack(made.path(name))
        assert back.manifest is not None
        for item in back.manifest.tensors:
            assert {back.places[at].datatype for at in item.at} <= {item.stored_as, "qcint32", "qint32", "float32"}
            tried[item.role, item.scheme] = item.stored_as
        back.close()
    cells = table()["executorch"]
    wanted = {(role, name) for role in cells for name, cell in cells[role].items() if cell.how != "refused"}
    assert wanted <= tried.keys() | {("other", "bf16")}
    refused = [(role, name) for role in cells for name, cell in cells[role].items() if cell.how == "refused"]
    for role, name in refused:
        shape = (8, 32) if role == "matmul" else (8, 4, 3, 3)
        record = TensorRecord("layer.weight", shape, role, name, "")
        model = replace(made.model("odd"), tensors=(record,))
        with pytest.raises(Refused, match=r"layer\.weight.*executorch"):
            ExecuTorch().carry(model)


def test_what_each_widening_costs_is_said(made: Made) -> None:
    widened = checked(made.path("mixed")).widened
    assert any("ternary as qcint4" in key for key in widened)
    assert any("fp16 as fp32" in key for key in widened)


def test_the_same_model_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    lowered(made.model("w8a8"), tmp_path / "again.pte")
    assert (tmp_path / "again.pte").read_bytes() == made.path("w8a8").read_bytes()


def flipped(source: Path, target: Path, at: int, bit: int = 0) -> Path:
    data = bytearray(source.read_bytes())
    data[at] ^= 1 << bit
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("part", "tensor"), [("codes", "down.weight"), ("scales", "down.weight"), ("codes", "head.bias")]
)
def test_a_flipped_bit_of_a_tensor_is_named(made: Made, tmp_path: Path, part: str, tensor: str) -> None:
    back = PteReadBack(made.path("w8a8"))
    assert back.manifest is not None
    place = back.places[next(item for item in back.manifest.tensors if item.name == tensor).at[0]]
    spans = place.spans
    damaged = flipped(made.path("w8a8"), tmp_path / "flipped.pte", spans[part == "scales"].start + 5)
    report = checked(damaged, made.model("w8a8"))
    assert [item.name for item in report.wrong] == [tensor]
    assert [item.name for item in checked(damaged).wrong] == [tensor], "without the compressed model as well"


def test_a_changed_zero_point_is_named(made: Made, tmp_path: Path) -> None:
    container = Container(made.path("w8a8"))
    edge = next(edge for edge in made.model("w8a8").edges if edge.name == "relu")
    scale = struct.pack("<f", edge.scale)
    blob = container.delegates[0].blob
    data = bytearray(container.bytes(blob))
    at = data.index(scale)
    zero = next(place for place in (at + 4, at - 4) if data[place : place + 4] == struct.pack("<i", edge.zero_point))
    container.close()
    damaged = flipped(made.path("w8a8"), tmp_path / "zero.pte", blob.start + zero, 1)
    with pytest.raises(EditedManifest, match="relu") as caught:
        _ = PteReadBack(damaged).manifest
    assert "edge relu" in caught.value.names
    assert PteReadBack(damaged).edges()["relu"].zero_point == edge.zero_point ^ 2
    with pytest.raises(EditedManifest):
        ExecuTorch().open(damaged)


def test_edges_are_read_back(made: Made) -> None:
    for name in ("w8a8", "w8ta8"):
        found = PteReadBack(made.path(name)).edges()
        wanted = {edge.name: edge for edge in made.model(name).edges}
        assert found == {key: wanted[key] for key in found}
        assert len(found) == len(wanted)


def test_dropped_scales_are_caught(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight-only quantisation, given to XNNPACK as it is, loses its scales; what it wrote is not our tensor."""
    from octavo.runtimes.pte import dynamic

    monkeypatch.setattr(dynamic, "_quantised_input", lambda module, node, columns: node)
    model = compressed(nn.Sequential(nn.Linear(64, 8)), (torch.zeros(2, 64),), {"0.weight": "w4g32"})
    with pytest.raises(OctavoError, match=r"0\.weight .*nowhere|conversions outside"):
        lowered(model, tmp_path / "trap.pte")
    assert not (tmp_path / "trap.pte").exists()


@pytest.mark.parametrize("scheme", ["w8", "w4g32"])
def test_scales_lost_from_a_file_are_named(made: Made, tmp_path: Path, scheme: str) -> None:
    back = PteReadBack(made.path("mixed"))
    assert back.manifest is not None
    name = f"linear.{scheme}.weight"
    place = back.places[next(item for item in back.manifest.tensors if item.name == name).at[0]]
    _, scales = place.spans
    one = struct.pack("<f", 1.0)[2 if scheme == "w4g32" else 0 :]
    data = bytearray(made.path("mixed").read_bytes())
    data[scales.start : scales.stop] = one * (scales.size // len(one))
    (tmp_path / "lost.pte").write_bytes(data)
    assert [item.name for item in checked(tmp_path / "lost.pte").wrong] == [name]


def test_a_file_cut_short_or_damaged_is_refused_and_never_kills_us(made: Made, tmp_path: Path) -> None:
    whole = made.path("w8a8").read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 3, 8, 39, 200, 4000, len(whole) - 40):
        (tmp_path / "cut.pte").write_bytes(whole[:length])
        with pytest.raises((BadInput, EditedManifest)):
            ExecuTorch().open(tmp_path / "cut.pte")
    for at in rng.integers(0, len(whole), 150):
        damaged = flipped(made.path("w8a8"), tmp_path / "bit.pte", int(at), int(rng.integers(8)))
        try:
            ExecuTorch().open(damaged).step({"x": np.ones((1, 3, 16, 16), np.float32)})
        except OctavoError:
            continue
        wrong = checked(damaged).wrong
        assert wrong, f"byte {at} was flipped, and nobody noticed"


def test_a_foreign_file_is_tried_in_a_worker_first(made: Made, tmp_path: Path) -> None:
    """Without a manifest nothing proves that the structure is sound."""
    text = made.path("w8a8").read_bytes().replace(b"octavo.manifest", b"somebodys.thing")
    (tmp_path / "foreign.pte").write_bytes(text)
    session = ExecuTorch().open(tmp_path / "foreign.pte")
    assert session.inputs == {"input": ((1, 3, 16, 16), "tensor(float)")}
    x = np.ones((1, 3, 16, 16), np.float32)
    assert np.array_equal(session.step({"input": x})[0]["output"], made.session("w8a8").step({"x": x})[0]["output"])
    assert any("XNNConv2d" in item.op for item in session.placement())
    back = PteReadBack(tmp_path / "foreign.pte")
    assert back.manifest is None
    plan = ExecuTorch().carry(made.model("w8a8"))
    wrong = {item.name for item in check_weights(back, None, made.model("w8a8"), carry=lambda model: plan).wrong}
    assert not wrong & {record.name for record in made.model("w8a8").tensors}, "found by content"
    blob = back.container.delegates[0].blob
    (tmp_path / "evil.pte").write_bytes(text[: blob.start + 64] + b"\xff" * 64 + text[blob.start + 128 :])
    with pytest.raises(OctavoError):
        ExecuTorch().open(tmp_path / "evil.pte")


def test_what_xnnpack_lacks_is_never_silent(made: Made) -> None:
    placed = made.session("mixed").placement()
    fallen = [item.op for item in placed if item.reason == FALLBACK]
    assert any("erf" in op for op in fallen)
    assert sum("embedding" in op for op in fallen) == 2 * len(ROWS) - len(FLOATS)
    assert not any("linear" in op or "convolution" in op for op in fallen)
    assert all(not item.reason for item in made.session("w8a8").placement())


def test_inputs_outputs_and_assets_keep_their_names(made: Made) -> None:
    session = made.session("mixed")
    assert list(session.inputs) == ["x", "image", "ids"]
    assert session.inputs["ids"] == ((1, 5), "tensor(int64)")
    assert session.assets == {"labels.txt": b"cat\ndog\n"}
    x = {"x": np.zeros((1, 3, 16, 16), np.float32)}
    with pytest.raises(BadInput, match="takes"):
        made.session("w8a8").step({"x": x["x"][:, :, :8]})
    with pytest.raises(BadInput, match="given"):
        made.session("w8a8").step({"y": x["x"]})
    with pytest.raises(BadInput):
        ExecuTorch().open(made.path("w8a8"), kv="f16")


def test_our_reader_reads_what_the_vendors_reads(made: Made, tmp_path: Path) -> None:
    """Against flatc with the schemas of the wheel (which prints six decimals), and exir's deserialiser."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    folder = Path(xnnpack_package())
    container = Container(made.path("w8a8"))
    theirs = deserialize_pte_binary(container.path.read_bytes())
    assert theirs.named_data is not None
    held = {name: theirs.named_data.buffers[entry.buffer_index] for name, entry in theirs.named_data.pte_data.items()}
    assert held == {name: container.bytes(span) for name, span in container.named.items()}
    blob = container.delegates[0].blob
    ours = xnnpack.graph(container, blob)
    data = container.bytes(blob)
    start, size = struct.unpack_from("<II", data, 10)
    (tmp_path / "graph.bin").write_bytes(data[start : start + size])
    schema = folder / "backends/xnnpack/serialization/schema.fbs"
    flatc = [folder / "data/bin/flatc", "--json", "--strict-json", "--raw-binary", "-o", tmp_path, schema, "--"]
    subprocess.run([*flatc, tmp_path / "graph.bin"], check=True)
    text = (tmp_path / "graph.json").read_text().replace(": inf", ": Infinity")
    graph = json.loads(text)
    assert [f"XNN{node}" for node in ours.nodes] == [item["xnode_union_type"] for item in graph["xnodes"]]
    for mine, item in zip(ours.values, graph["xvalues"], strict=True):
        value = item["xvalue_union"]
        tensor = value.get("tensor_value", value)
        assert f"xnn_datatype_{mine.datatype}" == tensor["datatype"]
        assert list(mine.shape) == tensor["dims"]
        if value.get("quant_params_type") == "PerTensorQuant":
            assert mine.quantised is not None
            assert mine.quantised.scale == pytest.approx(value["quant_params"].get("scale", 0), abs=1e-6)
            assert mine.quantised.zero_point == value["quant_params"].get("zero_point", 0)


def xnnpack_package() -> str:
    from importlib.util import find_spec

    spec = find_spec("executorch")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(next(iter(spec.submodule_search_locations)))


def test_the_placement_agrees_with_the_vendors_count(made: Made) -> None:
    """`get_operator_delegation_dataframe` counts operators by kind; our list names each."""
    for name in MODELS:
        manifest = PteReadBack(made.path(name)).manifest
        assert manifest is not None
        placement, kinds = manifest.extra["placement"], manifest.extra["delegation"]
        counted = [n for kind, n in kinds.items() if not any(word in kind for word in (*lowering.SKIPPED, "Total"))]
        assert sum(not item["reason"] for item in placement) == sum(inside for inside, _ in counted)
        assert sum(bool(item["reason"]) for item in placement) == sum(outside for _, outside in counted)


def test_a_language_model_and_other_units_are_refused(made: Made) -> None:
    model = made.model("odd")
    language = replace(model, program=replace(model.program, kind="huggingface"))
    with pytest.raises(Refused, match="llamacpp"):
        ExecuTorch().carry(language)
    with pytest.raises(OctavoError, match="npu"):
        ExecuTorch().open(made.path("w8a8"), units=("npu",))


def test_the_run_line_and_the_manifest(made: Made) -> None:
    assert "octavo run" in ExecuTorch().run_line(made.path("w8a8"))
    back = PteReadBack(made.path("mixed"))
    manifest = back.manifest
    assert isinstance(manifest, Manifest)
    assert "int8" in manifest.notes[0]
    assert manifest.extra["inputs"] == ["x", "image", "ids", "h"]


def test_doctor_runs_a_net() -> None:
    found = ExecuTorch().doctor()
    assert found.works
    assert found.units == ("cpu",)
    assert "executorch 1." in found.version
