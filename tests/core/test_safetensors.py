"""Our safetensors against the reference library, both ways; and every kind of damage is named with its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from octavo.core.safetensors import DTYPES, MAX_HEADER_BYTES, SafetensorsFile, SafetensorsWriter
from octavo.errors import BadInput

RNG = np.random.default_rng(0)


def values_of(dtype, shape=(5, 3)):
    kind = DTYPES[dtype]
    if dtype == "BOOL":
        return RNG.integers(0, 2, shape).astype(bool)
    if dtype == "BF16":
        return RNG.integers(0, 1 << 16, shape).astype(np.uint16)
    return np.asarray(RNG.standard_normal(shape) * 50).astype(kind)


NUMPY = [name for name in DTYPES if name != "BF16"]


@pytest.mark.parametrize("dtype", NUMPY)
def test_reads_what_the_library_writes(tmp_path, dtype):
    values = {
        "matrix": values_of(dtype),
        "scalar": values_of(dtype, ()),
        "empty": values_of(dtype, (0, 4)),
        "thin": values_of(dtype, (4, 0)),
        "cube": values_of(dtype, (2, 3, 4)),
    }
    save_file(values, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.entries) == set(values)
        for name, value in values.items():
            assert file.entries[name].dtype == dtype
            read = file.rows(name)
            assert read.shape == value.shape
            assert read.tobytes() == value.tobytes()


@pytest.mark.parametrize("dtype", NUMPY)
def test_the_library_reads_what_we_write(tmp_path, dtype):
    values = {"b": values_of(dtype), "a": values_of(dtype, ()), "c": values_of(dtype, (0, 2)), "odd": values_of("I8")}
    declared = {name: (dtype if name != "odd" else "I8", value.shape) for name, value in values.items()}
    writer = SafetensorsWriter(tmp_path / "x.safetensors", declared)
    for name in ("odd", "c", "a"):
        writer.write_rows(name, 0, values[name])
    for start in (3, 0, 4, 1, 2):  # rows come in any order
        writer.write_rows("b", start, values["b"][start : start + 1])
    writer.close()
    read = load_file(tmp_path / "x.safetensors")
    assert {name: (value.dtype, value.shape) for name, value in read.items()} == {
        name: (value.dtype, value.shape) for name, value in values.items()
    }
    assert all(read[name].tobytes() == value.tobytes() for name, value in values.items())


def test_bfloat16_keeps_its_bits_both_ways(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    save_torch({"w": torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)}, tmp_path / "theirs.safetensors")
    with SafetensorsFile(tmp_path / "theirs.safetensors") as file:
        assert file.entries["w"].dtype == "BF16"
        assert np.array_equal(file.rows("w"), bits)
        assert np.array_equal(file.floats("w").view(np.uint32), bits.astype(np.uint32) << 16)
    writer = SafetensorsWriter(tmp_path / "ours.safetensors", {"w": ("BF16", bits.shape)})
    writer.write_rows("w", 0, bits)
    writer.close()
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert np.array_equal(file.get_tensor("w").view(torch.int16).numpy().view(np.uint16), bits)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_floats_widen_exactly(tmp_path, dtype):
    values = values_of(dtype)
    save_file({"w": values}, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert np.array_equal(file.floats("w", 1, 4), values[1:4].astype(np.float32))
        assert file.floats("w").dtype == np.float32


@settings(deadline=None, max_examples=60)
@given(start=st.integers(0, 8), stop=st.none() | st.integers(0, 12))
def test_rows_are_what_slicing_gives(tmp_path_factory, start, stop):
    path = tmp_path_factory.getbasetemp() / "rows.safetensors"
    values = np.arange(7 * 6, dtype=np.int16).reshape(7, 2, 3)
    if not path.exists():
        save_file({"before": np.zeros(3, np.int8), "w": values, "z": np.ones(5, np.float64)}, path)
    with SafetensorsFile(path) as file:
        assert np.array_equal(file.rows("w", start, stop), values[start:stop])


def test_tensors_begin_at_multiples_of_their_item_size(tmp_path):
    declared = {"a": ("I8", (3,)), "b": ("F64", (2,)), "c": ("F16", (3,)), "d": ("F32", (1,))}
    writer = SafetensorsWriter(tmp_path / "x.safetensors", declared)
    writer.close()
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert all(entry.offset % DTYPES[entry.dtype].itemsize == 0 for entry in file.entries.values())


@pytest.mark.parametrize(
    ("start", "rows"),
    [(0, np.zeros((2, 3), np.float64)), (3, np.zeros((2, 3), np.float32)), (-1, np.zeros((1, 3), np.float32))],
    ids=["another type", "too many rows", "before the first"],
)
def test_writing_never_spills_into_a_neighbour(tmp_path, start, rows):
    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"a": ("F32", (4, 3)), "b": ("F32", (4, 3))})
    with pytest.raises(ValueError, match="a: float"):
        writer.write_rows("a", start, rows)


# --- damage -----------------------------------------------------------------------------------------------------------


def written(path, header, data=b"\0" * 24):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensor(begin, end, shape=(2, 3), dtype="F16"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


GOOD = {"a": tensor(0, 12), "b": tensor(12, 24)}

DAMAGED = {
    "overlapping": (
        {"a": tensor(0, 12), "b": tensor(6, 18), "c": tensor(18, 24, (3,))},
        "b begins at byte 6, which overlaps",
    ),
    "same bytes twice": ({"a": tensor(0, 12), "b": tensor(0, 12), "c": tensor(12, 24)}, "b begins at byte 0"),
    "a hole": ({"a": tensor(0, 8, (4,)), "b": tensor(12, 24)}, "b begins at byte 12, which leaves a hole"),
    "bytes left over": ({"a": tensor(0, 12)}, "12 bytes belong to no tensor"),
    "beyond the end": ({"a": tensor(0, 12), "b": tensor(12, 36, (4, 3))}, r"b \[4, 3\] F16 needs 24 bytes"),
    "backwards": ({"a": tensor(12, 0)}, "a .*needs 12 bytes"),
    "size against shape": ({"a": tensor(0, 12), "b": tensor(12, 24, (2, 4))}, r"b \[2, 4\] F16 needs 16 bytes"),
    "negative offset": ({"a": tensor(-12, 0)}, "damaged .*a: "),
    "negative shape": ({"a": tensor(0, 12, (-2, -3))}, "damaged .*a: "),
    "fractional shape": ({"a": tensor(0, 12, (2.0, 3))}, "damaged .*a: "),
    "fractional offset": ({"a": tensor(0.0, 12)}, "damaged .*a: "),
    "text for a shape": ({"a": tensor(0, 12, "23")}, "damaged .*a: "),
    "unknown dtype": ({"a": tensor(0, 12, dtype="F8_E4M3")}, "a has dtype F8_E4M3"),
    "no shape": ({"a": {"dtype": "F16", "data_offsets": [0, 12]}}, "damaged .*shape"),
    "one offset": ({"a": {"dtype": "F16", "shape": [6], "data_offsets": [0]}}, "damaged"),
    "not an object": ([1, 2], "damaged"),
    "a tensor that is no object": ({"a": 5}, "damaged"),
    "metadata that is no object": ({"__metadata__": 5}, "damaged"),
    "not JSON": (b"{ this is not json }", "damaged"),
    "not text": (b"\xff\xfe\x00\x80", "damaged"),
    "nested without end": (b"[" * 100_000, "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_header_is_refused_by_file_name(tmp_path, kind):
    header, message = DAMAGED[kind]
    path = written(tmp_path / "broken.safetensors", header)
    with pytest.raises(BadInput, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_a_file_cut_short_is_refused_at_any_length(tmp_path, keep):
    path = written(tmp_path / "short.safetensors", GOOD)
    SafetensorsFile(path).close()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"short\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [1 << 20, MAX_HEADER_BYTES + 1, (1 << 64) - 1])
def test_a_header_length_beyond_the_file_is_refused_without_reading_it(tmp_path, length):
    path = written(tmp_path / "long.safetensors", GOOD)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(BadInput, match=rf"long\.safetensors: its header claims {length} bytes"):
        SafetensorsFile(path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    path = written(tmp_path / "x.safetensors", GOOD)
    with SafetensorsFile(path) as file:
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(BadInput, match="6 bytes too soon"):
            file.rows("b")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"none\.safetensors: No such file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(BadInput, match=r"d\.safetensors: "):
        SafetensorsFile(tmp_path / "d.safetensors")
