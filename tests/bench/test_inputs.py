"""What a file is measured on: free lengths are asked for, not guessed; arrays are drawn within their types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.bench.inputs import drawn, prompt, read, sized
from octavo.errors import BadInput

IMAGE = {"x": (("N", 3, 8, 8), "tensor(float)")}
FIXED = {"x": ((1, 3, 8, 8), "tensor(float)")}
SPEECH = {"input": ((1, "samples"), "tensor(float)"), "sr": ((), "tensor(int64)")}


def test_a_free_batch_is_one_unless_asked_for() -> None:
    assert sized(IMAGE) == {"x": (1, 3, 8, 8)}
    assert sized(IMAGE, 5) == {"x": (5, 3, 8, 8)}
    assert sized(IMAGE, None, {"N": 7}) == {"x": (7, 3, 8, 8)}


def test_a_fixed_batch_is_refused_with_its_shape() -> None:
    with pytest.raises(BadInput, match=r"batch of 4.*x 1x3x8x8.*free first dimension"):
        sized(FIXED, 4)
    assert sized(FIXED, 1) == {"x": (1, 3, 8, 8)}


def test_other_free_lengths_are_asked_for() -> None:
    with pytest.raises(BadInput, match=r"axis 1.*--fix samples=SIZE.*--fix input=1xSIZE"):
        sized(SPEECH)
    assert sized(SPEECH, None, {"samples": 576}) == {"input": (1, 576), "sr": ()}
    assert sized(SPEECH, None, {"input": (1, 99), "sr": 16000}) == {"input": (1, 99), "sr": ()}
    with pytest.raises(BadInput, match="the model takes 1xsamples"):
        sized(SPEECH, None, {"input": (2, 99)})
    with pytest.raises(BadInput, match=r"sample: no input.*samples"):
        sized(SPEECH, None, {"sample": 3})


def test_arrays_are_of_their_types_and_repeat_with_the_seed() -> None:
    kinds = {
        "float": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8, "int64": np.int64,
        "bool": np.bool_,
    }  # fmt: skip
    inputs = {name: ((2, 500), f"tensor({name})") for name in kinds}
    shapes = sized(inputs)
    found = drawn(inputs, shapes, seed=3)
    assert {name: array.dtype.type for name, array in found.items()} == kinds
    assert all(array.shape == (2, 500) for array in found.values())
    assert found["int8"].min() < -100
    assert found["int8"].max() > 100
    assert found["int64"].min() >= 0
    assert found["int64"].max() < 10
    again = drawn(inputs, shapes, seed=3)
    assert all(np.array_equal(found[name], again[name]) for name in kinds)
    assert not np.array_equal(found["float"], drawn(inputs, shapes, seed=4)["float"])


def test_a_value_fills_its_input() -> None:
    fix = {"samples": 4, "sr": 16000}
    found = drawn(SPEECH, sized(SPEECH, None, fix), 0, fix)
    assert found["sr"].shape == ()
    assert int(found["sr"]) == 16000


def test_what_cannot_be_made_up_is_named() -> None:
    with pytest.raises(BadInput, match=r"words is tensor\(string\)"):
        drawn({"words": ((1,), "tensor(string)")}, {"words": (1,)})


def test_prompts_stay_within_the_vocabulary() -> None:
    ids = prompt(7, 100, seed=1)["ids"]
    assert ids.shape == (1, 100)
    assert (ids.min(), ids.max()) == (0, 6)


def test_arrays_of_a_file_are_cut_to_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    whole = np.random.default_rng(0).random((6, 3, 8, 8))
    np.savez(path, x=whole, y=np.zeros(6, int))
    assert np.array_equal(read(path, IMAGE)["x"], whole[:1].astype(np.float32))
    assert read(path, IMAGE, 4)["x"].shape == (4, 3, 8, 8)
    assert read(path, FIXED)["x"].dtype == np.float32
    with pytest.raises(BadInput, match="6 rows"):
        read(path, IMAGE, 9)
    with pytest.raises(BadInput, match=r"no array 'input'.*x 6x3x8x8"):
        read(path, SPEECH)
    with pytest.raises(BadInput, match="the model takes 1x5"):
        read(path, {"x": ((1, 5), "tensor(float)")})


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nothing")
    for name in ("x.npz", "absent.npz"):
        with pytest.raises(BadInput, match=name):
            read(tmp_path / name, IMAGE)
