"""Quantised tensors: dequantising as a loop does it, and moves that leave every value bit for bit as it was."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.grid import INT2, INT4, INT8, TERNARY, IntegerRange, pack, portable_scale
from octavo.core.tensor import FloatDigest, QuantizedTensor, TensorDigest, float_digest
from octavo.errors import Refused

CASES = {
    "tensor": ((6, 8), (6, 8)),
    "channel": ((6, 8), (1, 8)),
    "group": ((6, 8), (1, 4)),
    "rows in pairs": ((6, 8), (2, 8)),
    "convolution": ((4, 3, 2, 2), (1, 3, 2, 2)),
    "vector": ((8,), (4,)),
}


def make(shape, block, range_=INT4, zero_points=False, seed=0):
    rng = np.random.default_rng(seed)
    groups = tuple(s // b for s, b in zip(shape, block, strict=True))
    codes = rng.integers(range_.low, range_.high + 1, shape, dtype=np.int8)
    scale = portable_scale(rng.uniform(1e-3, 0.1, groups).astype(np.float32))
    zero_point = rng.integers(-3, 4, groups, dtype=np.int8) if zero_points else None
    return QuantizedTensor(codes, scale, block, range_, zero_point)


def dequantized_by_loop(tensor):
    out = np.empty(tensor.shape, np.float32)
    for index in itertools.product(*(range(n) for n in tensor.shape)):
        group = tuple(i // b for i, b in zip(index, tensor.block, strict=True))
        zero = 0 if tensor.zero_point is None else int(tensor.zero_point[group])
        out[index] = np.float32(int(tensor.codes[index]) - zero) * tensor.scale[group]
    return out


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("case", CASES)
def test_dequantize_is_scale_times_code_minus_zero_point(case, zero_points):
    tensor = make(*CASES[case], zero_points=zero_points)
    assert same_bits(tensor.dequantize(), dequantized_by_loop(tensor))


@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("case", CASES)
def test_every_exact_move_keeps_the_values_bit_for_bit(case, zero_points):
    tensor = make(*CASES[case], range_=TERNARY, zero_points=zero_points)
    values = tensor.dequantize()
    ones = (1,) * len(tensor.shape)
    assert same_bits(tensor.widen(INT4).widen(INT8).dequantize(), values)
    assert same_bits(tensor.refine(ones).dequantize(), values)
    assert same_bits(tensor.refine(ones).coarsen(tensor.block).dequantize(), values)
    assert same_bits(tensor.shift(8, IntegerRange(4, 0, 15)).dequantize(), values)
    assert same_bits(tensor.shift(8, INT8).shift(-8, TERNARY).dequantize(), values)
    axes = tuple(reversed(range(len(tensor.shape))))
    assert same_bits(tensor.permute(axes).dequantize(), np.ascontiguousarray(values.transpose(axes)))
    assert same_bits(tensor.permute(axes).permute(axes).dequantize(), values)


@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("case", [name for name in CASES if name not in ("rows in pairs", "vector")])
@pytest.mark.parametrize("index", [[2, 0, 1, 3], [1, 3], [0]], ids=["reorder", "choose", "one"])
def test_taking_rows_takes_their_scales_with_them(case, index, zero_points):
    tensor = make(*CASES[case], zero_points=zero_points)
    assert same_bits(tensor.take_rows(np.array(index)).dequantize(), tensor.dequantize()[index])


def test_rows_that_share_scales_are_not_moved_one_by_one():
    with pytest.raises(Refused, match=r"rows share their scales in blocks \(2, 8\)"):
        make(*CASES["rows in pairs"]).take_rows(np.array([1, 0, 2, 3, 4, 5]))


def test_refining_twice_is_refining_once():
    tensor = make((4, 64), (4, 64))
    twice, once = tensor.refine((1, 64)).refine((1, 32)), tensor.refine((1, 32))
    assert np.array_equal(twice.scale, once.scale)
    assert twice.digest() == once.digest()


def test_moves_that_would_change_a_value_are_refused():
    tensor = make((6, 8), (1, 8))
    with pytest.raises(Refused, match="do not fit"):
        tensor.widen(INT2)
    for block in ((1, 3), (2, 8), (1, 0), (1, 16), (1,)):
        with pytest.raises(Refused, match="does not divide"):
            tensor.refine(block)
    with pytest.raises(Refused, match=r"scales differ inside a block \(6, 8\)"):
        tensor.coarsen((6, 8))
    for block in ((1, 4), (4, 8), (1, 12), (6,)):
        with pytest.raises(Refused):
            tensor.coarsen(block)


def test_coarsening_refuses_differing_zero_points_under_equal_scales():
    zero_point = np.array([[1, 2]], np.int8)
    tensor = QuantizedTensor(np.ones((1, 8), np.int8), np.ones((1, 2), np.float32), (1, 4), INT4, zero_point)
    with pytest.raises(Refused, match="zero points differ"):
        tensor.coarsen((1, 8))


@pytest.mark.parametrize(
    ("offset", "range_"),
    [(8, INT4), (128, IntegerRange(9, -256, 255)), (65536, INT8), (1 << 40, INT8)],
    ids=["beyond the range", "beyond int8", "wraps in int16", "wraps in int32"],
)
def test_a_shift_never_wraps_a_code_around(offset, range_):
    with pytest.raises(Refused, match=f"shifted by {offset}"):
        make((2, 4), (1, 4)).shift(offset, range_)


def test_a_shift_never_wraps_a_zero_point_around():
    tensor = QuantizedTensor(
        np.full((1, 4), -120, np.int8), np.ones((1, 1), np.float32), (1, 4), INT8, np.full((1, 1), 100, np.int8)
    )
    with pytest.raises(Refused, match="zero points shifted by 100"):
        tensor.shift(100, INT8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((2, 8), np.int16)}, "expected int8"),
        ({"scale": np.ones((2, 1), np.float64)}, "expected int8 and float32"),
        ({"scale": np.ones((2, 2), np.float32)}, "scale of shape"),
        ({"block": (1, 3)}, "does not divide"),
        ({"block": (8,)}, "does not divide"),
        ({"block": (1, 0)}, "does not divide"),
        ({"codes": np.full((2, 8), 8, np.int8)}, r"outside \[-8, 7\]"),
        ({"zero_point": np.zeros((2, 2), np.int8)}, "zero point"),
        ({"zero_point": np.zeros((2, 1), np.int16)}, "expected int8"),
    ],
)
def test_a_tensor_that_contradicts_itself_cannot_be_made(change, message):
    fields = {"codes": np.zeros((2, 8), np.int8), "scale": np.ones((2, 1), np.float32), "block": (1, 8)}
    with pytest.raises(ValueError, match=message):
        QuantizedTensor(**fields | change, range=INT4)


def test_the_digest_changes_with_everything_that_changes_the_tensor():
    base = make((6, 8), (1, 4), zero_points=True)
    codes, scale, zero_point = base.codes.copy(), base.scale.copy(), base.zero_point.copy()
    codes[3, 5] = codes[3, 5] + 1 if codes[3, 5] < 7 else 6
    scale[2, 1] *= 2
    zero_point[5, 0] += 1
    variants = [
        base,
        QuantizedTensor(codes, base.scale, base.block, INT4, base.zero_point),
        QuantizedTensor(base.codes, scale, base.block, INT4, base.zero_point),
        QuantizedTensor(base.codes, base.scale, base.block, INT4, zero_point),
        QuantizedTensor(base.codes, base.scale, base.block, INT4),
        QuantizedTensor(base.codes, base.scale, base.block, INT8, base.zero_point),
        QuantizedTensor(base.codes, base.scale, base.block, IntegerRange(4, -8, 8), base.zero_point),
        base.refine((1, 2)),
        base.take_rows(np.array([1, 0, 2, 3, 4, 5])),
        QuantizedTensor(base.codes.reshape(12, 4), base.scale.reshape(12, 1), (1, 4), INT4),
    ]
    assert len({tensor.digest() for tensor in variants}) == len(variants)
    assert base.digest() == make((6, 8), (1, 4), zero_points=True).digest()


def test_equal_numbers_in_another_memory_order_have_the_same_digest():
    base = make((6, 8), (1, 4))
    turned = QuantizedTensor(np.asfortranarray(base.codes), np.asfortranarray(base.scale), base.block, INT4)
    assert turned.digest() == base.digest()


@settings(deadline=None, max_examples=40)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), case=st.sampled_from(["channel", "group", "tensor"]))
def test_the_digest_does_not_depend_on_the_row_blocks_it_is_fed_in(cuts, case):
    block = {"channel": (1, 10), "group": (1, 5), "tensor": (12, 10)}[case]
    tensor = make((12, 10), block, IntegerRange(3, -4, 3))
    digest = TensorDigest(tensor.shape, tensor.block, tensor.range)
    edges = [0, *sorted(cuts), 12]
    for start, stop in itertools.pairwise(edges):
        if case != "tensor":
            digest.scales(tensor.scale[start:stop])
        digest.codes(pack(tensor.codes[start:stop], 3))
    if case == "tensor":
        digest.scales(tensor.scale)
    assert digest.hexdigest() == tensor.digest()


@settings(deadline=None, max_examples=40)
@given(cuts=st.lists(st.integers(0, 9), max_size=3))
def test_the_float_digest_does_not_depend_on_chunks(cuts):
    values = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    digest = FloatDigest(values.shape)
    for start, stop in itertools.pairwise([0, *sorted(cuts), 9]):
        digest.update(values[start:stop])
    assert digest.hexdigest() == float_digest(values)
    assert float_digest(values) != float_digest(values.reshape(4, 9))
    assert float_digest(values) != float_digest(-values)


def test_an_empty_tensor_has_a_digest():
    assert make((0, 8), (1, 8)).digest() != make((0, 16), (1, 16)).digest()
    assert float_digest(np.zeros((0, 3), np.float32)) != float_digest(np.zeros((3, 0), np.float32))
