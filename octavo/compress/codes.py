"""Integer codes of a graph's weights, as one value per tensor (rtn.py streams models that are too large for that)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from octavo.core.scheme import Scheme, scheme
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput, Refused


def code(name: str, weight: NDArray[np.float32], scheme_name: str, *, search: bool = True) -> QuantizedTensor:
    """One weight [O, …] on the scheme's grid, one scale per output channel or one in all.

    Raises BadInput for NaN or infinite weights, Refused for scales too large for every runtime.
    """
    from octavo.compress import kernels

    grid = scheme(scheme_name)
    assert grid.range is not None
    rows = np.ascontiguousarray(weight.reshape(weight.shape[0], -1), np.float32)
    given = kernels.tensor_scale(lambda: [rows], "fp32", grid, search=search) if grid.granularity == "tensor" else None
    folded = kernels.fold(rows, "fp32", grid, search=search, scale=given)
    if folded.nonfinite:
        raise BadInput(
            f"{name} {list(weight.shape)}: {folded.nonfinite} weights are NaN or infinite.", "Repair the model."
        )
    if folded.too_large:
        raise Refused(f"{name}: {folded.too_large} scales exceed what {scheme_name} can hold.", "Keep it in float.")
    codes = folded.packed.view(np.int8).reshape(weight.shape)
    return QuantizedTensor(codes, _shaped(folded.scale, weight.shape, grid), grid.block(weight.shape), grid.range)


def codes(
    weights: Mapping[str, NDArray[np.float32]], names: Iterable[str], scheme_name: str, *, search: bool = True
) -> dict[str, QuantizedTensor]:
    """`code` of each of these tensors."""
    return {name: code(name, weights[name], scheme_name, search=search) for name in names}


def _shaped(scale: NDArray[np.float32], shape: tuple[int, ...], grid: Scheme) -> NDArray[np.float32]:
    return scale.reshape(tuple(s // b for s, b in zip(shape, grid.block(shape), strict=True)))
