"""A float model as it arrives, whatever its format: what stage one and the planner need of it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import TensorSpec
from octavo.core.model import Program, State
from octavo.core.safetensors import widen
from octavo.core.store import FLOAT_DTYPE


class Source(Protocol):
    """A trained float model: its program, the tensors with their roles, and rows of their values."""

    @property
    def program(self) -> Program: ...

    @property
    def tensors(self) -> dict[str, TensorSpec]: ...

    @property
    def assets(self) -> dict[str, bytes]: ...

    @property
    def state(self) -> tuple[State, ...]: ...

    def dtype(self, name: str) -> str:
        """fp32, fp16 or bf16."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) as stored: float32, float16, or bfloat16 as its bits in uint16."""
        ...

    def close(self) -> None: ...


def floats(source: Source, name: str) -> NDArray[np.float32]:
    """A whole tensor of `source` as float32 (exact for fp16 and bf16)."""
    return widen(source.rows(name), FLOAT_DTYPE[source.dtype(name)])
