"""Folding a source into a store: what is written, what is refused and named, and how much memory it takes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.compress import reference, rtn
from octavo.compress.assign import assign
from octavo.core.architecture import Role, TensorSpec
from octavo.core.grid import SCALE_FLOOR
from octavo.core.model import CompressedModel, Program, TensorRecord
from octavo.core.safetensors import SafetensorsFile
from octavo.core.scheme import SCHEMES
from octavo.core.store import TENSORS, Store, StoreWriter
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import BadInput, Refused
from octavo.sources.graph import GraphSource

MIB = 1 << 20
WORDS = 128_256  # Llama 3's vocabulary


def source_of(arrays: dict[str, NDArray[np.float32]]) -> GraphSource:
    """Tensors in memory: two axes are a Linear's weight, more a Conv's."""
    roles: tuple[Role, ...] = ("other", "other", "matmul", "conv", "conv")
    specs = {name: TensorSpec(array.shape, roles[array.ndim]) for name, array in arrays.items()}
    return GraphSource(Program("graph", {}), specs, arrays)


def folded(
    source: Any, scheme: str, directory: Path, *, search: bool = False, **given: Any
) -> tuple[list[TensorRecord], list[dict[str, Any]], Store]:
    """Fold everything with two threads; the store is complete and open."""
    assigned = assign(source, scheme, allow_skip=given.pop("allow_skip", False))
    directory.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(directory, {a.name: (a.shape, a.scheme) for a in assigned.tensors})
    records, notes = rtn.fold(source, assigned.tensors, writer, search=search, threads=2, **given)
    writer.finish(CompressedModel(source.program, tuple(records), Store(directory)))
    return records, notes, Store(directory)


def normal(*shape: int, seed: int = 0, size: float = 0.1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, size, shape).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows of 64 weights a block, so that every tensor here passes in several."""
    monkeypatch.setattr(rtn, "BLOCK_ELEMENTS", 7 * 64)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scheme", ["w8", "w4", "w8g32", "w4g32", "w3g32", "w2g32"])
def test_the_store_holds_what_the_reference_computes(scheme: str, tmp_path: Path) -> None:
    arrays = {"a.weight": normal(40, 64), "b.weight": normal(9, 96, seed=1, size=3.0), "b.bias": normal(9, seed=2)}
    records, notes, _ = folded(source_of(arrays), scheme, tmp_path)
    grid = SCHEMES[scheme]
    assert grid.range is not None
    with SafetensorsFile(tmp_path / TENSORS) as file:
        for name in ("a.weight", "b.weight"):
            rows = arrays[name].astype(np.float64)
            codes, scales = reference.fold(rows, grid.range, grid.group or rows.shape[1])
            assert np.array_equal(file.rows(f"{name}.codes"), reference.pack(codes, grid.range.bits)), name
            assert np.array_equal(file.floats(f"{name}.scale"), scales), name
        assert np.array_equal(file.floats("b.bias"), arrays["b.bias"])
    assert notes == []
    assert [record.scheme for record in records] == [scheme, scheme, "fp32"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scheme", ["w8", "w8t", "w4g32", "ternary", "fp16"])
def test_digests_are_those_of_what_is_read_from_the_store(scheme: str, tmp_path: Path) -> None:
    arrays = {"a.weight": normal(40, 64), "kernel": normal(6, 4, 3, 3), "bias": normal(6)}
    if scheme == "w4g32":
        del arrays["kernel"]
    records, _, store = folded(source_of(arrays), scheme, tmp_path, search=True)
    for record in records:
        value = store.tensor(record)
        found = value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)
        assert found == record.digest, record.name


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scheme", ["w8", "w8t", "w4g32", "fp16", "fp32"])
def test_weights_that_are_no_numbers_are_counted_and_named(scheme: str, tmp_path: Path) -> None:
    bad = normal(40, 64)
    bad[3, 5], bad[20, 0], bad[39, 63] = np.nan, np.inf, -np.inf  # in three blocks
    with pytest.raises(BadInput, match=r"bad\.weight \[40, 64\]: 3 of 2560 weights"):
        folded(source_of({"good.weight": normal(8, 64), "bad.weight": bad}), scheme, tmp_path)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scheme", ["w8", "w8t", "ternary", "w4g32"])
@pytest.mark.parametrize("search", [True, False])
def test_a_scale_that_no_runtime_holds_is_refused_by_name(scheme: str, search: bool, tmp_path: Path) -> None:
    arrays = {"good.weight": normal(8, 64), "loud.weight": normal(40, 64, size=1e8)}
    with pytest.raises(Refused, match=rf"loud\.weight \[40, 64\].*{scheme} can hold"):
        folded(source_of(arrays), scheme, tmp_path, search=search)


@pytest.mark.usefixtures("small_blocks")
def test_half_precision_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"loud\.weight \[4, 64\]: 256 values exceed 65504"):
        folded(source_of({"loud.weight": np.full((4, 64), 1e5, np.float32)}), "fp16", tmp_path)


@pytest.mark.usefixtures("small_blocks")
def test_scales_at_the_floor_are_noted_once_each(tmp_path: Path) -> None:
    quiet = np.full((40, 64), 1e-6, np.float32)  # six blocks
    _, notes, store = folded(source_of({"quiet.weight": quiet}), "w8t", tmp_path / "tensor")
    assert notes == [{"tensor": "quiet.weight", "scales_raised_to_floor": 1}]
    record = TensorRecord("quiet.weight", (40, 64), "matmul", "w8t", "")
    value = store.tensor(record)
    assert isinstance(value, QuantizedTensor)
    assert value.scale.item() == SCALE_FLOOR
    _, notes, _ = folded(source_of({"quiet.weight": quiet}), "w8", tmp_path / "channel")
    assert notes == [{"tensor": "quiet.weight", "scales_raised_to_floor": 40}]
    _, notes, _ = folded(source_of({"nought.weight": np.zeros((40, 64), np.float32)}), "w8t", tmp_path / "zero")
    assert notes == []


@pytest.mark.parametrize("scheme", ["w8", "w8t", "fp16", "fp32"])
def test_a_scalar_and_an_empty_tensor_pass(scheme: str, tmp_path: Path) -> None:
    arrays = {"step": np.array(2.5, np.float32), "none": np.zeros(0, np.float32), "a.weight": normal(8, 32)}
    seen: list[tuple[int, int]] = []
    records, _, store = folded(
        source_of(arrays), scheme, tmp_path, progress=lambda what, done, total: seen.append((done, total))
    )
    by_name = {record.name: record for record in records}
    scalar, empty = store.tensor(by_name["step"]), store.tensor(by_name["none"])
    assert not isinstance(scalar, QuantizedTensor)
    assert (scalar.shape, float(scalar.reshape(-1)[0]), empty.shape) == ((), 2.5, (0,))
    assert by_name["step"].digest == float_digest(arrays["step"])
    assert by_name["none"].digest == float_digest(arrays["none"])
    assert seen[-1] == (257, 257)


@pytest.mark.parametrize("shape", [(0, 32), (4, 0)])
@pytest.mark.parametrize("scheme", ["w8", "w8t", "w4g32", "fp16"])
def test_an_empty_matrix_stays_float_when_that_is_allowed(scheme: str, shape: tuple[int, int], tmp_path: Path) -> None:
    source = source_of({"a.weight": normal(8, 32), "empty.weight": np.zeros(shape, np.float32)})
    if scheme != "fp16":
        with pytest.raises(Refused, match=r"empty\.weight .*--allow-skip"):
            folded(source, scheme, tmp_path)
    records, _, store = folded(source, scheme, tmp_path, allow_skip=True)
    assert records[1].scheme == ("fp16" if scheme == "fp16" else "fp32")
    assert store.tensor(records[1]).shape == shape


class Stopping(GraphSource):
    """A source whose rows end in `error` once three blocks have been read."""

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        if start >= 21:
            raise KeyboardInterrupt if name == "stop" else OSError("disk gone")
        return super().rows(name, start, stop)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("where", ["progress", "stop", "fail"])
def test_what_stops_early_leaves_no_threads(where: str, tmp_path: Path) -> None:
    plain = source_of({where: normal(4000, 64)})
    source = Stopping(plain.program, plain.tensors, plain.arrays) if where != "progress" else plain
    before, calls = set(threading.enumerate()), []

    def progress(what: str, done: int, total: int) -> None:
        calls.append(done)
        if where == "progress":
            raise KeyboardInterrupt

    with pytest.raises(OSError if where == "fail" else KeyboardInterrupt):
        folded(source, "w8", tmp_path, progress=progress)
    assert set(threading.enumerate()) == before
    assert len(calls) <= 3


PEAK = """
import sys, tempfile
from pathlib import Path
import numpy as np
from octavo.compress.assign import assign
from octavo.compress.rtn import fold
from octavo.core.architecture import TensorSpec
from octavo.core.model import Program
from octavo.core.store import StoreWriter

words, width = int(sys.argv[1]), 512

class Endless:  # bf16 rows made when they are asked for: nothing of the model is in memory
    program, state, assets = Program("graph", {}), (), {}
    tensors = {"embedding": TensorSpec((words, width), "embedding")}
    def dtype(self, name): return "bf16"
    def rows(self, name, start=0, stop=None):
        values = np.random.default_rng(start).normal(0, 0.1, (stop - start, width)).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16)

source = Endless()
tensors = assign(source, "w4g32").tensors
assert tensors[0].scheme == "w8"
with tempfile.TemporaryDirectory() as directory:
    fold(source, tensors, StoreWriter(Path(directory), {a.name: (a.shape, a.scheme) for a in tensors}), threads=2)
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def peak_bytes(words: int) -> int:
    done = subprocess.run([sys.executable, "-c", PEAK, str(words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) << 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
def test_memory_does_not_grow_with_the_vocabulary() -> None:
    half, whole = (peak_bytes(words) for words in (WORDS // 2, WORDS))
    grown = WORDS // 2 * 512  # bytes of codes that the second half has; its bf16 rows are twice that
    assert whole <= 700 * MIB
    assert whole - half <= min(16 * MIB, grown // 2), f"{half / MIB:.0f} MiB, then {whole / MIB:.0f} MiB"
