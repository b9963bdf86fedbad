"""Reading --data: what is there comes as it is; what cannot be right is refused with the names and numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadInput
from octavo.verify.data import read_arrays, read_text, split


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        path = tmp_path / "d.npz"
        np.savez(path, **arrays)
        return path

    return write


def words(text):
    return [1 + ord(c) % 96 for c in text]


def spans(text):
    return [(i, i + 1) for i in range(len(text))]


def test_x_feeds_the_only_input_and_y_labels_it(npz):
    path = npz(x=np.ones((4, 2, 3)), y=np.array([[0], [1], [2], [1]], np.uint8))
    data = read_arrays(path, {"pixels": (1, 2, -1)}, labels=True)
    assert data.inputs["pixels"].dtype == np.float32
    assert data.labels.tolist() == [0, 1, 2, 1]
    assert [len(part) for part in data.batches(3)] == [3, 1]
    assert list(read_arrays(path).inputs) == ["x"]


def test_other_names(npz):
    path = npz(ids=np.zeros((3, 5), np.int64), mask=np.ones((3, 5), bool), target=np.zeros(3))
    data = read_arrays(path, {"ids": (-1, -1), "mask": (-1, -1)}, y="target")
    assert set(data.inputs) == {"ids", "mask"}
    assert data.labels.dtype == np.int64
    assert read_arrays(path, {"a": (-1, 5)}, x="ids", y="target").inputs["a"].shape == (3, 5)


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        (
            {"z": np.ones((2, 3))},
            {"inputs": {"in": (1, 3)}},
            r"no array 'x' for the model's input 'in'; it has z \[2, 3\]",
        ),
        ({"x": np.ones((2, 4))}, {"inputs": {"in": (1, 3)}}, r"'x' is \[2, 4\]; the model's input is \['batch', 3\]"),
        ({"x": np.array([[1.0, np.nan, np.inf]])}, {}, "2 NaN or infinite values of 3"),
        ({"x": np.ones((2, 3))}, {"labels": True}, r"no labels 'y'; it has x \[2, 3\] float64"),
        ({"x": np.ones((2, 3)), "y": np.zeros(3, int)}, {}, "different lengths"),
        ({"x": np.ones((2, 3)), "y": np.array([0.5, 1])}, {}, "no whole numbers"),
        ({"x": np.ones((2, 3)), "y": np.array([-1, 1])}, {}, "down to -1"),
        ({"x": np.array(["a", "b"])}, {}, "no batch of numbers"),
        ({"x": np.ones((0, 3))}, {}, "no samples"),
        ({}, {}, "no inputs; it has nothing"),
    ],
)
def test_bad_arrays_are_refused_by_name(npz, arrays, options, says):
    with pytest.raises(BadInput, match=says):
        read_arrays(npz(**arrays), **options)


def test_a_pickle_inside_is_never_opened(npz):
    with pytest.raises(BadInput, match="cannot be read"):
        read_arrays(npz(x=np.array([{}], dtype=object)))


def test_damaged_files_are_refused(tmp_path, npz):
    whole = npz(x=np.ones((50, 50))).read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(BadInput, match="cannot be read"):
            read_arrays(path)
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(BadInput, match="cannot be read"):
        read_arrays(tmp_path / "one.npy")
    with pytest.raises(BadInput, match="no such file"):
        read_arrays(tmp_path / "none.npz")


@pytest.fixture
def text(tmp_path):
    def write(content):
        path = tmp_path / "t.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_documents_are_cut_alone_and_begin_with_bos(text):
    path = text("abcdefg\nhi\n<|eos|>\nxyz\r\n<|endoftext|>\r\n\n")
    found = read_text(path, words, length=5, bos=1, offsets=spans)
    first = words("abcdefg\nhi")
    assert [w.ids.tolist() for w in found.windows] == [
        [1, *first[:4]], [1, *first[4:8]], [1, *first[8:]], [1, *words("xyz")],
    ]  # fmt: skip
    assert [w.bytes for w in found.windows] == [4, 4, 2, 3]
    assert found.exact_bytes
    assert found.documents == 2
    assert found.tokens == 13
    assert found.clustered_by == "window"


def test_without_bos_the_first_token_of_each_piece_is_context_only(text):
    found = read_text(text("abcdefghi"), words, length=5, offsets=spans)
    assert [len(w.ids) for w in found.windows] == [4, 4]
    assert found.tokens == 6, "a piece of one token scores nothing"
    assert [w.bytes for w in found.windows] == [3, 3]


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n<"), min_size=3), min_size=1, max_size=5),
    st.integers(2, 9),
    st.booleans(),
)
def test_bytes_add_up_to_the_text(tmp_path_factory, documents, length, known):
    path = tmp_path_factory.mktemp("t") / "t.txt"
    documents = [f"ß{document}ä" for document in documents]
    path.write_bytes("\n<|eos|>\n".join(documents).encode())
    found = read_text(path, words, length=length, bos=0, offsets=spans if known else None)
    assert sum(w.bytes for w in found.windows) == pytest.approx(sum(len(d.encode()) for d in documents))
    assert found.tokens == sum(map(len, documents))
    assert found.exact_bytes is known


def test_a_tokenizer_that_adds_bos_itself_does_not_double_it(text):
    found = read_text(text("abc"), lambda t: [1, *words(t)], length=9, bos=1, offsets=lambda t: [(0, 0), *spans(t)])
    assert found.windows[0].ids.tolist() == [1, *words("abc")]
    assert found.windows[0].bytes == 3


def test_windows_are_chosen_by_seed_in_the_order_of_the_text(text):
    path = text("\n<|eos|>\n".join("abcdefgh" * 5 for _ in range(30)))
    options = {"length": 5, "bos": 1, "limit": 20}
    one, again, other = (read_text(path, words, seed=s, **options) for s in (1, 1, 2))
    order = [w.document for w in one.windows]
    assert len(one.windows) == 20
    assert order == sorted(order) == [w.document for w in again.windows]
    assert order != [w.document for w in other.windows]
    assert one.available == 300
    assert one.clustered_by == "document"
    assert not one.exact_bytes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n<|eos|>\n\n", "empty"),
        (b"\x89PNG\r\n\xff\xfe", "no UTF-8 text \\(byte 0\\)"),
        (b"abc\0def", "zero byte at 3"),
        (b"a", "no token to score"),
    ],
)
def test_texts_that_score_nothing_are_refused(text, content, says):
    with pytest.raises(BadInput, match=says):
        read_text(text(content), words, length=5)
    with pytest.raises(BadInput, match="No such file"):
        read_text(text(b"").with_name("none"), words, length=5)


@given(st.integers(2, 200), st.integers(0, 5))
def test_a_split_is_deterministic_disjoint_and_complete(count, seed):
    calibrate, evaluate = split(count, seed)
    assert sorted([*calibrate, *evaluate]) == list(range(count))
    assert len(calibrate) == max(1, round(count / 5))
    assert np.array_equal(split(count, seed)[0], calibrate)


def test_a_split_keeps_groups_together_and_needs_two():
    groups = np.repeat(np.arange(10), 7)
    calibrate, evaluate = split(groups, 3)
    assert len(set(groups[calibrate])) == 2
    assert not set(groups[calibrate]) & set(groups[evaluate])
    assert not np.array_equal(split(100, 1)[0], split(100, 2)[0])
    with pytest.raises(BadInput, match="cannot be split"):
        split([4, 4, 4])
