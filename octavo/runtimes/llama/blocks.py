"""How llama.cpp lays codes and scales out in bytes: one class per block type, encoding and decoding bit for bit.

Layouts: ggml's `block_q8_0`, `block_q4_0`, `block_tq2_0` (ggml-common.h), the same as gguf-py's quants.py.
Every block holds `weights` neighbouring weights of one row and one scale in fp16.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import IntegerRange
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused

Bytes = NDArray[np.uint8]


class Block:
    """A block type: its sizes, the codes it can hold, and the packing of its codes."""

    name: ClassVar[str]
    weights: ClassVar[int]
    nbytes: ClassVar[int]
    range: ClassVar[IntegerRange]

    @classmethod
    def encode_blocks(cls, codes: NDArray[np.int8], scale: Bytes) -> Bytes:
        """codes int8 [n, weights], scale as fp16 bytes [n, 2] → blocks [n, nbytes]."""
        raise NotImplementedError

    @classmethod
    def decode_blocks(cls, blocks: Bytes) -> tuple[NDArray[np.int8], Bytes]:
        """Blocks [n, nbytes] → codes int8 [n, weights], scale as fp16 bytes [n, 2]."""
        raise NotImplementedError

    @classmethod
    def encode(cls, tensor: QuantizedTensor) -> Bytes:
        """Rows [r, c] with a scale per (1, weights) → bytes [r, c / weights · nbytes].

        Raises Refused when a row is not made of whole blocks, a code does not fit or a scale is not exact in fp16.
        """
        rows = tensor.shape[0]
        if tensor.block != (1, cls.weights) or tensor.zero_point is not None or not cls.range.holds(tensor.codes):
            raise Refused(
                f"a tensor {list(tensor.shape)} with block {tensor.block} and codes of {tensor.range} is no "
                f"{cls.name}: that has one scale per {cls.weights} weights of a row and codes from {cls.range.low} to "
                f"{cls.range.high}."
            )
        half = tensor.scale.astype("<f2")
        if not np.array_equal(half.astype(np.float32), tensor.scale):
            raise Refused(f"{int((half.astype(np.float32) != tensor.scale).sum())} scales are not exact in fp16.")
        scale = np.ascontiguousarray(half).view(np.uint8).reshape(-1, 2)
        return cls.encode_blocks(tensor.codes.reshape(-1, cls.weights), scale).reshape(rows, -1)

    @classmethod
    def decode(cls, raw: Bytes) -> QuantizedTensor:
        """Bytes [r, n · nbytes] → rows [r, n · weights] with a scale per (1, weights)."""
        rows = raw.shape[0]
        codes, scale = cls.decode_blocks(raw.reshape(-1, cls.nbytes))
        scales = np.ascontiguousarray(scale).view("<f2").astype(np.float32)
        return QuantizedTensor(codes.reshape(rows, -1), scales.reshape(rows, -1), (1, cls.weights), cls.range)


class Q8_0(Block):
    """d, then 32 codes of 8 bits: w = d · q."""

    name, weights, nbytes, range = "Q8_0", 32, 34, IntegerRange(8, -128, 127)

    @classmethod
    def encode_blocks(cls, codes: NDArray[np.int8], scale: Bytes) -> Bytes:
        return np.concatenate([scale, codes.view(np.uint8)], axis=1)

    @classmethod
    def decode_blocks(cls, blocks: Bytes) -> tuple[NDArray[np.int8], Bytes]:
        return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), blocks[:, :2]


class Q4_0(Block):
    """d, then 32 codes of 4 bits: w = d · (q − 8); byte i holds weight i (low half) and weight i + 16 (high half)."""

    name, weights, nbytes, range = "Q4_0", 32, 18, IntegerRange(4, -8, 7)

    @classmethod
    def encode_blocks(cls, codes: NDArray[np.int8], scale: Bytes) -> Bytes:
        fields = (codes + np.int8(8)).view(np.uint8)
        return np.concatenate([scale, fields[:, :16] | (fields[:, 16:] << np.uint8(4))], axis=1)

    @classmethod
    def decode_blocks(cls, blocks: Bytes) -> tuple[NDArray[np.int8], Bytes]:
        packed = blocks[:, 2:]
        fields = np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)
        return fields.view(np.int8) - np.int8(8), blocks[:, :2]


class TQ2_0(Block):
    """256 codes of 2 bits, then d: w = d · (q − 1). Each half of 128 weights takes 32 bytes; byte i of a half holds
    its weights i, i + 32, i + 64, i + 96, from the lowest bits up."""

    name, weights, nbytes, range = "TQ2_0", 256, 66, IntegerRange(2, -1, 2)

    @classmethod
    def encode_blocks(cls, codes: NDArray[np.int8], scale: Bytes) -> Bytes:
        fields = (codes + np.int8(1)).view(np.uint8).reshape(-1, 2, 4, 32)
        packed = fields[:, :, 0].copy()
        for place in (1, 2, 3):
            packed |= fields[:, :, place] << np.uint8(2 * place)
        return np.concatenate([packed.reshape(-1, 64), scale], axis=1)

    @classmethod
    def decode_blocks(cls, blocks: Bytes) -> tuple[NDArray[np.int8], Bytes]:
        packed = blocks[:, :64].reshape(-1, 2, 1, 32)
        places = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        fields = (packed >> places) & np.uint8(3)
        return fields.reshape(-1, 256).view(np.int8) - np.int8(1), blocks[:, 64:]


BLOCKS: dict[str, type[Block]] = {block.name: block for block in (Q8_0, Q4_0, TQ2_0)}
FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def row_bytes(stored_as: str, columns: int) -> int:
    """Bytes that a row of `columns` weights takes in the file."""
    if stored_as in FLOATS:
        return columns * FLOATS[stored_as].itemsize
    block = BLOCKS[stored_as]
    return columns // block.weights * block.nbytes


def encode_floats(values: NDArray[np.float32], stored_as: str) -> NDArray[Any]:
    """Float32 values in the file's float type (bf16 as its bits). Raises Refused when that would round."""
    if stored_as == "F32":
        return values
    if stored_as == "F16":
        with np.errstate(over="ignore"):
            stored: NDArray[Any] = values.astype("<f2")
    else:
        stored = (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
    changed = int((decode_floats(stored, stored_as).view(np.uint32) != values.view(np.uint32)).sum())
    if changed:
        raise Refused(f"{changed} of {values.size} values are not exact in {stored_as}.", "Compress the model again.")
    return stored


def decode_floats(stored: NDArray[Any], stored_as: str) -> NDArray[np.float32]:
    """What lies in the file as float32, exactly."""
    if stored_as == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)
