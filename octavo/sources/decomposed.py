"""torch's quantized_decomposed operators: registered only when their module is imported."""

from __future__ import annotations

from typing import Any


def per_tensor(what: str) -> Any:
    """`quantize` or `dequantize` with one scale: (tensor, scale, zero point, low, high, dtype)."""
    return getattr(_operators(), f"{what}_per_tensor").default


def per_channel(what: str) -> Any:
    """`quantize` or `dequantize` with a scale per index: (tensor, scales, zero points, axis, low, high, dtype)."""
    return getattr(_operators(), f"{what}_per_channel").default


def _operators() -> Any:
    import torch
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed
