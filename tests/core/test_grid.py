"""Codes pack and unpack as a plain bit-by-bit reference says; scales land where every runtime can hold them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from octavo.core.grid import (
    INT2,
    INT3,
    INT4,
    INT8,
    SCALE_CEILING,
    SCALE_FLOOR,
    TERNARY,
    is_portable,
    pack,
    packed_row_bytes,
    portable_scale,
    to_bfloat16,
    unpack,
)
from octavo.errors import Refused

steady = settings(deadline=None, max_examples=60)  # the machine may be busy
BITS = st.sampled_from([2, 3, 4, 8])


@st.composite
def codes(draw):
    bits = draw(BITS)
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 41)))
    elements = st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return bits, draw(arrays(np.int8, shape, elements=elements))


def packed_bit_by_bit(row, bits):
    """One row as a little-endian bit stream, with Python's big integers."""
    stream = sum((int(code) & ((1 << bits) - 1)) << (place * bits) for place, code in enumerate(row))
    return stream.to_bytes((len(row) * bits + 7) // 8, "little")


@steady
@given(codes())
def test_pack_writes_the_documented_bit_stream_and_unpack_undoes_it(case):
    bits, values = case
    packed = pack(values, bits)
    assert [bytes(row) for row in packed] == [packed_bit_by_bit(row, bits) for row in values]
    assert packed.shape[1] == packed_row_bytes(values.shape[1], bits)
    back = unpack(packed, bits, values.shape[1])
    assert back.dtype == np.int8
    assert np.array_equal(back, values)


@steady
@given(codes())
def test_rows_pack_independently_so_blocks_of_rows_can_be_streamed(case):
    bits, values = case
    assert np.array_equal(
        pack(values, bits), np.concatenate([pack(values[i : i + 1], bits) for i in range(len(values))])
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_takes_views_with_strides(bits):
    whole = np.random.default_rng(0).integers(-(1 << (bits - 1)), 1 << (bits - 1), (6, 30), dtype=np.int8)
    for view in (whole[::2, ::3], whole.T, whole[:, 5:]):
        assert np.array_equal(unpack(pack(view, bits), bits, view.shape[1]), view)


def test_ranges_hold_their_ends_and_nothing_beyond():
    for grid in (INT8, INT4, INT3, INT2, TERNARY):
        assert grid.holds(np.array([grid.low, grid.high]))
        assert not grid.holds(np.array([grid.low - 1]))
        assert not grid.holds(np.array([grid.high + 1]))
        assert grid.holds(np.array([], np.int8))
    assert [(g.low, g.high) for g in (INT8, INT4, TERNARY)] == [(-127, 127), (-8, 7), (-1, 1)]


def bfloat16_by_fractions(value):
    """Round to 8 significant bits, ties to even, by exact integer arithmetic on the float32's own mantissa."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    high, low = bits >> 16, bits & 0xFFFF
    if low > 0x8000 or (low == 0x8000 and high & 1):
        high += 1
    return struct.unpack("<f", struct.pack("<I", high << 16))[0]


positive = st.floats(2.0**-30, 65407.0, width=32)
finite = st.floats(-(2.0**120), 2.0**120, width=32)


@steady
@given(finite)
def test_bfloat16_rounds_to_nearest(value):
    assert to_bfloat16(np.array([value], np.float32))[0] == np.float32(bfloat16_by_fractions(value))


def test_bfloat16_agrees_with_torch_on_every_kind_of_float():
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits[:20_000] = (bits[:20_000] & 0xFFFF0000) | 0x8000  # ties
    values = bits.view(np.float32)
    theirs = torch.from_numpy(values).bfloat16().float().numpy()
    ours = to_bfloat16(values)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.array_equal(ours[~np.isnan(ours)].view(np.uint32), theirs[~np.isnan(ours)].view(np.uint32))


def test_bfloat16_ties_go_to_even():
    # 1 + 1/256 lies midway between 1 and 1 + 1/128; 1 + 3/256 midway between 1 + 1/128 and 1 + 1/64.
    ties = np.array([1 + 1 / 256, 1 + 3 / 256, -(1 + 1 / 256)], np.float32)
    assert to_bfloat16(ties).tolist() == [1.0, 1 + 1 / 64, -1.0]


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF])
def test_bfloat16_of_any_nan_is_nan(bits):
    assert np.isnan(to_bfloat16(np.array([bits], np.uint32).view(np.float32)))[0]


def test_bfloat16_keeps_infinities_and_zero():
    assert to_bfloat16(np.array([np.inf, -np.inf, 0.0], np.float32)).tolist() == [np.inf, -np.inf, 0.0]


@steady
@given(st.lists(positive, min_size=1, max_size=40))
def test_portable_scales_are_exact_in_fp16_and_in_bfloat16(values):
    scale = portable_scale(np.array(values, np.float32))
    assert np.array_equal(scale.astype(np.float16).astype(np.float32), scale)
    assert np.array_equal((scale.view(np.uint32) & 0xFFFF), np.zeros_like(scale, np.uint32))
    assert (scale.astype(np.float16) >= np.finfo(np.float16).smallest_normal).all()
    assert is_portable(scale)
    assert np.array_equal(portable_scale(scale), scale)


@steady
@given(st.lists(positive, min_size=1, max_size=40))
def test_portable_scales_are_the_nearest_and_keep_the_order(values):
    given_ = np.sort(np.array(values, np.float32))
    scale = portable_scale(given_)
    assert (np.diff(scale) >= 0).all()
    above = given_ >= SCALE_FLOOR
    assert (np.abs(scale - given_)[above] <= given_[above] * 2.0**-8).all()
    assert (scale[~above] == SCALE_FLOOR).all()


def test_scales_are_raised_to_the_floor_and_refused_above_the_ceiling():
    assert portable_scale(np.array([0.0, 2.0**-20], np.float32)).tolist() == [2.0**-14] * 2
    assert portable_scale(np.array([SCALE_CEILING, 65300.0], np.float32)).tolist() == [SCALE_CEILING] * 2
    with pytest.raises(Refused, match=r"2 of 3 scales exceed 65280"):
        portable_scale(np.array([1.0, 65536.0, 1e30], np.float32))


@pytest.mark.parametrize("value", [np.inf, np.nan, np.array([0x7FFFFFFF], np.uint32).view(np.float32)[0]])
def test_scales_that_are_no_numbers_are_refused(value):
    with pytest.raises(Refused):
        portable_scale(np.array([value], np.float32))


@pytest.mark.parametrize("value", [2.0**-15, 65536.0, 1 + 2.0**-9, -1.0, 0.0, np.nan, np.inf])
def test_what_is_not_on_the_grid_is_not_called_portable(value):
    assert not is_portable(np.array([1.0, value], np.float32))
