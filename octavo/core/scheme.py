"""The table of schemes: which grid, never which algorithm finds the codes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from octavo.core.ranges import INT2, INT3, INT4, INT8, TERNARY, IntegerRange, packed_row_bytes
from octavo.errors import BadInput, Refused, nearest

Granularity = Literal["float", "tensor", "channel", "group"]
Activation = Literal["int8", "int16"]
SCALE_BYTES = 2  # a portable scale is exact in fp16


@dataclass(frozen=True)
class Scheme:
    """One grid. `range` is None for the float schemes; `native` names the only runtime that has the format.

    `activation`: of a static scheme, what the values between operators are quantised to (calibration says how).
    """

    name: str
    granularity: Granularity
    range: IntegerRange | None = None
    group: int | None = None
    float_dtype: str | None = None
    native: str | None = None
    activation: Activation | None = None

    @property
    def is_float(self) -> bool:
        return self.range is None

    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many elements share a scale along each axis of `shape` [O, …] (axis 0 is the output channel)."""
        if self.granularity == "tensor":
            return shape
        if self.granularity == "channel":
            return (1, *shape[1:])
        if self.granularity == "group" and self.group:
            return (1,) * (len(shape) - 1) + (self.group,)
        raise ValueError(f"{self.name} has no scales")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise Refused, naming the tensor and what would work, when this scheme cannot hold `shape`."""
        if self.range is not None and 0 in shape:
            raise Refused(
                f"{name} {list(shape)}: an empty tensor has nothing to scale.",
                "--allow-skip leaves it in float and records it.",
            )
        if self.group is None:
            return
        if len(shape) != 2:
            raise Refused(
                f"{name} {list(shape)}: {self.name} groups along the input of a matrix; this has {len(shape)} axes.",
                "Use w8 or w4 (per channel), or --allow-skip to leave it in float and record it.",
            )
        if shape[1] % self.group:
            fits = [str(g) for g in (32, 64, 128, 256) if shape[1] % g == 0]
            other = f"Groups of {' or '.join(fits)} divide it" if fits else "No group of 32, 64, 128 or 256 divides it"
            raise Refused(
                f"{name} {list(shape)}: group {self.group} does not divide {shape[1]}.",
                f"{other}; w4 and w8 (per channel) always do; --allow-skip leaves it in float and records it.",
            )

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of codes and scales for a tensor of `shape`."""
        if self.range is None:
            return prod(shape) * (4 if self.float_dtype == "F32" else 2)
        groups = prod(s // b for s, b in zip(shape, self.block(shape), strict=True))
        return shape[0] * packed_row_bytes(prod(shape[1:]), self.range.bits) + groups * SCALE_BYTES


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", "float", float_dtype="F32"),
        Scheme("fp16", "float", float_dtype="F16"),
        Scheme("w8", "channel", INT8),
        Scheme("w8t", "tensor", INT8),
        Scheme("w8a8", "channel", INT8, activation="int8"),
        Scheme("w8ta8", "tensor", INT8, activation="int8"),
        Scheme("w8a16", "channel", INT8, activation="int16"),
        Scheme("w8g32", "group", INT8, 32),
        Scheme("w4", "channel", INT4),
        Scheme("w4g32", "group", INT4, 32),
        Scheme("w4g64", "group", INT4, 64),
        Scheme("w4g128", "group", INT4, 128),
        Scheme("w3g32", "group", INT3, 32),
        Scheme("w2g32", "group", INT2, 32),
        Scheme("ternary", "tensor", TERNARY),
        Scheme("q4_0", "group", INT4, 32, native="llamacpp"),
    )
}


def scheme(name: str) -> Scheme:
    """Look a scheme up by name. Raises BadInput with the nearest names."""
    if name not in SCHEMES:
        raise BadInput(f"Unknown scheme '{name}'.", nearest(name, SCHEMES))
    return SCHEMES[name]
