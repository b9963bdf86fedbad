"""How a tensor lies in an ONNX file: which initializers, and the exact moves between them and codes and scales.

    blocks       codes uint8 [N, ceil(K/b), b·bits/8]: the kernel MatMulNBits' own layout; embedding rows are gathered
                 from it too. A code is stored as code + 2^(bits−1), low bits first; the last block is padded with zeros
    dequantize   codes INT8 or INT4 of the tensor's own shape, for DequantizeLinear on axis 0 (convolutions, and every
                 weight of a static model: what ONNX Runtime and NPU providers fuse with the quantised activations)
    float        the values, in their own float type

Scales are stored as they are in the compressed model, FLOAT16 (portable scales are exact there), once per row, group or
tensor; the graph casts them and repeats them per block, which ONNX Runtime does once, when it loads the file. A static
model's are FLOAT: providers look for constants beside the codes, not for a cast of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import IntegerRange, pack, unpack
from octavo.core.model import TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused

BLOCK_SIZES = {2: (128, 64, 32), 4: (256, 128, 64, 32, 16), 8: (256, 128, 64, 32, 16)}
FLOATS = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}
EDGE_CODES = ".codes"  # the value that holds an edge's integers is EDGE.codes
BITS = {"ternary": 2, "w2g32": 2, "w3g32": 4}  # others: as many as their codes have


@dataclass(frozen=True)
class Layout:
    """`kind` as above; bits per stored code; `block` codes per stored block (kind `blocks` only); the scales' type."""

    kind: Literal["blocks", "dequantize", "float"]
    bits: int = 32
    block: int = 0
    scale: Literal["FLOAT16", "FLOAT"] = "FLOAT16"

    @property
    def zero(self) -> int:
        """What a code of 0 is stored as."""
        return 1 << (self.bits - 1) if self.kind == "blocks" else 0


def layout_of(scheme: str, shape: tuple[int, ...], role: str) -> Layout:
    """The layout of a tensor; the same answer when a file is written and when it is read back."""
    grid = SCHEMES.get(scheme)
    if grid is None or grid.range is None:
        return Layout("float", 32 if scheme == "fp32" else 16)
    if grid.activation:
        return Layout("dequantize", grid.range.bits, scale="FLOAT")
    if role == "conv":
        return Layout("dequantize", 4 if grid.range.bits <= 4 else 8)
    bits = BITS.get(scheme, grid.range.bits)
    return Layout("blocks", bits, grid.group or _block(shape[1], bits))


def _block(columns: int, bits: int) -> int:
    """The block that pads a row least; of equals the largest, which the kernel runs fastest."""
    return min(BLOCK_SIZES[bits], key=lambda size: (-(-columns // size) * size, -size))


def stored_shapes(scheme: str, shape: tuple[int, ...], layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the initializers NAME.codes and NAME.scale (of a float tensor: of NAME, and none)."""
    if layout.kind == "float":
        return shape, ()
    groups = tuple(s // b for s, b in zip(shape, SCHEMES[scheme].block(shape), strict=True))
    if layout.kind == "dequantize":
        return shape, (() if prod(groups) == 1 and prod(shape[:1]) != 1 else (shape[0],))
    return (shape[0], -(-shape[1] // layout.block), layout.block * layout.bits // 8), groups


def encode_codes(value: QuantizedTensor, layout: Layout) -> NDArray[np.uint8]:
    """Rows of codes as the bytes of NAME.codes."""
    codes = value.codes
    if layout.kind == "dequantize":
        # An INT4 tensor is one run of nibbles, so rows can be packed apart only when they fill whole bytes; the caller
        # gives all rows at once.
        return pack(codes.reshape(1, -1), layout.bits)
    rows, columns = codes.shape
    padded = np.zeros((rows, -(-columns // layout.block) * layout.block), np.int8)
    padded[:, :columns] = codes
    return pack((padded.view(np.uint8) + np.uint8(layout.zero)).view(np.int8), layout.bits)


def encode_scale(name: str, scale: NDArray[np.float32], layout: Layout) -> NDArray[np.floating[Any]]:
    """Scales as NAME.scale. Raises Refused when one is not exact in fp16."""
    if layout.scale == "FLOAT":
        return scale.astype("<f4")
    with np.errstate(over="ignore"):
        half = scale.astype("<f2")
    if not np.array_equal(half.astype(np.float32), scale):
        raise Refused(f"{name}: {int((half.astype(np.float32) != scale).sum())} scales are not exact in fp16.")
    return half


def encode_floats(values: NDArray[np.float32], scheme: str) -> NDArray[Any]:
    """Values in their own float type (bf16 as its bits): exact, since that is where they came from."""
    if scheme == "bf16":
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> np.uint32(16)).astype("<u2")
    return values.astype("<f4" if scheme == "fp32" else "<f2")


def decode(
    name: str, scheme: str, shape: tuple[int, ...], layout: Layout, codes: NDArray[Any], scale: NDArray[Any]
) -> QuantizedTensor:
    """Values of NAME.codes and NAME.scale, back to the scheme's own codes and scales.

    Raises Refused when they are not of that scheme: a code outside its range, padding that is not zero.
    """
    grid = SCHEMES[scheme]
    assert grid.range is not None
    found = _from_blocks(name, codes, shape, layout) if layout.kind == "blocks" else codes.astype(np.int8)
    _check_range(name, scheme, found, grid.range)
    block = grid.block(shape)
    groups = tuple(s // b for s, b in zip(shape, block, strict=True))
    values = np.ascontiguousarray(scale, np.float32).reshape(groups)
    return QuantizedTensor(np.ascontiguousarray(found), values, block, grid.range)


def _from_blocks(name: str, raw: NDArray[np.uint8], shape: tuple[int, ...], layout: Layout) -> NDArray[np.int8]:
    padded = -(-shape[1] // layout.block) * layout.block
    signed = unpack(np.ascontiguousarray(raw).reshape(shape[0], -1), layout.bits, padded)
    unsigned = signed.view(np.uint8) & np.uint8((1 << layout.bits) - 1)  # unpack took the top bit for a sign
    found = (unsigned - np.uint8(layout.zero)).view(np.int8)
    if found[:, shape[1] :].any():
        raise Refused(f"{name}: the padding after its {shape[1]} columns is not zero.")
    return found[:, : shape[1]]


def _check_range(name: str, scheme: str, codes: NDArray[np.int8], range: IntegerRange) -> None:
    if not range.holds(codes):
        raise Refused(
            f"{name}: codes from {codes.min()} to {codes.max()} lie there; {scheme} has {range.low} to {range.high}."
        )


def floats_from(values: NDArray[Any]) -> TensorValue:
    """Float values of any type as float32 (exact)."""
    return np.ascontiguousarray(values.astype(np.float32))
