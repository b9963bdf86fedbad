"""A compressed model on disk: what is written is read, twice the same bytes, and a failure leaves what was there."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from models import random_codes

from octavo.core import store
from octavo.core.grid import pack
from octavo.core.model import CompressedModel, Edge, Program, Skipped, State, TensorRecord
from octavo.core.store import StoreWriter, load, new_path
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import BadInput, OctavoError

SHAPE = (6, 256)
SCHEMES = ["w8", "w8t", "w8g32", "w4", "w4g32", "w3g32", "w2g32", "ternary", "q4_0"]
RNG = np.random.default_rng(0)
FLOATS = {
    "fp32": RNG.standard_normal((5, 4)).astype(np.float32),
    "fp16": RNG.standard_normal((5, 4)).astype(np.float16),
    "bf16": RNG.integers(0, 0x7F00, (5, 4), dtype=np.uint16),
}


def widened(name):
    values = FLOATS[name]
    return (values.astype(np.uint32) << 16).view(np.float32) if name == "bf16" else values.astype(np.float32)


def write(directory, scale=1.0):
    """Write a model that holds a tensor of every scheme and float type; returns it (its reader reads nothing)."""
    quantized = {name: random_codes(SHAPE, name, seed) for seed, name in enumerate(SCHEMES)}
    declared = {f"q.{name}": (SHAPE, name) for name in SCHEMES}
    declared |= {f"f.{name}": (values.shape, name) for name, values in FLOATS.items()} | {"scalar": ((), "fp32")}
    writer = StoreWriter(directory, declared)
    records = []
    for name, tensor in quantized.items():
        for start in (4, 0, 2):
            writer.codes(f"q.{name}", start, pack(tensor.codes[start : start + 2], tensor.range.bits))
        writer.scales(f"q.{name}", 0, tensor.scale)
        records.append(TensorRecord(f"q.{name}", SHAPE, "matmul", name, tensor.digest(), 21.5))
    for name, values in FLOATS.items():
        writer.floats(f"f.{name}", 0, values)
        records.append(TensorRecord(f"f.{name}", values.shape, "other", name, float_digest(widened(name))))
    scalar = np.array(scale, np.float32)
    writer.floats("scalar", 0, scalar)
    records.append(TensorRecord("scalar", (), "other", "fp32", float_digest(scalar)))
    model = CompressedModel(
        program=Program("graph", {"nodes": [1, 2.5, "é"]}),
        tensors=tuple(records),
        reader=None,
        edges=(Edge("relu_1", 0.05, -3, "int8"),),
        state=(State("cache.0", (1, -1, 8), "float32"),),
        assets={"tokenizer.json": b'{"a": 1}', "labels.txt": "één\n".encode()},
        skipped=(Skipped("conv.weight", "4 axes"),),
        lineage=({"step": "solve", "solver": "rtn"},),
    )
    writer.finish(model)
    return model


@pytest.fixture
def saved(tmp_path):
    with new_path(tmp_path / "m", directory=True) as directory:
        write(directory)
    return tmp_path / "m"


def files_of(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_model_loads_as_it_was_written(tmp_path):
    with new_path(tmp_path / "m", directory=True) as directory:
        model = write(directory)
    assert os.listdir(tmp_path) == ["m"]
    loaded = load(tmp_path / "m")
    assert loaded.digest == model.digest
    assert loaded == model
    assert loaded.assets == model.assets
    for seed, name in enumerate(SCHEMES):
        tensor, expected = loaded.tensor(f"q.{name}"), random_codes(SHAPE, name, seed)
        assert isinstance(tensor, QuantizedTensor)
        assert np.array_equal(tensor.codes, expected.codes)
        assert np.array_equal(tensor.scale, expected.scale)
        assert (tensor.block, tensor.range) == (expected.block, expected.range)
        assert tensor.digest() == loaded.record(f"q.{name}").digest
    for name in FLOATS:
        assert np.array_equal(loaded.tensor(f"f.{name}"), widened(name))
    assert loaded.tensor("scalar") == np.float32(1)


@pytest.mark.parametrize("name", SCHEMES)
def test_rows_read_alone_are_the_rows_of_the_whole(saved, name):
    model = load(saved)
    whole = model.tensor(f"q.{name}").dequantize()
    for start, stop in ((0, 1), (2, 5), (4, None), (5, 99)):
        assert np.array_equal(model.tensor(f"q.{name}", start, stop).dequantize(), whole[start:stop])


def test_the_size_told_is_the_size_of_the_tensors_on_disk(saved):
    model = load(saved)
    with store.SafetensorsFile(saved / store.TENSORS) as file:
        assert model.bytes == sum(entry.nbytes for entry in file.entries.values())
    assert model.bits_per_weight == 8 * model.bytes / model.parameters


def test_written_twice_are_the_same_bytes(tmp_path):
    for name in "ab":
        with new_path(tmp_path / name, directory=True) as directory:
            write(directory)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert set(files_of(tmp_path / "a")) == {store.INDEX, store.TENSORS, "assets/tokenizer.json", "assets/labels.txt"}


def test_scales_that_fp16_does_not_hold_are_never_rounded_in_silence(tmp_path):
    writer = StoreWriter(tmp_path, {"w": ((2, 32), "w4g32")})
    for value in (1 + 2.0**-12, 1e-9, 1e6):
        with pytest.raises(ValueError, match="w: scales at row 0 are not exact in fp16"):
            writer.scales("w", 0, np.full((2, 1), value, np.float32))


# --- failures ---------------------------------------------------------------------------------------------------------


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def begin_and_fail(directory, failure):
    StoreWriter(directory, {"w": ((2, 32), "w8")})
    raise failure("in the middle")


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, OctavoError])
@pytest.mark.parametrize("old", [False, True], ids=["nothing there", "an old one there"])
def test_a_crash_in_the_middle_leaves_what_was_there(tmp_path, failure, old):
    target = tmp_path / "m"
    if old:
        with new_path(target, directory=True) as directory:
            write(directory)
    before = files_of(tmp_path)
    with pytest.raises(failure), new_path(target, force=True, directory=True) as directory:
        begin_and_fail(directory, failure)
    assert files_of(tmp_path) == before
    assert os.listdir(tmp_path) == (["m"] if old else [])


@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate", "replace"])
@pytest.mark.parametrize("old", [False, True], ids=["nothing there", "an old one there"])
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, monkeypatch, call, old):
    target = tmp_path / "m"
    if old:
        with new_path(target, directory=True) as directory:
            write(directory)
    before = files_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        message = r"Writing .*/m failed: No space left on device\. Nothing was replaced\."
        with pytest.raises(OctavoError, match=message), new_path(target, force=True, directory=True) as directory:
            write(directory, scale=2.0)
    assert files_of(tmp_path) == before
    assert os.listdir(tmp_path) == (["m"] if old else [])


def test_a_disk_that_fills_up_in_the_middle_of_a_write_is_noticed(tmp_path, monkeypatch):
    real, left = os.pwrite, [9_000]

    def short(fd, data, offset):
        if not left[0]:
            full_disk()
        part = data[: left[0]]  # the kernel writes what fits, then fails
        left[0] -= len(part)
        return real(fd, part, offset)

    monkeypatch.setattr(os, "pwrite", short)
    with pytest.raises(OctavoError, match="No space left"), new_path(tmp_path / "m", directory=True) as directory:
        write(directory)
    assert os.listdir(tmp_path) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    with new_path(tmp_path / "m", directory=True) as directory:
        write(directory)
    monkeypatch.undo()
    with new_path(tmp_path / "n", directory=True) as directory:
        write(directory)
    assert files_of(tmp_path / "m") == files_of(tmp_path / "n")


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_neither_a_failed_write_nor_a_loaded_model_keeps_its_file_open(tmp_path, saved):
    before = open_descriptors()
    for _ in range(5):
        with pytest.raises(KeyError), new_path(tmp_path / "x", directory=True) as directory:
            StoreWriter(directory, {"w": ((2, 32), "w8")}).codes("other", 0, np.zeros((1, 1), np.uint8))
        load(saved)
    assert open_descriptors() <= before + 1


def test_interrupted_between_the_two_renames_the_old_one_comes_back(tmp_path, saved, monkeypatch):
    before = files_of(saved)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_path(saved, force=True, directory=True) as directory:
        write(directory, scale=2.0)
    assert os.listdir(tmp_path) == ["m"]
    assert files_of(saved) == before


# --- what is there already --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
def test_an_output_that_exists_is_refused_before_any_work(tmp_path, directory):
    target = tmp_path / "m"
    target.mkdir() if directory else target.write_text("old")
    with pytest.raises(BadInput, match=r"m exists already\. .*--force"), new_path(target, directory=directory):
        pytest.fail("the block must not run")


def test_force_replaces_a_model_only_once_the_new_one_is_complete(tmp_path, saved):
    old = load(saved).digest
    with new_path(saved, force=True, directory=True) as directory:
        model = write(directory, scale=2.0)
        assert load(saved).digest == old
    assert load(saved).digest == model.digest != old
    assert os.listdir(tmp_path) == ["m"]


def test_force_replaces_a_file(tmp_path):
    target = tmp_path / "m.gguf"
    target.write_text("old")
    with new_path(target, force=True) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_force_never_deletes_a_folder_that_octavo_did_not_make(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    for directory in (False, True):
        with pytest.raises(BadInput), new_path(home, force=True, directory=directory):
            pytest.fail("the block must not run")
    assert (home / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"), new_path(tmp_path / "file", force=True, directory=True):
        pytest.fail("the block must not run")


def test_force_fills_an_empty_folder_and_the_current_one_by_its_dot(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with new_path(store.Path("."), force=True, directory=True) as directory:
        write(directory)
    assert load(tmp_path / "empty").tensors


def test_force_through_a_symlink_leaves_no_litter(tmp_path, saved):
    link = tmp_path / "link"
    link.symlink_to(saved)
    with new_path(link, force=True, directory=True) as directory:
        write(directory)
    assert sorted(os.listdir(tmp_path)) == ["link", "m"]
    assert load(link).digest == load(saved).digest


def test_parents_are_made_and_a_file_in_the_way_is_named(tmp_path):
    with new_path(tmp_path / "a/b/m.gguf") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a/b/m.gguf").read_text() == "x"
    with pytest.raises(OctavoError, match=r"Writing .*m\.gguf/x failed"), new_path(tmp_path / "a/b/m.gguf/x"):
        pytest.fail("the block must not run")


# --- damage -----------------------------------------------------------------------------------------------------------


def edit(directory, change):
    data = json.loads((directory / store.INDEX).read_text())
    change(data)
    (directory / store.INDEX).write_text(json.dumps(data))


EDITS = {
    "digest": lambda d: d.update(digest="0" * 64),
    "a tensor's digest": lambda d: d["tensors"][0].update(digest="0" * 64),
    "a tensor's name": lambda d: d["tensors"][0].update(name="other"),
    "a tensor's shape": lambda d: d["tensors"][0].update(shape=[3, 512]),
    "a tensor's scheme": lambda d: d["tensors"][0].update(scheme="w4"),
    "an unknown scheme": lambda d: d["tensors"][0].update(scheme="w5"),
    "an unknown field": lambda d: d["tensors"][0].update(colour="red"),
    "a missing field": lambda d: d["tensors"][0].pop("digest"),
    "a tensor taken out": lambda d: d["tensors"].pop(),
    "the program": lambda d: d["program"]["body"].update(nodes=[]),
    "an edge": lambda d: d["edges"][0].update(scale=0.06),
    "the state": lambda d: d["state"][0].update(shape=[1, -1, 9]),
    "an asset taken out": lambda d: d["assets"].pop(),
    "an asset that is not there": lambda d: d["assets"].append("gone.json"),
    "an asset from elsewhere": lambda d: d["assets"].append("../octavo.json"),
    "no digest": lambda d: d.pop("digest"),
    "no program": lambda d: d.pop("program"),
    "another format": lambda d: d.update(format="octavo.compressed/9"),
    "a list for tensors' items": lambda d: d.update(tensors=[["w"]]),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_index_is_refused(saved, kind):
    edit(saved, EDITS[kind])
    with pytest.raises(BadInput, match=str(saved)):
        load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_a_damaged_index_is_refused(saved, text):
    (saved / store.INDEX).write_text(text)
    with pytest.raises(BadInput, match=r"octavo\.json: damaged"):
        load(saved)


def test_a_changed_asset_is_refused(saved):
    (saved / "assets/labels.txt").write_text("other")
    with pytest.raises(BadInput, match="digest does not match"):
        load(saved)


def test_tensors_that_are_gone_or_cut_short_are_refused(saved):
    tensors = saved / store.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"tensors\.safetensors"):
        load(saved)
    tensors.unlink()
    with pytest.raises(BadInput, match=r"tensors\.safetensors: No such file"):
        load(saved)


def test_codes_outside_the_range_are_named_when_they_are_read(saved):
    with store.SafetensorsFile(saved / store.TENSORS) as file:
        offset = file.entries["q.ternary.codes"].offset
    with open(saved / store.TENSORS, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xaa")  # four codes of −2
    model = load(saved)
    with pytest.raises(BadInput, match=r"tensors\.safetensors: q\.ternary: codes in \[-2, 1\], ternary has \[-1, 1\]"):
        model.tensor("q.ternary")


def test_a_directory_that_is_none_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no octavo\.json: not a compressed model"):
        load(tmp_path)
