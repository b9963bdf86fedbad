"""Fits the latency of networks to measurements: from rows (features, device, runtime, precision, ms) to Coefficients.

t [ms] = Σ terms[k] · features[k], all terms ≥ 0, so that more work never takes less time. A term is hard to tell from a
dozen models on one device, so it is fitted in four steps, each pulled towards the one before with what the rows do not
say otherwise:

1. coarse: multiply-accumulates of all kinds have one cost, elements of all kinds too (COARSE, weighed by LIKELY); over
   all devices and runtimes of a family (8-bit activations or wider; the units that were asked for, or a fallback), each
   config with a speed of its own;
2. shape: every term by itself, over the same rows;
3. runtime: per runtime × precision, each device with a speed of its own;
4. device: per device × runtime × precision.

How hard a step pulls cannot be told from so few models either: the terms are the mean over SETTINGS, loose to tight.

The interval is what models that were left out of the fit showed (`left_out`). A config is a fallback (what was asked of
another unit ran on the CPU) where its device lags the middling one many times further than it does at its best: told
from the latencies alone, since which unit ran is an outcome that nobody has beforehand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, isfinite, nan
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput
from octavo.plan.device import Coefficients
from octavo.plan.features import TERMS
from octavo.plan.latency import base_precision, stretch, value_of
from octavo.plan.nnls import LOWEST, Array, robust_fit

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
FALLBACK = 4.0  # times further behind the middling device than the same device is at its best
LEAST_MODELS = 8  # whose errors an interval rests on
COARSE = {
    "inference": ("inference",),
    "macs": ("dense_gmacs", "narrow_gmacs"),
    "parameters": ("mparameters",),
    "elements": tuple(name for name in TERMS if name.endswith("_melements")),
    "operators": ("hundred_operators",),
}
# What a unit of a kind costs beside the plainest of its class, before any latency is seen: the inverse of how much the
# published classifier with most of it has (rounded), as if each kind were scarce where it is dear.
LIKELY = {
    "narrow_gmacs": 3.0, "depthwise_melements": 1.5, "matmul_melements": 1.5, "attention_melements": 4.0,
    "softmax_melements": 5.0, "norm_melements": 4.0, "activation_melements": 0.7, "elementwise_melements": 1.3,
    "batchnorm_melements": 3.0, "moved_melements": 1.3, "permuted_melements": 1.3,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measurement: latency of a model [ms] with its features. `weight`: how much it counts against others; rows
    under 1 shape the terms and are never reported on. `unit`: where it ran, as a label; the fit does not see it."""

    model: str
    device: str
    runtime: str
    precision: str
    latency_ms: float
    features: Mapping[str, float]
    weight: float = 1.0
    unit: str = ""


@dataclass(frozen=True)
class Settings:
    """How hard each step pulls (a term's relative deviation, squared, against a row's squared relative error), and the
    error of log latency beyond which a row counts linearly. `likely`: step 1 weighs the kinds of a class as LIKELY
    does, else all alike."""

    shape: float = 1.0
    runtime: float = 0.3
    device: float = 0.03
    huber: float = 0.2
    likely: bool = True


SETTINGS = (Settings(), Settings(runtime=1.0, device=0.1), Settings(runtime=0.1, device=0.01), Settings(likely=False))


@dataclass(frozen=True)
class LeftOut:
    """A row predicted by a fit that did not see its model: ms, and by how much its interval is stretched."""

    row: Row
    predicted: float
    stretch: float

    @property
    def log_ratio(self) -> float:
        """log(measured / predicted)."""
        return float(np.log(self.row.latency_ms / self.predicted))


@dataclass(frozen=True)
class Terms:
    """What one step of the fit found for a group: ms per unit of each feature, and the features' ranges."""

    terms: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    fallback: bool


Config = tuple[str, str, str]  # device, runtime, precision


@dataclass
class Fit:
    """Terms by config, and by (runtime, precision) for a device without rows of its own."""

    configs: dict[Config, Terms] = field(default_factory=dict)
    shared: dict[tuple[str, str], Terms] = field(default_factory=dict)

    def of(self, device: str, runtime: str, precision: str) -> Terms | None:
        """The config's terms, else the runtime's at a middling device's speed, else those of any runtime."""
        word = base_precision(precision)
        found = self.configs.get((device, runtime, word)) or self.shared.get((runtime, word))
        if found is not None or not self.shared:
            return found
        near = [key for key in self.shared if key[1] == word] or list(self.shared)
        return self.shared[sorted(near)[0]]


def fit_measurements(
    rows: Sequence[Row], *, source: str, date: str, settings: Sequence[Settings] = SETTINGS
) -> dict[str, tuple[Coefficients, ...]]:
    """Coefficients by device, each with its error and interval from models left out one at a time.

    Raises BadInput: no rows; a latency that is not a positive number; a feature that no reader counts.
    """
    checked(rows)
    held = left_out(rows, settings)
    found: dict[str, list[Coefficients]] = defaultdict(list)
    for config, terms in fit(rows, settings).configs.items():
        own = [row for row in rows if _config(row) == config and row.weight >= 1]
        if own:
            found[config[0]].append(_coefficients(config, terms, own, held, source, date))
    return {device: tuple(items) for device, items in sorted(found.items())}


def _coefficients(
    config: Config, terms: Terms, own: Sequence[Row], held: Sequence[LeftOut], source: str, date: str
) -> Coefficients:
    _, runtime, precision = config
    errors = [abs(exp(-one.log_ratio) - 1) for one in held if _config(one.row) == config]
    low, high = interval(alike(held, runtime, precision))
    return Coefficients(
        runtime=runtime,
        unit=own[0].unit or ("cpu" if terms.fallback else "npu"),
        precision=precision,
        terms={name: _short(value) for name, value in terms.terms.items() if value > 0},
        low=round(low, 4),
        high=round(high, 4),
        median_error=round(float(np.median(errors)), 4) if errors else nan,
        p90_error=round(float(np.quantile(errors, 0.9)), 4) if errors else nan,
        rows=len(own),
        models=len({row.model for row in own}),
        ranges={name: (_short(low), _short(high)) for name, (low, high) in terms.ranges.items()},
        source=source,
        date=date,
    )


def _short(value: float) -> float:
    """Four digits: what a profile holds."""
    return float(f"{value:.4g}")


def checked(rows: Sequence[Row]) -> None:
    """Raise BadInput for what cannot be fitted."""
    units: dict[Config, set[str]] = defaultdict(set)
    if not rows:
        raise BadInput("No rows to fit.", "Give measurements: model, device, runtime, precision, latency_ms.")
    for row in rows:
        if not (isfinite(row.latency_ms) and row.latency_ms > 0):
            raise BadInput(
                f"{row.model} on {row.device}: a latency of {row.latency_ms} ms.", "Leave out rows without a latency."
            )
        if unknown := set(row.features) - set(TERMS):
            raise BadInput(
                f"{row.model}: unknown features {', '.join(sorted(unknown))}.", f"Known: {', '.join(TERMS)}."
            )
        units[_config(row)].add(row.unit)
    for config, named in units.items():
        if len(named) > 1:
            raise BadInput(
                f"{', '.join(config)}: ran on {', '.join(sorted(name or 'an unnamed unit' for name in named))}.",
                "Fit the rows of one unit at a time.",
            )


def left_out(rows: Sequence[Row], settings: Sequence[Settings] = SETTINGS, folds: int | None = None) -> list[LeftOut]:
    """Every row as predicted by a fit on the other models' rows; `folds`: groups of models left out together (default:
    every model by itself). Rows whose precision no other model has are absent."""
    models = sorted({row.model for row in rows if row.weight >= 1})
    count = min(folds or len(models), len(models))
    table, found = _Table(rows), []
    for fold in range(count):
        away = set(models[fold::count])
        keep = np.array([row.model not in away for row in rows])
        if not keep.any():
            continue
        made = table.mean(keep, settings)
        for row in rows:
            if row.model in away and (one := predicted(made, row)) is not None:
                found.append(one)
    return found


def predicted(made: Fit, row: Row) -> LeftOut | None:
    """A row under a fit that has not seen its model; None where the fit knows no config like it."""
    terms = made.of(row.device, row.runtime, row.precision)
    if terms is None:
        return None
    value = max(value_of(terms.terms, row.features), LOWEST)
    return LeftOut(row, value, stretch(terms.terms, terms.ranges, row.features)[0])


def interval(held: Iterable[LeftOut], share: float = 0.8) -> tuple[float, float]:
    """Factors on a prediction between which `share` of the left-out rows lie, per unit of stretch."""
    given = list(held)
    if not given:
        return 0.5, 2.0
    ratios = np.sort([one.log_ratio / one.stretch for one in given])
    low, high = np.quantile(ratios, [(1 - share) / 2, (1 + share) / 2])
    return exp(min(float(low), -0.01)), exp(max(float(high), 0.01))


def alike(held: Sequence[LeftOut], runtime: str, precision: str) -> list[LeftOut]:
    """Left-out rows of the same runtime and precision if enough models had them; else of the precision; else all."""
    same = [one for one in held if base_precision(one.row.precision) == precision]
    for group in ([one for one in same if one.row.runtime == runtime], same):
        if len({one.row.model for one in group}) >= LEAST_MODELS:
            return group
    return list(held)


def fit(rows: Sequence[Row], settings: Sequence[Settings] = SETTINGS) -> Fit:
    """The four steps over all rows."""
    return _Table(rows).mean(np.ones(len(rows), bool), settings)


def _config(row: Row) -> Config:
    return row.device, row.runtime, base_precision(row.precision)


class _Table:
    """The rows as arrays: features [N, K], latency [N], and per row the number of its config, family and so on."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.names = tuple(TERMS)
        self.x = np.array([[row.features.get(name, 0.0) for name in self.names] for row in rows])
        self.y = np.array([row.latency_ms for row in rows])
        self.weight = np.array([row.weight for row in rows])
        self.configs = sorted({_config(row) for row in rows})
        number = {config: index for index, config in enumerate(self.configs)}
        self.config = np.array([number[_config(row)] for row in rows])
        self.cells = _numbers((row.runtime, base_precision(row.precision), row.model) for row in rows)
        self.coarse = np.array([next(i for i, c in enumerate(COARSE.values()) if n in c) for n in self.names])

    def mean(self, keep: Mask, settings: Sequence[Settings]) -> Fit:
        """The mean of the fits under several settings."""
        fits = [self.fit(keep, one) for one in settings]
        return Fit(
            {key: _mean([one.configs[key] for one in fits]) for key in fits[0].configs},
            {key: _mean([one.shared[key] for one in fits]) for key in fits[0].shared},
        )

    def fit(self, keep: Mask, settings: Settings) -> Fit:
        """The four steps over the rows in `keep`."""
        fallback = self._fallbacks(keep)
        groups: dict[tuple[bool, bool], dict[tuple[str, str], list[int]]] = {}
        for index in np.unique(self.config[keep]):
            _, runtime, precision = self.configs[index]
            family = bool(fallback[index]), precision.endswith("a8")
            groups.setdefault(family, {}).setdefault((runtime, precision), []).append(int(index))
        made = Fit()
        for (slow, _), runtimes in sorted(groups.items()):
            rows = np.flatnonzero(keep & np.isin(self.config, [i for group in runtimes.values() for i in group]))
            shape = self._shape(rows, settings)
            for key, configs in sorted(runtimes.items()):
                self._runtime(made, key, rows[np.isin(self.config[rows], configs)], shape, settings, slow)
        return made

    def _fallbacks(self, keep: Mask) -> Mask:
        """Configs whose device is slower than the middling one by much more than it is at its best."""
        behind = np.full(len(self.configs), np.nan)
        middle = self._middles(keep)
        for index in np.unique(self.config[keep]):
            own = keep & (self.config == index)
            behind[index] = _median(np.log(self.y[own] / middle[self.cells[own]]), self.weight[own])
        device = _numbers(config[0] for config in self.configs)
        best = [np.nanmin(np.append(behind[device == number], np.inf)) for number in range(device.max() + 1)]
        return np.array(behind - np.array(best)[device] > np.log(FALLBACK))

    def _middles(self, keep: Mask) -> Array:
        """The median over devices of a model's latency at a runtime and precision, by `cells`."""
        order = np.flatnonzero(keep)[np.argsort(self.cells[keep], kind="stable")]
        found = np.ones(self.cells.max() + 1)
        for part in np.split(order, np.flatnonzero(np.diff(self.cells[order])) + 1):
            found[self.cells[part[0]]] = np.median(self.y[part])
        return found

    def _shape(self, rows: Ints, settings: Settings) -> Array:
        """Steps 1 and 2: what each term costs relative to the others."""
        x, y, weight, config = self.x[rows], self.y[rows], self.weight[rows], _numbers(self.config[rows])
        likely = np.array([LIKELY.get(name, 1.0) if settings.likely else 1.0 for name in self.names])
        classes = np.stack([(x * likely)[:, self.coarse == index].sum(1) for index in range(len(COARSE))], 1)
        plain, _ = _with_speeds(classes, y, config, None, 0.0, weight, settings.huber)
        usual = np.average(classes, 0, weight)
        coarse = np.maximum(plain, 0.005 * float(plain @ usual) / np.maximum(usual, 1e-3))[self.coarse] * likely
        pull = settings.shape * (config.max() + 1)
        fine, _ = _with_speeds(x, y, config, coarse, pull, weight, settings.huber)
        return np.where(x.max(0) > 0, np.maximum(fine, 0.02 * coarse), coarse)

    def _runtime(
        self, made: Fit, key: tuple[str, str], rows: Ints, shape: Array, settings: Settings, fallback: bool
    ) -> None:
        """Steps 3 and 4, into `made`."""
        x, y, weight, config = self.x[rows], self.y[rows], self.weight[rows], self.config[rows]
        order = np.unique(config)
        pull = settings.runtime * len(order)
        terms, speeds = _with_speeds(x, y, np.searchsorted(order, config), shape, pull, weight, settings.huber)
        usual = np.average(x, 0, weight)
        likened = float(terms @ usual) / float(shape @ usual)
        terms = np.maximum(terms, 0.02 * shape * likened)
        lows, highs = self.x[rows].min(0), self.x[rows].max(0)
        ranges = {n: (float(a), float(b)) for n, a, b in zip(self.names, lows, highs, strict=True) if n != "inference"}
        for speed, index in zip(speeds, order, strict=True):
            own = config == index
            found = robust_fit(x[own], y[own], terms * speed, settings.device, weight[own], settings.huber, 4)
            made.configs[self.configs[index]] = self._terms(found, ranges, fallback)
        if not fallback or key not in made.shared:
            made.shared[key] = self._terms(terms * float(np.median(speeds)), ranges, fallback)

    def _terms(self, found: Array, ranges: dict[str, tuple[float, float]], fallback: bool) -> Terms:
        return Terms({n: float(v) for n, v in zip(self.names, found, strict=True)}, ranges, fallback)


def _mean(found: Sequence[Terms]) -> Terms:
    return replace(found[0], terms={name: fmean(one.terms[name] for one in found) for name in found[0].terms})


def _numbers(keys: Iterable[object]) -> Ints:
    """Equal keys get equal numbers, from 0."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def _with_speeds(
    x: Array, y: Array, group: Ints, prior: Array | None, pull: float, weight: Array, huber: float
) -> tuple[Array, Array]:
    """Terms [K] that all groups share, and a speed for each [G]: y ≈ speed[group] · X·terms, one after the other."""
    guess = np.ones(len(y)) if prior is None else np.maximum(x @ prior, LOWEST)
    speed = np.exp(np.bincount(group, np.log(y / guess) * weight) / np.bincount(group, weight))
    terms = np.zeros(x.shape[1]) if prior is None else prior
    for _ in range(4):
        terms = robust_fit(x, y / speed[group], prior, pull, weight, huber, 3)
        left = np.log(y / np.maximum(x @ terms, LOWEST))
        speed = np.exp([_median(left[group == index], weight[group == index]) for index in range(len(speed))])
    return terms, speed


def _median(values: Array, weight: Array) -> float:
    """The median of what counts most: rows of lesser weight speak only where there are no others."""
    return float(np.median(values[weight >= min(1.0, float(weight.max()))]))
