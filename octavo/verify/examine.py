"""What calibration data look like, and what about them will spoil the ranges that are taken from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput
from octavo.verify.lazy import Samples
from octavo.verify.shapes import fits, shown, turned

FEW = 32
FAR = 20.0  # times the other set's largest magnitude: another unit, not another photograph
BYTES = (200.0, 255.0)  # where the maximum of 8-bit values lies
SHIFTED = 3.0  # standard deviations between the means of the two sets


@dataclass(frozen=True)
class InputStatistics:
    """Of one input over all samples. `zero_channels`: those that are 0 everywhere; `blank`: samples of one value."""

    low: float
    high: float
    mean: float
    std: float
    whole: bool
    channels: int
    zero_channels: tuple[int, ...]
    constant_channels: tuple[int, ...]
    blank: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "min": self.low, "max": self.high, "mean": self.mean, "std": self.std,
            "zero_channels": list(self.zero_channels), "constant_channels": list(self.constant_channels),
            "blank": self.blank,
        }  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """`warnings` are sentences for the record's notes; `inputs` the statistics behind them."""

    samples: int
    inputs: dict[str, InputStatistics]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "inputs": {name: item.as_dict() for name, item in self.inputs.items()},
            "warnings": list(self.warnings),
        }


def examine(
    data: Samples,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    beside: Findings | None = None,
    raw_bytes: bool = False,
) -> Findings:
    """Read `data` once and judge it as calibration data.

    `shapes`: the model's inputs, batch first, −1 where free. `beside`: the findings of the evaluation data, whose range
    this should share. `raw_bytes`: 0–255 is what the model takes, as a preprocess.toml said.
    Raises BadInput for NaN, infinity and wrong shapes: those are not to be calibrated on.
    """
    seen: dict[str, _Running] = {}
    for number, part in enumerate(data.batches(1)):
        for name, array in part.inputs.items():
            _check(name, array, None if shapes is None else shapes.get(name), number)
            seen.setdefault(name, _Running(array.shape[1:])).add(array[0])
    if not seen:
        raise BadInput("No calibration samples.", "Give at least one; a hundred is a good start.")
    inputs = {name: running.result() for name, running in seen.items()}
    warnings = _few(len(data))
    for name, item in inputs.items():
        warnings += _constant(name, item, len(data))
        other = None if beside is None else beside.inputs.get(name)
        warnings += _range(name, item, raw_bytes) if other is None else _against(name, item, other)
    return Findings(len(data), inputs, tuple(warnings))


def _few(count: int) -> list[str]:
    """How much a range seen on so few samples may miss: with probability 95 % a new sample's extreme exceeds it with at
    most 1 − 0.05^(1/n) (a binomial with no event in n trials)."""
    if count >= FEW:
        return []
    beyond = 1 - 0.05 ** (1 / count)
    return [
        f"Only {count} calibration samples: up to {beyond:.0%} of new ones (at 95 % confidence) may exceed a range "
        f"seen on these. Give {FEW} or more."
    ]


def _constant(name: str, item: InputStatistics, count: int) -> list[str]:
    if item.low == item.high:
        return [f"Input '{name}' is {item.low:g} in every calibration sample: nothing can be calibrated on it."]
    found = []
    for channels, what in ((item.zero_channels, "0"), (item.constant_channels, "constant")):
        if channels:
            shown_channels = ", ".join(map(str, channels[:5])) + (", …" if len(channels) > 5 else "")
            found.append(
                f"Input '{name}': {len(channels)} of {item.channels} channels are {what} in every calibration sample "
                f"(channel {shown_channels})."
            )
    if item.blank:
        found.append(f"Input '{name}': {item.blank} of {count} calibration samples are blank (one value throughout).")
    return found


def _range(name: str, item: InputStatistics, raw_bytes: bool) -> list[str]:
    if raw_bytes or not (item.whole and item.low >= 0 and BYTES[0] <= item.high <= BYTES[1]):
        return []
    return [
        f"Input '{name}' holds whole numbers from {item.low:g} to {item.high:g}, which look like raw bytes. If the "
        "model was trained on 0–1 or normalised values, scale them first."
    ]


def _against(name: str, item: InputStatistics, other: InputStatistics) -> list[str]:
    mine, theirs = (max(abs(side.low), abs(side.high)) for side in (item, other))
    spans = f"{item.low:.4g} to {item.high:.4g}, the evaluation data {other.low:.4g} to {other.high:.4g}"
    if max(mine, theirs) > FAR * min(mine, theirs):
        bytes_like = max(mine, theirs) > BYTES[0] / 4
        why = " (0–255 given for 0–1?)" if bytes_like else ""
        return [f"Input '{name}': the calibration data span {spans}: another scale{why}. Ranges will be wrong."]
    if abs(item.mean - other.mean) > SHIFTED * max(item.std, other.std):
        return [
            f"Input '{name}': the calibration data have mean {item.mean:.4g}, the evaluation data {other.mean:.4g}."
        ]
    return []


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...] | None, number: int) -> None:
    if shape is not None and not fits(array.shape, shape):
        raise BadInput(
            f"Calibration sample {number}, input '{name}': {list(array.shape[1:])}; the model takes {shown(shape)}.",
            turned(array.shape, shape),
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise BadInput(f"Calibration sample {number}, input '{name}': {bad} NaN or infinite values of {array.size}.")


class _Running:
    """Statistics of one input, sample by sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._axis = _channel_axis(shape)
        self._lows: NDArray[np.float64] | None = None
        self._highs: NDArray[np.float64] | None = None
        self._count, self._sum, self._squares, self._blank, self._whole = 0, 0.0, 0.0, 0, True

    def add(self, sample: NDArray[Any]) -> None:
        values = np.asarray(sample)
        if self._axis is None:
            low, high = np.array([values.min()], np.float64), np.array([values.max()], np.float64)
        else:
            others = tuple(axis for axis in range(values.ndim) if axis != self._axis)
            low, high = values.min(axis=others).astype(np.float64), values.max(axis=others).astype(np.float64)
        self._lows = low if self._lows is None else np.minimum(self._lows, low)
        self._highs = high if self._highs is None else np.maximum(self._highs, high)
        self._count += values.size
        self._sum += float(values.sum(dtype=np.float64))
        self._squares += float(np.square(values, dtype=np.float64).sum())
        self._blank += int(values.size > 1 and low.min() == high.max())
        if self._whole and values.dtype.kind == "f":
            self._whole = bool((values == np.rint(values)).all())

    def result(self) -> InputStatistics:
        assert self._lows is not None
        assert self._highs is not None
        mean = self._sum / self._count
        constant = self._lows == self._highs
        zero = constant & (self._lows == 0)
        return InputStatistics(
            float(self._lows.min()), float(self._highs.max()), mean,
            float(max(self._squares / self._count - mean * mean, 0.0) ** 0.5), self._whole, len(self._lows),
            tuple(int(i) for i in np.flatnonzero(zero)), tuple(int(i) for i in np.flatnonzero(constant & ~zero)),
            self._blank,
        )  # fmt: skip


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Of a sample [c, h, w] or [h, w, c]: the shorter end, where there is more than one channel; else none."""
    if len(shape) != 3:
        return None
    axis = 0 if shape[0] <= shape[2] else 2
    return axis if shape[axis] > 1 else None
