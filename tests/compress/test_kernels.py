"""The compiled round-to-nearest kernels against the plain numpy oracle, and against llama.cpp's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.compress import kernels, loops, reference
from octavo.core.grid import INT2, INT3, INT4, INT8, SCALE_FLOOR, TERNARY, IntegerRange, portable_scale, unpack
from octavo.core.scheme import SCHEMES, Scheme
from octavo.errors import BadInput

GROUPED = ["w8g32", "w4g32", "w4g64", "w4g128", "w3g32", "w2g32"]
KINDS = ["gaussian", "heavy", "sparse", "constant", "one-sided", "tiny", "mixed"]


def weights(kind: str, rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)) * 0.02
    if kind == "heavy":
        w = rng.standard_t(2.5, (rows, columns)) * 0.02
    elif kind == "sparse":
        w *= rng.random((rows, columns)) < 0.05
    elif kind == "constant":
        w = np.repeat(rng.standard_normal((rows, 1)), columns, axis=1)
    elif kind == "one-sided":
        w = -np.abs(w)
    elif kind == "tiny":
        w *= 10.0 ** rng.integers(-9, 0, (rows, 1))
    elif kind == "mixed":
        w *= 10.0 ** rng.integers(-6, 4, (rows, columns))
    return w.astype(np.float32)


def as_dtype(w: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "bf16":
        return (w.view(np.uint32) >> 16).astype(np.uint16)
    return w.astype(np.float16) if dtype == "fp16" else w


def range_of(grid: Scheme) -> IntegerRange:
    assert grid.range is not None
    return grid.range


def decode(folded: kernels.Folded, grid: Scheme, columns: int) -> NDArray[np.float64]:
    codes = unpack(folded.packed, range_of(grid).bits, columns).astype(np.float64)
    group = columns if grid.group is None else grid.group
    return codes * np.repeat(folded.scale.astype(np.float64), group, axis=1)[:, :columns]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", GROUPED)
def test_plain_codes_and_scales_equal_the_oracle_bit_for_bit(scheme: str, kind: str, dtype: str) -> None:
    grid = SCHEMES[scheme]
    rows = as_dtype(weights(kind, 12, 256), dtype)
    folded = kernels.fold(rows, dtype, grid, search=False)
    wide = reference.widen(rows, dtype)
    codes, scales = reference.fold(wide, range_of(grid), grid.group or 0)
    assert np.array_equal(folded.scale, scales)
    assert np.array_equal(folded.packed, reference.pack(codes, range_of(grid).bits))
    error = wide - codes * np.repeat(scales, grid.group or 0, axis=1)
    assert folded.error == pytest.approx(float((error**2).sum()), rel=2e-6, abs=1e-12)
    assert folded.signal == pytest.approx(float((wide**2).sum()), rel=2e-6)


@pytest.mark.parametrize("columns", [1, 9, 31, 33, 147, 300])
@pytest.mark.parametrize("codes", [INT8, INT4, INT3, INT2], ids=lambda c: f"{c.bits}bit")
def test_rows_of_any_length_pack_as_the_plain_packing(codes: IntegerRange, columns: int) -> None:
    grid = Scheme("test", "channel", codes)
    rows = as_dtype(weights("gaussian", 7, columns), "bf16")
    folded = kernels.fold(rows, "bf16", grid, search=False)
    expected, scales = reference.fold(reference.widen(rows, "bf16"), codes, columns)
    assert np.array_equal(folded.packed, reference.pack(expected, codes.bits))
    assert np.array_equal(folded.scale, scales)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [*GROUPED, "w8", "w4"])
def test_the_search_never_loses_to_plain(scheme: str, kind: str) -> None:
    grid = SCHEMES[scheme]
    rows = as_dtype(weights(kind, 40, 1024, seed=1), "bf16")
    wide = reference.widen(rows, "bf16")
    losses = []
    for search in (True, False):
        folded = kernels.fold(rows, "bf16", grid, search=search)
        assert np.array_equal(folded.scale, portable_scale(folded.scale))
        per = (wide - decode(folded, grid, 1024)) ** 2
        losses.append(per.reshape(*folded.scale.shape, -1).sum(axis=2))
    assert (losses[0] <= losses[1] * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("scheme", "columns", "within"),
    [("w4g32", 512, 1.005), ("w4g128", 512, 1.01), ("w3g32", 512, 1.005), ("w2g32", 512, 1.01), ("w8g32", 512, 1.08)],
)
@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_the_search_comes_close_to_the_best_of_all_scales(kind: str, scheme: str, columns: int, within: float) -> None:
    grid, codes = SCHEMES[scheme], range_of(SCHEMES[scheme])
    rows = as_dtype(weights(kind, 4, columns, seed=2), "bf16")
    wide = reference.widen(rows, "bf16")
    folded = kernels.fold(rows, "bf16", grid)
    parts = wide.reshape(-1, grid.group or columns)
    best = sum(reference.loss(part, reference.best_scale(part, codes), codes) for part in parts)
    assert folded.error <= within * best


def test_per_channel_search_of_long_rows_comes_close_to_the_best() -> None:
    rows = weights("heavy", 3, 4096, seed=3)
    folded = kernels.fold(rows, "fp32", SCHEMES["w4"])
    wide = rows.astype(np.float64)
    best = sum(reference.loss(row, reference.best_scale(row, INT4), INT4) for row in wide)
    assert folded.error <= 1.03 * best


@pytest.mark.parametrize("objective", ["square", "spread", "magnitude"])
def test_the_search_minimises_the_objective_it_is_given(objective: str) -> None:
    rows = weights("heavy", 16, 256, seed=4)
    wide = rows.astype(np.float64)
    importance = np.random.default_rng(5).random(256).astype(np.float32)
    spread = np.sqrt((wide**2).mean(axis=1, keepdims=True) + wide**2)
    u = {"square": wide**2, "spread": spread, "magnitude": np.abs(wide)}[objective] * importance
    grid = SCHEMES["w3g32"]
    chosen = kernels.fold(rows, "fp32", grid, objective=objective, importance=importance)
    unweighted = kernels.fold(rows, "fp32", grid)
    weighted = [float((u * (wide - decode(f, grid, 256)) ** 2).sum()) for f in (chosen, unweighted)]
    assert weighted[0] < weighted[1]
    assert unweighted.error < chosen.error


def test_all_zero_groups_have_the_floor_scale_and_codes_zero() -> None:
    rows = weights("gaussian", 4, 128)
    rows[1, 32:64] = 0.0
    rows[3] = -0.0
    for search in (True, False):
        folded = kernels.fold(rows, "fp32", SCHEMES["w4g32"], search=search)
        assert folded.scale[1, 1] == SCALE_FLOOR
        assert (folded.scale[3] == SCALE_FLOOR).all()
        assert not folded.packed[3].any()
        assert folded.floored == 0


def test_scales_below_the_floor_are_raised_and_counted() -> None:
    rows = np.full((2, 64), 1e-5, np.float32)
    rows[1] = 1.0
    rows[0, 5] = np.float32(1e-42)  # a denormal weight
    folded = kernels.fold(rows, "fp32", SCHEMES["w4g32"])
    assert folded.floored == 2
    assert (folded.scale[0] == SCALE_FLOOR).all()
    assert folded.too_large == 0


def test_scales_above_the_ceiling_are_counted() -> None:
    rows = np.ones((2, 64), np.float32)
    rows[1, 40] = 1e6
    assert kernels.fold(rows, "fp32", SCHEMES["w4g32"]).too_large == 1
    assert kernels.fold(rows, "fp32", SCHEMES["q4_0"]).too_large == 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("scheme", ["w8", "w4g32", "q4_0"])
def test_nan_and_infinity_are_counted_and_spoil_only_their_row(scheme: str, dtype: str) -> None:
    w = weights("gaussian", 3, 128)
    w[1, 40] = np.nan
    w[1, 41] = np.inf
    w[2, 0] = -np.inf
    folded = kernels.fold(as_dtype(w, dtype), dtype, SCHEMES[scheme])
    clean = kernels.fold(as_dtype(weights("gaussian", 3, 128), dtype), dtype, SCHEMES[scheme])
    assert folded.nonfinite == 3
    assert clean.nonfinite == 0
    assert np.array_equal(folded.packed[0], clean.packed[0])


@pytest.mark.parametrize("scheme", [*GROUPED, "w8", "w4", "q4_0"])
def test_any_split_of_the_rows_gives_the_same_bytes(scheme: str) -> None:
    rows = as_dtype(weights("heavy", 23, 384, seed=6), "bf16")
    whole = kernels.fold(rows, "bf16", SCHEMES[scheme])
    parts = [kernels.fold(rows[a : a + 5], "bf16", SCHEMES[scheme]) for a in range(0, 23, 5)]
    assert whole.packed.tobytes() == b"".join(p.packed.tobytes() for p in parts)
    assert whole.scale.tobytes() == b"".join(p.scale.tobytes() for p in parts)


@pytest.mark.parametrize("scheme", ["w8t", "ternary"])
def test_the_tensor_scale_does_not_depend_on_the_blocks(scheme: str) -> None:
    rows = as_dtype(weights("heavy", 40, 200, seed=7), "bf16")
    scales = {
        kernels.tensor_scale(lambda n=n: (rows[a : a + n] for a in range(0, 40, n)), "bf16", SCHEMES[scheme])
        for n in (1, 7, 40)
    }
    assert len(scales) == 1


def test_every_fp16_is_read_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))].reshape(-1, 1)
    folded = kernels.fold(finite, "fp16", Scheme("test", "channel", INT8), search=False)
    wide = reference.widen(finite, "fp16")
    codes, scales = reference.fold(wide, INT8, 1)
    assert np.array_equal(folded.scale, scales)
    assert np.array_equal(folded.packed.view(np.int8), codes)
    signal = (wide.astype(np.float32) ** 2).astype(np.float64).sum()
    assert folded.signal == pytest.approx(float(signal), rel=1e-12)


def test_ternary_is_the_mean_magnitude_of_bitnet() -> None:
    rows = weights("gaussian", 30, 100, seed=8)
    scale = kernels.tensor_scale(lambda: [rows], "fp32", SCHEMES["ternary"])
    assert scale == portable_scale(np.array([np.abs(rows.astype(np.float64)).mean()], np.float32))[0]
    folded = kernels.fold(rows, "fp32", SCHEMES["ternary"], scale=scale)
    assert np.array_equal(unpack(folded.packed, 2, 100), reference.code(rows.astype(np.float64), scale, TERNARY))
    assert folded.scale.shape == (1, 1)


@pytest.mark.parametrize("codes", [INT8, INT4], ids=lambda c: f"{c.bits}bit")
@pytest.mark.parametrize("kind", KINDS)
def test_the_searched_tensor_scale_is_the_best_of_all_portable_ones(kind: str, codes: IntegerRange) -> None:
    rows = weights(kind, 50, 300, seed=9)
    grid = Scheme("test", "tensor", codes)
    found, plain = (kernels.tensor_scale(lambda: [rows[:20], rows[20:]], "fp32", grid, search=s) for s in (True, False))
    flat = rows.astype(np.float64).ravel()
    best = reference.loss(flat, reference.best_scale(flat, codes), codes)
    assert reference.loss(flat, found, codes) <= (1 + 2e-6) * best
    assert found == plain or reference.loss(flat, found, codes) < reference.loss(flat, plain, codes)


def test_a_tensor_scale_keeps_to_the_range_of_portable_ones() -> None:
    for size in (SCALE_FLOOR * 127, SCALE_FLOOR * 130, 65280.0 * 127):
        rows = weights("gaussian", 20, 100)
        rows *= np.float32(size) / np.abs(rows).max()
        scale = kernels.tensor_scale(lambda rows=rows: [rows], "fp32", SCHEMES["w8t"])
        assert SCALE_FLOOR <= scale <= 65280


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("search", [True, False])
def test_q4_0_blocks_decode_in_gguf_to_exactly_scale_times_code(search: bool, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    rows = as_dtype(weights(kind, 9, 256, seed=10), "bf16")
    rows[0, :32] = 0
    packed = kernels.fold(rows, "bf16", SCHEMES["q4_0"], search=search)
    blocks = kernels.fold(rows, "bf16", SCHEMES["q4_0"], search=search, blocks=True)
    codes = unpack(packed.packed, 4, 256)
    assert np.array_equal(packed.scale, packed.scale.astype(np.float16))
    assert np.array_equal(blocks.packed, reference.q4_0_blocks(codes, packed.scale.astype(np.float64)))
    decoded = gguf.quants.dequantize(blocks.packed, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(decoded, codes.astype(np.float32) * np.repeat(packed.scale, 32, axis=1))
    if not search:
        expected, scales = reference.fold(reference.widen(rows, "bf16"), INT4, 32, signed=True)
        assert np.array_equal(packed.scale, scales)
        assert np.array_equal(codes, expected)


def test_q4_0_search_beats_gguf_on_every_row_and_nears_the_best_of_both_signs() -> None:
    gguf = pytest.importorskip("gguf")
    rows = weights("gaussian", 20, 512, seed=11)
    wide = rows.astype(np.float64)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q4_0), 2)
    ours = decode(kernels.fold(rows, "fp32", SCHEMES["q4_0"]), SCHEMES["q4_0"], 512)
    their_loss, our_loss = ((wide - x) ** 2 for x in (theirs, ours))
    assert (our_loss.sum(axis=1) < 0.95 * their_loss.sum(axis=1)).all()
    parts = wide[:2].reshape(-1, 32)
    best = sum(reference.loss(part, reference.best_scale(part, INT4, True), INT4) for part in parts)
    assert our_loss[:2].sum() <= 1.005 * best


def test_the_exact_least_loss_is_what_trying_every_scale_approaches() -> None:
    for part in weights("heavy", 20, 32, seed=12).astype(np.float64):
        for signed in (False, True):
            exact = reference.least_loss(part, INT4, signed)
            start = reference.plain_scale(part, INT4, signed)
            dense = [sign * start * f for f in np.linspace(0.1, 1.5, 3000) for sign in ((1, -1) if signed else (1,))]
            tried = min(reference.loss(part, scale, INT4) for scale in dense)
            assert exact <= tried <= 1.0001 * exact
    assert reference.least_loss(np.full(32, 0.5), INT4) == pytest.approx(0, abs=1e-12)
    assert reference.least_loss(np.zeros(32), INT4) == 0


def test_q4_0_search_of_a_real_model_is_as_good_as_exact(stories260k: Path) -> None:
    """All its matrices together lie within 0.005 dB of the exact least squared error, each within 0.01 dB."""
    from safetensors.numpy import load_file

    matrices = [t.astype(np.float32) for f in stories260k.glob("*.safetensors") for n, t in load_file(f).items()
                if t.ndim == 2 and t.shape[1] % 32 == 0 and "proj" in n]  # fmt: skip
    found = [kernels.fold(rows, "fp32", SCHEMES["q4_0"]).error for rows in matrices]
    parts = [rows.astype(np.float64).reshape(-1, 32) for rows in matrices]
    exact = [sum(reference.least_loss(part, INT4, True) for part in group) for group in parts]
    assert len(matrices) == 30
    assert 10 * np.log10(sum(found) / sum(exact)) < 0.005
    assert all(10 * np.log10(f / e) < 0.01 for f, e in zip(found, exact, strict=True))


def test_the_search_beats_plain_on_every_matrix_of_a_real_model(stories260k: Path) -> None:
    from safetensors.numpy import load_file

    for file in sorted(stories260k.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
                for scheme in ("w8g32", "w4g32", "w3g32", "w2g32", "w4", "q4_0"):
                    rows = tensor.astype(np.float32)
                    searched, plain = (kernels.fold(rows, "fp32", SCHEMES[scheme], search=s) for s in (True, False))
                    assert searched.error < plain.error, (name, scheme)


def test_the_tensor_scale_of_every_matrix_of_a_real_model_is_the_best_there_is(stories260k: Path) -> None:
    """For two of its matrices that is the plain one: no portable scale comes closer to their weights."""
    from safetensors.numpy import load_file

    plain_is_best = 0
    for file in sorted(stories260k.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if tensor.ndim != 2 or "proj" not in name:
                continue
            rows = tensor.astype(np.float32)
            scales = [kernels.tensor_scale(lambda r=rows: [r], "fp32", SCHEMES["w8t"], search=s) for s in (True, False)]
            flat = rows.astype(np.float64).ravel()
            found, plain = (reference.loss(flat, scale, INT8) for scale in scales)
            best = reference.loss(flat, reference.best_scale(flat, INT8), INT8)
            assert found <= (1 + 1e-6) * best, name
            assert found < plain or plain == best, name
            plain_is_best += plain == best
    assert plain_is_best == 2


@settings(max_examples=300, deadline=None)
@given(st.floats(2.0**-20, 2.0**17, width=32))
def test_the_compiled_portable_scale_equals_the_one_of_core(value: float) -> None:
    rounded, floored, over = loops._round_scale(np.float32(value), loops.PORTABLE)
    exact = np.array([value], np.float32)
    if over:
        assert reference.to_bfloat16(exact)[0] > 65280
    else:
        assert rounded == portable_scale(exact)[0]
        assert floored == (reference.to_bfloat16(exact)[0] < SCALE_FLOOR)


@settings(max_examples=300, deadline=None)
@given(st.floats(-65504, 65504, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32))
def test_the_compiled_fp16_equals_numpy(value: float) -> None:
    rounded, _, over = loops._round_scale(np.float32(value), loops.NATIVE_Q4_0)
    assert not over
    assert rounded == np.float16(value)
    assert np.uint16(loops._half_bits(np.float32(value))) == np.float16(value).view(np.uint16)


def test_what_cannot_be_folded_is_refused_with_the_numbers() -> None:
    with pytest.raises(BadInput, match=r"group 32 does not divide 100 columns.*per channel"):
        kernels.fold(np.zeros((2, 100), np.float32), "fp32", SCHEMES["w4g32"])
    with pytest.raises(BadInput, match="float64"):
        kernels.fold(np.zeros((2, 64)), "fp32", SCHEMES["w4g32"])
    with pytest.raises(BadInput, match="tensor_scale"):
        kernels.fold(np.zeros((2, 64), np.float32), "fp32", SCHEMES["w8t"])
    with pytest.raises(BadInput, match="mse"):
        kernels.fold(np.zeros((2, 64), np.float32), "fp32", SCHEMES["w4g32"], objective="msee")
