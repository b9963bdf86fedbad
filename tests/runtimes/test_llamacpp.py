"""GGUF files: what goes in comes back through gguf-py's reader, digest for digest, and nothing else passes for it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import assets_of, from_directory, model_of, random_codes

from octavo.core.architecture import decoder_spec
from octavo.core.carriage import possible
from octavo.core.grid import to_bfloat16
from octavo.core.manifest import EditedManifest, Manifest
from octavo.core.model import CompressedModel, TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import BadInput, Missing, OctavoError, Refused
from octavo.runtimes.base import no_progress
from octavo.runtimes.llama import write
from octavo.runtimes.llama.readback import GgufReadBack
from octavo.runtimes.llamacpp import LlamaCpp

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
FLOATS = ("fp32", "fp16", "bf16")
TABLE = possible("llamacpp", "matmul")


def made(scheme: str, **changes: Any) -> CompressedModel:
    """A model of which every matrix is in `scheme`, with random content."""
    config = CONFIG | changes
    rng = np.random.default_rng(0)
    values: dict[str, TensorValue] = {}
    float_type = scheme if scheme in FLOATS else "fp32"
    for seed, (name, tensor) in enumerate(decoder_spec(config).tensors().items()):
        if tensor.role != "other" and scheme not in FLOATS:
            values[name] = random_codes(tensor.shape, scheme, seed)
        else:
            floats = rng.normal(0, 1, tensor.shape).astype(np.float16).astype(np.float32)
            values[name] = to_bfloat16(floats) if scheme == "bf16" else floats
    schemes = dict.fromkeys(values, scheme)
    return model_of(config, values, float_type=float_type, schemes=schemes)


def lowered(model: CompressedModel, path: Path) -> tuple[Path, Manifest]:
    runtime = LlamaCpp()
    manifest = runtime.carry(model)
    runtime.lower(model, manifest, path, lambda: None, no_progress)
    return path, manifest


def digest(value: TensorValue) -> str:
    return value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)


def changed(path: Path, manifest: Manifest) -> set[str]:
    """The tensors whose digest is not the recorded one, or that cannot be decoded at all."""
    found, reader = set(), GgufReadBack(path)
    for carried in manifest.tensors:
        try:
            if digest(reader.tensor(carried)) != carried.digest:
                found.add(carried.name)
        except Refused:
            found.add(carried.name)
    return found


@pytest.mark.parametrize("block_weights", [write.BLOCK_WEIGHTS, 16384], ids=["whole", "in row blocks"])
@pytest.mark.parametrize("scheme", TABLE)
def test_digests_survive_the_file(
    scheme: str, block_weights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "BLOCK_WEIGHTS", block_weights)
    model = made(scheme)
    path, manifest = lowered(model, tmp_path / "m.gguf")
    reader = LlamaCpp().read_back(path)
    assert replace(reader.manifest, extra=manifest.extra) == manifest
    assert reader.manifest.digest == model.digest
    for carried in manifest.tensors:
        value = reader.tensor(carried)
        assert digest(value) == carried.digest == model.record(carried.name).digest, carried
        assert reader.digest(carried) == carried.digest
    cell = TABLE[scheme]
    matrix = next(c for c in manifest.tensors if c.role == "matmul")
    assert (matrix.stored_as, matrix.why) == (cell.stored_as, cell.why)
    if cell.bits:
        size = sum(c.shape[0] * c.shape[1] * cell.bits / 8 for c in manifest.tensors if c.role != "other")
        assert size <= path.stat().st_size <= size + 40_000


@pytest.mark.parametrize("scheme", ["w8", "w4g32", "ternary", "q4_0"])
def test_llama_cpp_computes_with_exactly_these_weights(scheme: str, tmp_path: Path) -> None:
    """The file's logits equal those of the same values in an fp32 file, up to llama.cpp's int8 activations."""
    model = made(scheme)
    floats: dict[str, TensorValue] = {}
    for record in model.tensors:
        value = model.tensor(record.name)
        floats[record.name] = value.dequantize() if isinstance(value, QuantizedTensor) else value
    ids = np.arange(3, 40)[None]
    logits = []
    for name, one in (("a", model), ("b", model_of(CONFIG, floats))):
        session = LlamaCpp().open(lowered(one, tmp_path / f"{name}.gguf")[0], threads=1)
        logits.append(session.step({"ids": ids})[0]["logits"].astype(np.float64))
        session.close()
    error = ((logits[0] - logits[1]) ** 2).sum() / (logits[1] ** 2).sum()
    assert -10 * np.log10(error) > 25, f"{-10 * np.log10(error):.1f} dB"


def test_each_edit_changes_the_digest_of_its_tensor_alone(tmp_path: Path) -> None:
    path, manifest = lowered(made("w4g32"), tmp_path / "m.gguf")
    assert changed(path, manifest) == set()
    reader = GgufReadBack(path)
    places = {c.name: int(reader._tensors[c.at[0]].data_offset) for c in manifest.tensors}
    sizes = {c.name: int(reader._tensors[c.at[0]].n_bytes) for c in manifest.tensors}
    whole = path.read_bytes()

    def after(edit: dict[int, bytes]) -> set[str]:
        data = bytearray(whole)
        for at, new in edit.items():
            data[at : at + len(new)] = new
        edited = tmp_path / "edited.gguf"
        edited.write_bytes(data)
        return changed(edited, manifest)

    for name, at in places.items():
        assert after({at + 3: bytes([whole[at + 3] ^ 0x10])}) == {name}, "a code, or a float's byte"
        last = at + sizes[name] - 1
        assert after({last: bytes([whole[last] ^ 1])}) == {name}, "the last byte"
    name = "model.layers.1.self_attn.q_proj.weight"
    assert after({places[name]: bytes([whole[places[name]] ^ 8])}) == {name}, "a scale"
    assert after({places[name] + 1: b"\x7e"}) == {name}, "a scale that is no number"
    one, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
    a, b = places[one], places[other]
    size = sizes[one]
    assert after({a: whole[b : b + size], b: whole[a : a + size]}) == {one, other}, "two swapped"


@pytest.mark.parametrize("scheme", ["w3g32", "w2g32", "ternary", "w8", "w4", "w8t"])
def test_what_a_narrower_scheme_cannot_hold_is_not_taken_for_it(scheme: str, tmp_path: Path) -> None:
    """A wider file type has room for codes, and for scales that differ, where the scheme has none."""
    path, manifest = lowered(made(scheme), tmp_path / "m.gguf")
    carried = next(c for c in manifest.tensors if c.role == "matmul")
    reader = GgufReadBack(path)
    data = bytearray(path.read_bytes())
    at = int(reader._tensors[carried.at[0]].data_offset)
    if carried.stored_as == "Q8_0":
        data[at + 2] = 0x80  # code −128: portable int8 ends at −127
    elif scheme == "w4":
        data[at] ^= 1  # one block's scale
    else:
        data[at + 2] = 0xFF
    path.write_bytes(data)
    with pytest.raises(Refused, match=f"{carried.name} is no {scheme}"):
        GgufReadBack(path).tensor(carried)
    with pytest.raises(Refused, match=f"{carried.name} is no {scheme}"):
        GgufReadBack(path).digest(carried)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path, _ = lowered(made("w8g32"), tmp_path / "m.gguf")
    whole = path.read_bytes()
    for length in (0, 3, 4, 20, 100, 3000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=f"it has {length} bytes"):
            GgufReadBack(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(BadInput, match="GGUF magic invalid"):
        GgufReadBack(path)
    with pytest.raises(BadInput):
        GgufReadBack(tmp_path / "none.gguf")


def test_damage_anywhere_in_the_header_is_an_ordinary_error(stories260k: Path, tmp_path: Path) -> None:
    model = replace(made("w8g32", num_hidden_layers=1, vocab_size=512), assets=assets_of(stories260k))
    path, manifest = lowered(model, tmp_path / "m.gguf")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for edits in rng.integers(4, 16_000, (150, 2)):
        data = bytearray(whole)
        for at in edits:
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            reader = GgufReadBack(path)
            assert reader.manifest is None or reader.manifest.digest == manifest.digest
            changed(path, manifest)
        except OctavoError:
            continue


def test_an_endless_array_is_not_read_to_its_end(stories260k: Path, tmp_path: Path) -> None:
    model = replace(made("w8g32", num_hidden_layers=1, vocab_size=512), assets=assets_of(stories260k))
    path, _ = lowered(model, tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    length = data.index(b"tokenizer.ggml.scores") + len(b"tokenizer.ggml.scores") + 4 + 4
    assert int.from_bytes(data[length : length + 8], "little") == 512
    data[length + 7] = 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="gguf-py cannot read it"):
        GgufReadBack(path)


def test_an_edited_manifest_is_noticed(tmp_path: Path) -> None:
    path, manifest = lowered(made("w8g32"), tmp_path / "m.gguf")
    digest = manifest.tensors[0].digest
    path.write_bytes(path.read_bytes().replace(digest.encode(), digest[::-1].encode()))
    with pytest.raises(EditedManifest):
        _ = GgufReadBack(path).manifest


def test_a_missing_or_retyped_tensor_is_refused(tmp_path: Path) -> None:
    path, manifest = lowered(made("w8g32"), tmp_path / "m.gguf")
    reader = GgufReadBack(path)
    carried = manifest.tensors[1]
    with pytest.raises(Refused, match="no such tensor"):
        reader.tensor(replace(carried, at=("blk.9.attn_q.weight",)))
    with pytest.raises(Refused, match=r"the file has Q8_0 \[256, 256\], the manifest says F16 \[256, 256\]"):
        reader.tensor(replace(carried, stored_as="F16"))


def test_rows_are_permuted_for_paired_rope_and_back(tmp_path: Path) -> None:
    model = made("fp32")
    path, manifest = lowered(model, tmp_path / "m.gguf")
    carried = next(c for c in manifest.tensors if c.name.endswith("0.self_attn.k_proj.weight"))
    assert carried.moves == ("interleave=4",)
    reader = GgufReadBack(path)
    stored, source = np.asarray(reader.stored(carried)), np.asarray(model.tensor(carried.name))
    half = 16  # head_dim 32
    assert (stored[0] == source[0]).all()
    assert (stored[1] == source[half]).all()
    assert (stored[2] == source[1]).all()
    assert (np.asarray(reader.tensor(carried)) == source).all()


def test_gemma_norms_are_stored_plus_one(tmp_path: Path) -> None:
    changes = {"model_type": "gemma2", "head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
    model = made("fp32", **changes)  # fp16 values: 1 + w is mostly exact
    values = {record.name: model.tensor(record.name) for record in model.tensors}
    inexact, exact = "model.norm.weight", "model.layers.0.input_layernorm.weight"
    values[inexact] = np.full(256, 1e-9, np.float32)
    values[exact] = np.full(256, 0.25, np.float32)
    model = model_of(CONFIG | changes, values)
    path, manifest = lowered(model, tmp_path / "m.gguf")
    carried = {c.name: c for c in manifest.tensors}
    reader = GgufReadBack(path)
    assert carried[exact].carried_digest == ""
    assert digest(reader.tensor(carried[exact])) == carried[exact].digest
    assert carried[inexact].moves == ("plus_one",)
    assert (np.asarray(reader.stored(carried[inexact])) == 1).all()
    assert digest(reader.stored(carried[inexact])) == carried[inexact].carried_digest != carried[inexact].digest
    assert (np.asarray(reader.tensor(carried[inexact])) == 0).all()


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    path, _ = lowered(made("w8g32", tie_word_embeddings=True), tmp_path / "a.gguf")
    assert "output.weight" not in GgufReadBack(path).tensor_names
    path, _ = lowered(made("w8g32"), tmp_path / "b.gguf")
    assert "output.weight" in GgufReadBack(path).tensor_names


def test_llama_3_rope_factors_are_a_tensor_of_their_own(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = made("w8g32", rope_parameters=rope | {"original_max_position_embeddings": 8192})
    path, _ = lowered(model, tmp_path / "m.gguf")
    factors = np.array(GgufReadBack(path)._tensors["rope_freqs.weight"].data)
    assert factors.shape == (16,)
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    assert (np.diff(factors) >= 0).all()
    assert GgufReadBack(path).manifest.extra["program"]["tensors"] == {"rope_freqs.weight": float_digest(factors)}
    at = int(GgufReadBack(path)._tensors["rope_freqs.weight"].data_offset)
    data = bytearray(path.read_bytes())
    data[at + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(EditedManifest, match=r"tensor rope_freqs\.weight was changed") as caught:
        _ = GgufReadBack(path).manifest
    assert caught.value.names == ("rope_freqs.weight",)


def rewritten(path: Path, keys: dict[str, float] | None = None, tensors: tuple[str, ...] = ()) -> None:
    """Write the file anew with gguf-py: other values for some float keys, and tensors [256] of zeros added."""
    import gguf

    reader = GgufReadBack(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, (keys or {}).get(name, field.contents()), kind, inner)
    for name, value in (keys or {}).items():
        if name not in reader.fields:
            writer.add_float32(name, value)
    for tensor in reader._tensors.values():
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name in tensors:
        writer.add_tensor(name, np.zeros(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    ("keys", "tensors", "words"),
    [
        ({"llama.rope.freq_base": 5e5}, (), "metadata llama.rope.freq_base was changed"),
        ({"llama.rope.scaling.factor": 2.0}, (), "metadata llama.rope.scaling.factor was added"),
        ({}, ("blk.0.attn_q.bias",), "tensor blk.0.attn_q.bias was added"),
        ({}, ("rope_freqs.weight",), "tensor rope_freqs.weight was added"),
    ],
)
def test_a_file_that_computes_something_else_with_the_same_weights_is_named(
    keys: dict[str, float], tensors: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    from octavo.api import verify

    path, manifest = lowered(made("w8g32"), tmp_path / "m.gguf")
    rewritten(path)
    assert changed(path, manifest) == set()
    assert verify(path).weights == "exact", "only written anew"
    rewritten(path, keys, tensors)
    assert changed(path, manifest) == set(), "the weights themselves are all there"
    with pytest.raises(EditedManifest, match=words):
        _ = GgufReadBack(path).manifest
    found = verify(path)
    assert not found.passed
    assert [item["name"] for item in found.weights["wrong"]] == [*keys, *tensors]


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = (lowered(made("w4g32"), tmp_path / f"{name}.gguf")[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_ternary_rows_that_tq2_0_cannot_hold_go_into_wider_fields_exactly(tmp_path: Path) -> None:
    model = made("ternary", intermediate_size=288)
    path, manifest = lowered(model, tmp_path / "m.gguf")
    by_type = {c.stored_as for c in manifest.tensors if c.role == "matmul"}
    assert by_type == {"TQ2_0", "Q4_0"}
    reader = GgufReadBack(path)
    for carried in manifest.tensors:
        assert reader.digest(carried) == carried.digest
    carried = next(c for c in manifest.tensors if c.stored_as == "Q4_0")
    assert carried.shape[1] == 288
    assert carried.moves == ("repeat_scale", "widen")
    back, source = reader.tensor(carried), model.tensor(carried.name)
    assert isinstance(back, QuantizedTensor)
    assert isinstance(source, QuantizedTensor)
    assert np.array_equal(back.codes, source.codes)
    assert back.scale.tobytes() == source.scale.tobytes()


def test_ids_alone_end_at_the_models_end_or_the_context(tmp_path: Path) -> None:
    """Without a tokenizer the end ids still travel in the file, and generation stops there."""
    free, _ = lowered(made("fp32"), tmp_path / "free.gguf")
    with LlamaCpp().open(free, threads=1, context=12) as session:
        assert session.context == 12
        made_freely = session.generate([1, 5, 9, 3], 100, temperature=0.0)
        assert (len(made_freely.ids), made_freely.finish_reason) == (8, "length")
        with pytest.raises(BadInput, match="The prompt has 12 tokens, and the context is 12"):
            session.generate([1] * 12, 5)
    end = next(token for token in made_freely.ids if made_freely.ids.index(token) >= 2)
    stop = made_freely.ids.index(end) + 1
    never = next(token for token in range(96) if token not in made_freely.ids)
    bound, _ = lowered(made("fp32", eos_token_id=[never, end], bos_token_id=1), tmp_path / "bound.gguf")
    assert GgufReadBack(bound).value("tokenizer.ggml.bos_token_id") == 1
    with LlamaCpp().open(bound, threads=1, context=12) as session:
        ended = session.generate([1, 5, 9, 3], 100, temperature=0.0)
        assert (ended.ids, ended.finish_reason) == (made_freely.ids[:stop], "stop")
        assert session.generate([1, 5, 9, 3], 100, temperature=0.0, ignore_eos=True).ids == made_freely.ids


def test_other_units_than_the_cpu_are_missing_and_named(tmp_path: Path) -> None:
    path, _ = lowered(made("w8g32"), tmp_path / "m.gguf")
    with pytest.raises(Missing, match="not gpu"):
        LlamaCpp().open(path, units=("gpu",))
    with LlamaCpp().open(path, threads=1, units=("gpu", "cpu")) as session:
        assert [(item.unit, "not gpu" in item.reason) for item in session.placement()] == [("cpu", True)]


@pytest.mark.parametrize(
    ("scheme", "changes", "words"),
    [
        ("ternary", {"intermediate_size": 272}, "multiple of 32, and 272 is not.*holds fp32, fp16;"),
        ("w8", {"hidden_size": 240, "num_attention_heads": 4}, "multiple of 32, and 240 is not.*holds fp32, fp16;"),
    ],
)
def test_a_row_that_does_not_divide_is_refused_with_what_is_possible(
    scheme: str, changes: dict[str, Any], words: str
) -> None:
    model = made("fp32", **changes)
    columns = next(iter({272, 240} & set(changes.values())))
    records = tuple(
        replace(record, scheme=scheme) if len(record.shape) == 2 and record.shape[1] == columns else record
        for record in model.tensors
    )
    with pytest.raises(Refused, match=words):
        LlamaCpp().carry(replace(model, tensors=records))


def test_a_scheme_without_a_form_is_refused_with_what_is_possible() -> None:
    plain = {name for name, grid in SCHEMES.items() if not grid.activation}  # llama.cpp has no quantised activations
    assert plain <= set(TABLE) | set(FLOATS), "every weight-only scheme has a form for matrices here"
    model = made("fp32")
    records = tuple(replace(r, scheme="w8") if r.name.endswith("input_layernorm.weight") else r for r in model.tensors)
    with pytest.raises(Refused, match=r"input_layernorm.weight \[256\]: .*no exact form of w8.*It holds fp32"):
        LlamaCpp().carry(replace(model, tensors=records))


def test_a_model_that_contradicts_its_config_is_refused() -> None:
    model = made("fp32")
    with pytest.raises(BadInput, match=r"lm_head\.weight is missing"):
        LlamaCpp().carry(replace(model, tensors=model.tensors[:-1]))
    records = tuple(replace(r, shape=(255,)) if r.name == "model.norm.weight" else r for r in model.tensors)
    with pytest.raises(BadInput, match=r"model\.norm\.weight is \[255\], not \[256\]"):
        LlamaCpp().carry(replace(model, tensors=records))
    graph = replace(model, program=replace(model.program, kind="graph"))
    with pytest.raises(Refused, match="another runtime"):
        LlamaCpp().carry(graph)


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "BLOCK_WEIGHTS", 1 << 16)
    model = made("w4g32", vocab_size=16384, num_hidden_layers=1, tie_word_embeddings=True)
    runtime = LlamaCpp()
    manifest = runtime.carry(model)
    tracemalloc.start()
    runtime.lower(model, manifest, tmp_path / "m.gguf", lambda: None, no_progress)
    writing = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    reader = GgufReadBack(tmp_path / "m.gguf")
    assert reader.digest(manifest.tensors[0]) == manifest.tensors[0].digest
    reading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert manifest.tensors[0].shape == (16384, 256)  # 4 Mi codes
    assert max(writing, reading) < 2_000_000


def test_the_line_that_runs_it_survives_a_shell() -> None:
    import shlex

    line = LlamaCpp().run_line(Path("a dir/it's.gguf"))
    assert shlex.split(line)[:3] == ["llama-cli", "-m", "a dir/it's.gguf"]


def test_doctor_names_the_versions() -> None:
    found = LlamaCpp().doctor()
    assert found.works
    assert "xllamacpp" in found.version
    assert found.units == ("cpu",)


def test_fields_are_what_gguf_pys_own_reader_makes_of_them(tiny8m, tmp_path):
    """Our reader is gguf-py's with bounds checked and string arrays read faster; nothing else may differ."""
    from gguf import GGUFReader

    model, path = from_directory(tiny8m), tmp_path / "m.gguf"
    runtime = LlamaCpp()
    runtime.lower(model, runtime.carry(model), path, lambda: None, no_progress)
    theirs, ours = GGUFReader(path).fields, runtime.read_back(path).fields
    assert list(theirs) == list(ours)
    for name, field in theirs.items():
        assert field.types == ours[name].types, name
        assert field.data == ours[name].data, name
        assert field.contents() == ours[name].contents(), name
