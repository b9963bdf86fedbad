"""llama.cpp's own quantiser, called through ctypes in the shared library that the xllamacpp wheel ships."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GGML_TYPE_Q4_0 = 2
Q4_0_BLOCK = 32
Q4_0_BYTES = 18


class Ggml:
    """`ggml_bf16_to_fp32_row` and `ggml_quantize_chunk` of one loaded library. Calls release the interpreter lock."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("xllamacpp")
        if found is None or found.origin is None:
            raise SystemExit("xllamacpp is not installed, so there is no ggml to compare with: pip install xllamacpp")
        libraries = sorted(Path(found.origin).parent.glob("*.so"))
        self.path = next((p for p in libraries if b"ggml_quantize_chunk" in p.read_bytes()), None)
        if self.path is None:
            raise SystemExit(f"no library beside {found.origin} exports ggml_quantize_chunk")
        library = ctypes.CDLL(str(self.path))
        self._widen = library.ggml_bf16_to_fp32_row
        self._widen.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        self._widen.restype = None
        self._quantize = library.ggml_quantize_chunk
        span = [ctypes.c_int64] * 3  # first element, rows, columns
        self._quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *span, ctypes.c_void_p]
        self._quantize.restype = ctypes.c_size_t
        library.ggml_quantize_init.argtypes = [ctypes.c_int]
        library.ggml_quantize_init(GGML_TYPE_Q4_0)

    def widen(self, rows: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
        """bf16 bits [rows, K] to float32 of the same shape."""
        self._widen(rows.ctypes.data, out.ctypes.data, rows.size)

    def q4_0(self, rows: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """float32 [rows, K] to Q4_0 blocks uint8 [rows, K / 32 · 18]."""
        count, columns = rows.shape
        written = self._quantize(GGML_TYPE_Q4_0, rows.ctypes.data, out.ctypes.data, 0, count, columns, None)
        if written != out.nbytes:
            raise SystemExit(f"ggml_quantize_chunk wrote {written} bytes where {out.nbytes} were expected")
