"""How a tensor lies in an ML program: which operation holds it, under which name, and how it is decoded.

    affine     constexpr_affine_dequantize (iOS 16): int8 codes, one scale per output channel or one for all
    blockwise  constexpr_blockwise_shift_scale (iOS 18): int8 or int4 codes, one scale per channel, group or tensor
    table      constexpr_lut_to_dense (iOS 18) with int8 entries, then blockwise: codes of 2 or 3 bits are the indices
    cast       constexpr_cast (iOS 16): fp16 values that the program reads as fp32
    wide       blockwise with fp32 numbers and an fp16 scale of 1: fp32 values of a program that computes in fp16
    const      values in the type that the program computes in

Scales have the type that the program computes in; portable scales are exact in fp16 and fp32.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from octavo.core.model import CompressedModel
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused

Compute = Literal["fp32", "fp16"]
BLOCKWISE = 9  # specification version of iOS 18; 8 is iOS 17
OPERATIONS = {
    "affine": "constexpr_affine_dequantize",
    "blockwise": "constexpr_blockwise_shift_scale",
    "table": "constexpr_lut_to_dense",
    "cast": "constexpr_cast",
    "wide": "constexpr_blockwise_shift_scale",
    "const": "const",
}


@dataclass(frozen=True)
class Layout:
    """`kind` as above; bits per stored code or value."""

    kind: Literal["affine", "blockwise", "table", "cast", "wide", "const"]
    bits: int


def layout_of(scheme: str, *, affine: bool, compute: Compute) -> Layout:
    """The layout of a tensor in a program for iOS 17 (`affine`) or 18."""
    grid = SCHEMES.get(scheme)
    if grid is None or grid.range is None:
        if scheme == "fp16":
            return Layout("cast" if compute == "fp32" else "const", 16)
        return Layout("const" if compute == "fp32" else "wide", 32)
    if affine:
        return Layout("affine", 8)
    bits = grid.range.bits
    return Layout("table" if bits < 4 else "blockwise", bits)


def is_affine(schemes: set[str], compute: Compute) -> bool:
    """Whether these schemes need nothing that came with iOS 18: 8 bits, one scale per channel or tensor."""
    if compute == "fp16" and schemes & {"fp32", "bf16"}:
        return False
    grids = [SCHEMES[name] for name in schemes if name in SCHEMES and SCHEMES[name].range is not None]
    return all(grid.range is not None and grid.range.bits == 8 and grid.granularity != "group" for grid in grids)


def names_of(model: CompressedModel) -> dict[str, str]:
    """{tensor: its name in the program}: letters, digits and underscores, all different."""
    found: dict[str, str] = {}
    for record in model.tensors:
        plain = "w_" + re.sub(r"\W", "_", record.name, flags=re.ASCII)
        taken = set(found.values())
        found[record.name] = (
            plain if plain not in taken else f"{plain}_{hashlib.sha256(record.name.encode()).hexdigest()[:8]}"
        )
    return found


def decode(name: str, scheme: str, shape: tuple[int, ...], arrays: dict[str, NDArray[Any]]) -> QuantizedTensor:
    """Codes and scales as they lie there → the scheme's own. Raises Refused when they cannot be that tensor."""
    grid = SCHEMES[scheme]
    assert grid.range is not None
    codes, scale, offset = arrays["codes"].astype(np.int64), arrays["scale"], arrays.get("offset")
    if codes.shape != shape:
        raise Refused(f"{name}: codes {list(codes.shape)} lie there, not {list(shape)}.")
    if offset is not None and offset.any():
        raise Refused(f"{name}: zero points lie there, and {scheme} has none.")
    if codes.size and not grid.range.holds(codes):
        raise Refused(
            f"{name}: codes from {codes.min()} to {codes.max()} lie there; {scheme} has {grid.range.low} to "
            f"{grid.range.high}."
        )
    block = grid.block(shape)
    groups = tuple(s // b for s, b in zip(shape, block, strict=True))
    if scale.size != int(np.prod(groups)):
        raise Refused(f"{name}: {scale.size} scales lie there; {scheme} has {int(np.prod(groups))}.")
    values = np.ascontiguousarray(scale, np.float32).reshape(groups)
    return QuantizedTensor(np.ascontiguousarray(codes.astype(np.int8)), values, block, grid.range)
