"""MIL's quantize and dequantize in torch: q = clip(round(x / scale) + zero), ties to even; x = scale · (q − zero)."""

from __future__ import annotations

from typing import Any

from octavo.runtimes.mlpackage.arithmetic import Function, tensor

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _quantize(input: Any, scale: Any, output_dtype: str, zero_point: Any = None, axis: Any = None, **_: Any) -> Any:
    import torch

    low, high = RANGES[output_dtype]
    step, zero = _along(input, scale, axis), _along(input, 0 if zero_point is None else zero_point, axis)
    codes = (input.float() / step.float()).round() + zero.float()
    return codes.clamp(low, high).to(getattr(torch, output_dtype))


def _dequantize(input: Any, scale: Any, zero_point: Any = None, axis: Any = None, **_: Any) -> Any:
    step, zero = _along(input, scale, axis), _along(input, 0 if zero_point is None else zero_point, axis)
    return ((input.float() - zero.float()) * step.float()).to(step.dtype)


def _along(x: Any, value: Any, axis: Any) -> Any:
    """A number as it is; one per index of `axis` so that it meets them."""
    found = tensor(value)
    if found.ndim == 0:
        return found
    shape = [1] * x.ndim
    shape[int(axis)] = -1
    return found.reshape(shape)


QUANTITIES: dict[str, Function] = {"quantize": _quantize, "dequantize": _dequantize}
