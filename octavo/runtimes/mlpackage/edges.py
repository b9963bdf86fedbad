"""A static model's edges in an ML program: the two numbers of every quantize and dequantize operation."""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = tuple[float, int]  # scale, zero point of int8


def parameters(operation: Any) -> Numbers | None:
    """Scale and zero point of a quantize or dequantize operation of coremltools; None for one with several.

    coremltools writes a zero point of −128 as uint8 codes without one: the same numbers, all shifted by 128.
    """
    from coremltools.converters.mil.mil import types

    codes = operation.outputs[0] if operation.op_type == "quantize" else operation.input
    zero = 0 if operation.zero_point is None else np.asarray(operation.zero_point.val).reshape(-1)[0]
    scale = np.asarray(operation.scale.val).reshape(-1)
    if scale.size != 1:
        return None
    return float(scale[0]), int(zero) - (128 if codes.dtype == types.uint8 else 0)
