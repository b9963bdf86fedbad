"""Integer ranges and the bytes their codes take: what schemes are made of, without arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class IntegerRange:
    """The codes from `low` to `high` inclusive, stored in `bits` bits each (two's complement)."""

    bits: int
    low: int
    high: int

    def holds(self, codes: NDArray[np.integer[Any]]) -> bool:
        """Whether every code lies in the range."""
        return codes.size == 0 or bool(self.low <= int(codes.min()) and int(codes.max()) <= self.high)


INT8 = IntegerRange(8, -127, 127)
INT4 = IntegerRange(4, -8, 7)
INT3 = IntegerRange(3, -4, 3)
INT2 = IntegerRange(2, -2, 1)
TERNARY = IntegerRange(2, -1, 1)


def packed_row_bytes(columns: int, bits: int) -> int:
    """Bytes that one row of `columns` codes takes; a row is padded to a whole byte."""
    return (columns * bits + 7) // 8
