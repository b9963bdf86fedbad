"""Codes chosen for what a layer computes on data, not for what its weights are.

For each layer in order: the weights that, on the quantised inputs, best give the float layer's results (ridge
regression towards the float weights), rounded column by column with the error of each spread over the ones still free
(GPTQ, arXiv:2210.17323, eq. 2 and 3; the target from quantised inputs as in arXiv:2504.02692). Then the bias takes up
what is left of the mean (Nagel et al. 2019, arXiv:1906.04721, section 4.2, measured instead of derived).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.compress.nodes import Layer, operator, value
from octavo.core.ranges import IntegerRange

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
COLUMNS = 8_000  # positions of a layer's input that are looked at
RIDGE = 0.01  # of the mean square of the inputs, when rounding: keeps the matrix regular
PULL = 1.0  # likewise, towards the float weights: with less, a layer learns the calibration samples by heart
LARGEST = 4608  # inputs of one output beyond which the matrix is not worth inverting
BLOCK = 128


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs by group, float64: `quantised` [G, K, K] of the quantised ones, `cross`
    [G, K, K] float · quantisedᵀ, both about their means; `mean`, `mean_quantised` [G, K]."""

    quantised: Floats
    cross: Floats
    mean: Floats
    mean_quantised: Floats


def moments(layer: Layer, exact: list[torch.Tensor], coarse: list[torch.Tensor]) -> Moments:
    """Over all samples, at up to COLUMNS positions spread evenly."""
    import torch

    per_sample = max(1, COLUMNS // len(exact))
    x = torch.cat([_patches(layer, item, per_sample) for item in exact], dim=2)
    q = torch.cat([_patches(layer, item, per_sample) for item in coarse], dim=2)
    mean, mean_quantised = x.mean(dim=2, keepdim=True), q.mean(dim=2, keepdim=True)
    x, q, count = x - mean, q - mean_quantised, x.shape[2]
    turned = q.transpose(1, 2)
    found = (torch.bmm(q, turned) / count, torch.bmm(x, turned) / count, mean[:, :, 0], mean_quantised[:, :, 0])
    return Moments(*(item.double().numpy() for item in found))


def _patches(layer: Layer, tensor: torch.Tensor, limit: int) -> torch.Tensor:
    """The inputs of one output each, float32 [G, K, positions]."""
    import torch

    if not layer.convolution:
        flat = tensor.reshape(-1, tensor.shape[-1])
        return _thinned(flat.t().unsqueeze(0), limit)
    kernel = tuple(int(n) for n in value(layer.weight_node).shape[2:])
    stride, padding, dilation = geometry(layer, len(kernel))
    if len(kernel) == 1:
        tensor, kernel = tensor.unsqueeze(-2), (1, *kernel)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    if tensor.dim() == 3:
        tensor = tensor.unsqueeze(0)
    unfolded = torch.nn.functional.unfold(tensor, kernel, dilation, padding, stride)  # [N, C·k, L]
    groups = unfolded.reshape(unfolded.shape[0], layer.groups, -1, unfolded.shape[2])
    return _thinned(groups.permute(1, 2, 0, 3).reshape(layer.groups, groups.shape[2], -1), limit)


def _thinned(matrix: torch.Tensor, limit: int) -> torch.Tensor:
    return matrix[:, :, :: max(1, -(-matrix.shape[2] // limit))]


def geometry(layer: Layer, dims: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(stride, padding, dilation) of a convolution, one number per axis."""
    args = list(layer.node.args)
    names = ("stride", "padding", "dilation")
    given = [
        args[index] if len(args) > index else layer.node.kwargs.get(name, default)
        for index, name, default in zip((3, 4, 5), names, (1, 0, 1), strict=True)
    ]
    wide = [(item,) * dims if isinstance(item, int) else tuple(item) * (dims // len(item)) for item in given]  # type: ignore[arg-type]
    return wide[0], wide[1], wide[2]


def suits(layer: Layer) -> bool:
    """Whether the layer's inputs can be laid out as columns: linear, or a convolution over one or two axes with its
    padding given in numbers."""
    shape = value(layer.weight_node).shape
    if not layer.convolution:
        return int(shape[1]) <= LARGEST
    padding = layer.node.args[4] if len(layer.node.args) > 4 else 0
    small = int(np.prod([int(n) for n in shape[1:]])) <= LARGEST
    return len(shape) in (3, 4) and small and not isinstance(padding, str) and operator(layer.node) != "convolution"


def target(weight: Floats, seen: Moments, ridge: float = PULL) -> Floats:
    """The weights [G, O, K] that best give, on quantised inputs, what `weight` gives on float ones."""
    damped = _damped(seen.quantised, ridge)
    gap = weight @ (seen.cross - seen.quantised)
    found: Floats = weight + np.linalg.solve(damped, gap.transpose(0, 2, 1)).transpose(0, 2, 1)
    return found


def spread(weight: Floats, scale: Floats, seen: Moments, codes: IntegerRange, ridge: float = RIDGE) -> NDArray[np.int8]:
    """Codes int8 [G, O, K] of `weight` at `scale` [G, O]: rounded column by column, the inputs of most energy first."""
    groups, _, columns = weight.shape
    order = np.argsort(-np.einsum("gkk->gk", seen.quantised), axis=1, kind="stable")
    rows = np.arange(groups)[:, None]
    work = np.take_along_axis(weight, order[:, None, :], axis=2).copy()
    matrix = _damped(seen.quantised, ridge)[rows[:, :, None], order[:, :, None], order[:, None, :]]
    inverse = np.linalg.inv(matrix)
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    made = np.empty(work.shape, np.int8)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = np.empty((groups, work.shape[1], stop - start))
        for k in range(start, stop):
            column = work[:, :, k]
            code = np.clip(np.rint(column / scale), codes.low, codes.high)
            made[:, :, k] = code
            error = (column - code * scale) / upper[:, k, k][:, None]
            work[:, :, k:stop] -= error[:, :, None] * upper[:, k, k:stop][:, None, :]
            errors[:, :, k - start] = error
        work[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    result = np.empty_like(made)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], made.shape), made, axis=2)
    return result


def _damped(matrix: Floats, ridge: float) -> Floats:
    """matrix + ridge · (mean of its diagonal) on the diagonal; never singular."""
    diagonal = np.einsum("gkk->gk", matrix)
    added = np.maximum(ridge * diagonal.mean(axis=1), 1e-12)
    damped: Floats = matrix + added[:, None, None] * np.eye(matrix.shape[1])
    return damped


def error(weight: Floats, decoded: Floats, seen: Moments, power: Floats) -> float:
    """Mean square of (weight · x − decoded · q) about its mean, from moments. `power` [G, K, K] is E[x·xᵀ]."""
    terms = (
        np.einsum("gok,gkl,gol->", weight, power, weight)
        - 2 * np.einsum("gok,gkl,gol->", weight, seen.cross, decoded)
        + np.einsum("gok,gkl,gol->", decoded, seen.quantised, decoded)
    )
    return float(terms)
