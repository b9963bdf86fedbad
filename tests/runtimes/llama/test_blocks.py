"""Block codecs, bit for bit against gguf-py (whose own bytes equal the C library's)."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.grid import SCALE_CEILING, SCALE_FLOOR, IntegerRange
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused
from octavo.runtimes.llama.blocks import BLOCKS, Block, decode_floats, encode_floats, row_bytes

EXTREMES = [SCALE_FLOOR, SCALE_CEILING, 6e-8, 65504.0, 0.0, -0.0, -1.5, 1.0]  # 6e-8: the smallest subnormal fp16


def tensor(block: type[Block], rows: int, blocks: int, seed: int, scales: list[float]) -> QuantizedTensor:
    """Random codes over everything the block type can hold, one group all zero, the given scales among others."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(block.range.low, block.range.high + 1, (rows, blocks * block.weights), dtype=np.int8)
    codes[-1, : block.weights] = 0
    scale = rng.normal(0, 0.02, rows * blocks).astype(np.float16)
    scale[: len(scales)] = np.array(scales, np.float16)[: scale.size]
    return QuantizedTensor(codes, scale.astype(np.float32).reshape(rows, blocks), (1, block.weights), block.range)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_gguf_py_reads_what_we_write(block: type[Block], rows: int, blocks: int, seed: int) -> None:
    written = tensor(block, rows, blocks, seed, EXTREMES)
    raw = block.encode(written)
    assert raw.shape == (rows, row_bytes(block.name, blocks * block.weights))
    values = dequantize(raw, GGMLQuantizationType[block.name])
    assert values.tobytes() == written.dequantize().tobytes()
    back = block.decode(raw)
    assert back.codes.tobytes() == written.codes.tobytes()
    assert back.scale.tobytes() == written.scale.tobytes()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_bytes_survive_decoding_and_encoding(block: type[Block], seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (3, 2 * block.nbytes), dtype=np.uint8)
    raw[0, : block.nbytes] = 0
    decoded = block.decode(raw)
    if np.isfinite(decoded.scale).all():
        theirs = dequantize(raw, GGMLQuantizationType[block.name])
        assert block.encode(decoded).tobytes() == raw.tobytes()
        assert decoded.dequantize().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_bytes_are_those_of_gguf_pys_own_quantiser(block: type[Block]) -> None:
    values = np.random.default_rng(1).normal(0, 0.02, (8, 4 * block.weights)).astype(np.float32)
    values[3] = 0
    raw = quantize(values, GGMLQuantizationType[block.name])
    assert block.encode(block.decode(raw)).tobytes() == raw.tobytes()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_llama_cpps_own_quantiser_writes_the_same_layout(block: type[Block]) -> None:
    from octavo.runtimes.llama.session import quantize_chunk

    values = np.random.default_rng(2).normal(0, 0.02, (4, 2 * block.weights)).astype(np.float32)
    raw, _ = quantize_chunk(block.name, values)
    decoded = block.decode(np.frombuffer(raw, np.uint8).reshape(4, -1))
    step = np.repeat(np.abs(decoded.scale), block.weights, axis=1)
    assert (np.abs(decoded.dequantize() - values) <= 1.01 * step).all()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_code_in_every_place(block: type[Block]) -> None:
    for code in range(block.range.low, block.range.high + 1):
        codes = np.zeros((block.weights, block.weights), np.int8)
        np.fill_diagonal(codes, code)
        scale = np.full((block.weights, 1), 0.5, np.float32)
        raw = block.encode(QuantizedTensor(codes, scale, (1, block.weights), block.range))
        assert (dequantize(raw, GGMLQuantizationType[block.name]) == 0.5 * codes).all()


def test_what_does_not_fit_is_refused() -> None:
    block = BLOCKS["Q4_0"]
    codes, eight = np.full((1, 32), 8, np.int8), IntegerRange(8, -127, 127)
    with pytest.raises(Refused, match="codes from -8 to 7"):
        block.encode(QuantizedTensor(codes, np.ones((1, 1), np.float32), (1, 32), eight))
    scale = np.full((1, 1), 1 + 2**-12, np.float32)
    with pytest.raises(Refused, match="1 scales are not exact in fp16"):
        block.encode(QuantizedTensor(np.zeros((1, 32), np.int8), scale, (1, 32), block.range))
    with pytest.raises(Refused, match=r"block \(1, 16\)"):
        block.encode(QuantizedTensor(np.zeros((1, 32), np.int8), np.ones((1, 2), np.float32), (1, 16), block.range))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_are_carried_exactly_or_refused(kind: str) -> None:
    values = np.array([[0.0, -0.0, 1.5, -(2.0**-14), 240.0, 2.0**-24]], np.float32)
    stored = encode_floats(values, kind)
    assert decode_floats(stored, kind).tobytes() == values.tobytes()
    raw = stored.view(np.uint8) if kind == "BF16" else stored
    assert dequantize(raw, GGMLQuantizationType[kind]).tobytes() == values.tobytes()
    if kind != "F32":
        with pytest.raises(Refused, match=f"1 of 2 values are not exact in {kind}"):
            encode_floats(np.array([1.0, 1e9 + 0.5e8 if kind == "F16" else 1.0001], np.float32), kind)
