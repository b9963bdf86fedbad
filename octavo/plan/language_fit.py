"""Coefficients of plan/language.py from measurements of tokens per second and of the time to first token.

One linear model on the logarithm of efficiency (decode: share of bandwidth) and of rate (prompt: op/s):

    log c = mean + chip + device + runtime + precision + shape + noise

each term but the mean drawn from a normal distribution of the width in `WIDTHS`, so that a device with few rows leans
on the others, and one with none (any device whose bandwidth is given) has the mean with an interval to match. `shape`
is what a model's rows have in common; a model to be predicted has one of its own. Huber's loss (k = 1.345 σ). Rows that
agree in shape, device, precision and every figure are one measurement and share its weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any, Literal

import numpy as np

from octavo.core.facts import ModelFacts, WeightFacts
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan.language import NPU, Compiled, TokenReads, bytes_per_token, chunk_macs, shape_label
from octavo.plan.quantities import write

WIDTHS = {  # standard deviations of the terms of log c
    "mean": 3.0,
    "chip": 0.4,
    "device": 0.1,
    "runtime": 0.2,
    "precision": 0.5,
    "shape": 0.1,
}
NOISE = 0.12  # of log c; where the estimate starts, and what it is held to as if by so many rows:
NOISE_ROWS = 4.0
REPEAT = 0.08  # of log c, between two measurements of one architecture on one device; a judgement
HUBER = 1.345
SCORES = (0.0, 42.5, 85.0, 127.5, 170.0, 212.5, 255.0, 340.0)  # bytes per attention score that `choose_costs` weighs up
HEADS = (1.0, 2.0, 4.0)
CHUNKS = (0.0, 0.25e11, 0.5e11, 0.75e11, 1.0e11, 1.5e11, 2.0e11)
Z80 = 1.2816  # 80 % of a normal distribution
RUNTIMES = {"qnn_context_binary": "qnn", "qnn_dlc": "qnn", "precompiled_qnn_onnx": "qnn"}
KV_TYPE = {"w4": "f16"}  # the published packages cache 8 bits (q8_0 stands for it); w4 quantises no activation
Target = Literal["decode", "prefill"]
TARGETS: tuple[Target, Target] = ("decode", "prefill")
Figures = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class LanguageRow:
    """A measurement. `first_ms`: to the first token after a prompt of `prompt` tokens, 0 for none known."""

    model: str
    device: str
    runtime: str
    precision: str
    context: int
    tokens_per_second: float
    first_ms: float = 0.0
    prompt: int = 128

    @property
    def key(self) -> str:
        return f"{RUNTIMES.get(self.runtime, self.runtime)}.{self.precision}"


@dataclass(frozen=True)
class LanguageFit:
    """Coefficients by device and then `runtime.precision`, or `runtime.precision@shape` for an architecture measured
    there itself: `decode` shares of bandwidth, `prefill` op/s. `left_out`: the rows that could not be used, and why.
    `noise`: standard deviation of a row's logarithm around the fit."""

    decode: dict[str, dict[str, Quantity]]
    prefill: dict[str, dict[str, Quantity]]
    noise: dict[Target, float]
    left_out: tuple[str, ...] = ()

    def toml(self, device: str, *, rate: bool = True) -> str:
        """The tables of `device` for its file of coefficients; `rate`: those of prompts as well."""
        lines: list[str] = []
        tables = [("decode_efficiency", self.decode), ("prefill_efficiency", self.prefill)]
        for name, table in tables if rate else tables[:1]:
            lines += [f"[{name}]", *(f'"{key}" = {write(cell)}' for key, cell in table.get(device, {}).items()), ""]
        return "\n".join(lines)


def chip_name(soc: str) -> str:
    """The chip that a profile's `soc` names, without its part number and without whom it was tuned for."""
    return soc.partition(" (")[0].partition(" for ")[0].strip()


def npu_weight_bytes(weight: WeightFacts) -> float:
    """Bytes of a tensor in the published NPU packages: 4 bits and a float32 scale per channel, the head and a table 8
    bits (qai_hub_models/models/_shared/llm/model.py: `_set_lm_head_to_8b`), what is no matrix 16 bits."""
    if len(weight.shape) < 2:
        return 2.0 * weight.parameters
    bits = 8 if weight.role in ("head", "embedding") else 4
    return weight.parameters * bits / 8 + 4.0 * weight.shape[0]


def fit_language(
    rows: Sequence[LanguageRow],
    bandwidths: Mapping[str, float],
    facts: Mapping[str, ModelFacts],
    *,
    chips: Mapping[str, str] | None = None,
    weight_bytes: Callable[[WeightFacts], float] = npu_weight_bytes,
    costs: Compiled = NPU,
    keys: Sequence[str] = (),
    source: str = "",
    date: str = "",
) -> LanguageFit:
    """Fit every device of `bandwidths` [B/s]; `chips`: device → what it shares with others, else it stands alone;
    `keys`: kinds (`runtime.precision`) to answer for beside those of the rows.

    Raises BadInput when no row can be used; rows of an unknown model or device, and figures that are not positive, are
    left out by name.
    """
    usable, left_out = _usable(rows, bandwidths, facts)
    if not usable:
        raise BadInput(f"None of {len(rows)} rows can be fitted.", "; ".join(left_out[:3]) or "Give some.")
    chips = {device: (chips or {}).get(device, device) for device in bandwidths}
    measured = {row: token_reads(facts[row.model], row, weight_bytes) for row in usable}
    keys = sorted({row.key for row in usable} | set(keys))
    tables: dict[Target, dict[str, dict[str, Quantity]]] = {"decode": {}, "prefill": {}}
    noise: dict[Target, float] = {}
    for target in TARGETS:
        chosen = [row for row in usable if target == "decode" or row.first_ms > 0]
        if not chosen:
            continue
        effects = _Effects(chosen, facts, bandwidths, chips, keys)
        logs = _logs(target, chosen, measured, bandwidths, facts, costs)
        effects.fit(logs, _weights(chosen, measured))
        tables[target], noise[target] = effects.tables(target, logs, source, date), effects.noise
    return LanguageFit(tables["decode"], tables["prefill"], noise, tuple(left_out))


def choose_costs(
    rows: Sequence[LanguageRow],
    bandwidths: Mapping[str, float],
    facts: Mapping[str, ModelFacts],
    *,
    chips: Mapping[str, str] | None = None,
    weight_bytes: Callable[[WeightFacts], float] = npu_weight_bytes,
) -> Compiled:
    """The costs of a compiled graph with the least squared error of the logarithm, leaving out one shape of model at a
    time; rows whose device or kind no other shape has say nothing about costs and do not count.
    """
    usable, _ = _usable(rows, bandwidths, facts)
    chips = {device: (chips or {}).get(device, device) for device in bandwidths}
    measured = {row: token_reads(facts[row.model], row, weight_bytes) for row in usable}
    keys = sorted({row.key for row in usable})

    def best(target: Target, candidates: Iterable[Compiled]) -> Compiled:
        chosen = [row for row in usable if target == "decode" or row.first_ms > 0]
        effects, weights = _Effects(chosen, facts, bandwidths, chips, keys), _weights(chosen, measured)

        def loss(costs: Compiled) -> float:
            return effects.left_out_error(_logs(target, chosen, measured, bandwidths, facts, costs), weights)

        return min(candidates, key=loss)

    decoding = best("decode", (replace(NPU, score_bytes=score) for score in SCORES))
    prompts = (replace(decoding, head=head, chunk_macs=chunk) for head in HEADS for chunk in CHUNKS)
    return best("prefill", prompts) if any(row.first_ms > 0 for row in usable) else decoding


def token_reads(facts: ModelFacts, row: LanguageRow, weight_bytes: Callable[[WeightFacts], float]) -> TokenReads:
    """What a token of this row reads, at the whole of the context it was compiled for."""
    limit = facts.language.context if facts.language else 0
    context = min(row.context, limit) if limit else row.context
    return bytes_per_token(facts, weight_bytes, context, KV_TYPE.get(row.precision, "q8_0"))


def first_macs(facts: ModelFacts, row: LanguageRow, costs: Compiled) -> float:
    """Multiply-accumulates that the time to first token of this row takes the time of."""
    if facts.language is None:
        return float(row.prompt * facts.active_parameters + costs.chunk_macs * row.prompt / costs.chunk)
    context = min(row.context, facts.language.context or row.context)
    return chunk_macs(facts.language, costs, context) * row.prompt / costs.chunk


def _logs(
    target: Target, rows: Sequence[LanguageRow], reads: Mapping[LanguageRow, TokenReads],
    bandwidths: Mapping[str, float], facts: Mapping[str, ModelFacts], costs: Compiled,
) -> Figures:  # fmt: skip
    """[rows]: the logarithm of the coefficient that each row shows."""
    return np.array([log(_coefficient(target, row, reads[row], bandwidths, facts, costs)) for row in rows])


def _coefficient(
    target: Target, row: LanguageRow, reads: TokenReads, bandwidths: Mapping[str, float],
    facts: Mapping[str, ModelFacts], costs: Compiled,
) -> float:  # fmt: skip
    if target == "prefill":
        return 2 * first_macs(facts[row.model], row, costs) / (row.first_ms / 1e3)
    return row.tokens_per_second * (reads.total + costs.score_bytes * reads.scores) / bandwidths[row.device]


def _usable(
    rows: Sequence[LanguageRow], bandwidths: Mapping[str, float], facts: Mapping[str, ModelFacts]
) -> tuple[list[LanguageRow], list[str]]:
    usable, left_out = [], []
    for index, row in enumerate(rows):
        at = f"row {index + 1} ({row.model} on {row.device})"
        if row.model not in facts:
            left_out.append(f"{at}: the model's shape is not known")
        elif row.device not in bandwidths:
            left_out.append(f"{at}: the device's memory bandwidth is not known")
        elif not row.tokens_per_second > 0:
            left_out.append(f"{at}: {row.tokens_per_second} tokens/s")
        else:
            usable.append(row)
    return usable, left_out


def _weights(rows: Sequence[LanguageRow], reads: Mapping[LanguageRow, TokenReads]) -> Figures:
    """[rows]: one over the number of rows that are the same measurement under another name."""
    same = [(row.device, row.key, row.tokens_per_second, row.first_ms, reads[row]) for row in rows]
    count = Counter(same)
    return np.array([1 / count[one] for one in same])


def _shape(facts: ModelFacts) -> str:
    return shape_label(facts) or f"{facts.active_parameters} parameters"


class _Effects:
    """The linear model: columns of the design, its fit, and what follows for each device and key."""

    def __init__(
        self, rows: Sequence[LanguageRow], facts: Mapping[str, ModelFacts], bandwidths: Mapping[str, float],
        chips: Mapping[str, str], keys: Sequence[str],
    ) -> None:  # fmt: skip
        self.rows, self.devices, self.chips, self.keys = rows, list(bandwidths), chips, keys
        self.shapes = [_shape(facts[row.model]) for row in rows]
        names = [("mean", ""), *(("chip", chip) for chip in sorted(set(chips.values())))]
        names += [("device", device) for device in self.devices]
        names += [("runtime", word) for word in sorted({key.partition(".")[0] for key in keys})]
        names += [("precision", word) for word in sorted({key.partition(".")[2] for key in keys})]
        names += [("shape", shape) for shape in sorted(set(self.shapes))]
        self.column = {name: index for index, name in enumerate(names)}
        self.prior = np.array([WIDTHS[name[0]] ** -2 for name in names])
        self.mean, self.spread, self.noise = np.zeros(len(names)), np.diag(1 / self.prior), NOISE
        self.design = np.array(
            [self.line(row.device, row.key, shape) for row, shape in zip(rows, self.shapes, strict=True)]
        )

    def line(self, device: str, key: str, shape: str = "") -> Figures:
        """[columns]: the terms that a row of this device and key has; of a shape never seen, none of its own."""
        runtime, _, precision = key.partition(".")
        found = np.zeros(len(self.column))
        terms = [
            ("mean", ""),
            ("chip", self.chips[device]),
            ("device", device),
            ("runtime", runtime),
            ("precision", precision),
        ]
        found[[self.column[term] for term in [*terms, *([("shape", shape)] if shape else [])]]] = 1.0
        return found

    def fit(self, logs: Figures, weights: Figures) -> None:
        """Posterior mean and covariance, by reweighting; the noise from what is left, held to `NOISE`."""
        design, robust = self.design, weights.copy()
        for _ in range(30):
            precision = design.T * (robust / self.noise**2) @ design + np.diag(self.prior)
            self.spread = np.linalg.inv(precision)
            self.mean = self.spread @ (design.T @ (robust * logs)) / self.noise**2
            off = np.abs(logs - design @ self.mean)
            spent = float(((design @ self.spread * design).sum(1) * robust).sum()) / self.noise**2
            free = max(float(weights.sum()) - spent, 0.0)
            robust = weights * np.minimum(1.0, HUBER * self.noise / np.maximum(off, 1e-12))
            self.noise = float(np.sqrt((np.sum(robust * off**2) + NOISE_ROWS * NOISE**2) / (free + NOISE_ROWS)))

    def left_out_error(self, logs: Figures, weights: Figures) -> float:
        """Σ of squared errors of the rows of each shape as predicted by all others, in closed form: with C the
        covariance of the rows and z their logarithms, (C⁻¹)gg⁻¹ (C⁻¹ z)g (Rasmussen & Williams 2006, §5.4.2)."""
        inverse = np.linalg.inv(self.design / self.prior @ self.design.T + np.diag(NOISE**2 / weights))
        half = inverse @ (logs - np.average(logs, weights=weights))
        total = 0.0
        for shape in set(self.shapes):
            group = [index for index, one in enumerate(self.shapes) if one == shape]
            others = [row for row, one in zip(self.rows, self.shapes, strict=True) if one != shape]
            devices, keys = {row.device for row in others}, {row.key for row in others}
            off = np.linalg.solve(inverse[np.ix_(group, group)], half[group])
            counted = [self.rows[index].device in devices and self.rows[index].key in keys for index in group]
            total += float(np.sum(weights[group] * np.array(counted) * off**2))
        return total

    def tables(self, target: Target, logs: Figures, source: str, date: str) -> dict[str, dict[str, Quantity]]:
        """By device and key; and by `key@shape`, as measured, where this very architecture was on the device."""
        found: dict[str, dict[str, Quantity]] = {}
        for device in self.devices:
            cells = {key: self.fitted(target, device, key, source, date) for key in self.keys}
            here: dict[str, list[float]] = {}
            for row, shape, one in zip(self.rows, self.shapes, logs.tolist(), strict=True):
                if row.device == device:
                    here.setdefault(f"{row.key}@{shape}", []).append(one)
            for key, ones in here.items():
                said = f"as measured on this device with this very architecture ({_rows(len(ones))})"
                wide = exp(Z80 * REPEAT)
                cells[key] = _quantity(target, exp(sum(ones) / len(ones)), wide, len(ones), said, source, date)
            found[device] = cells
        return found

    def fitted(self, target: Target, device: str, key: str, source: str, date: str) -> Quantity:
        """The coefficient of this device and key for a model not seen yet, with an 80 % interval."""
        line = self.line(device, key)
        wide = exp(Z80 * float(np.sqrt(line @ self.spread @ line + self.noise**2 + WIDTHS["shape"] ** 2)))
        count, said = self._basis(device, key)
        return _quantity(target, exp(float(line @ self.mean)), wide, count, said, source, date)

    def _basis(self, device: str, key: str) -> tuple[int, str]:
        """How many rows of the device a coefficient rests on, and what else, in words."""
        count = sum(row.device == device and row.key == key for row in self.rows)
        if count:
            return count, f"fitted to {_rows(count)} of {key} on this device"
        chip = sum(self.chips[row.device] == self.chips[device] for row in self.rows)
        others = len({row.device for row in self.rows})
        return 0, f"no row of {key} on this device: pooled from {_rows(chip)} of its chip and from {others} devices"


def _quantity(target: Target, value: float, wide: float, count: int, said: str, source: str, date: str) -> Quantity:
    unit, top = ("1", max(1.0, value)) if target == "decode" else ("op/s", float("inf"))
    low, high = value / wide, min(value * wide, top)  # nothing reads faster than the memory
    text = f"{said}; {source}" if source else said
    return Quantity(_short(value), unit, Kind.ESTIMATED, _short(low), _short(high), count, text, date)


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _short(value: float) -> float:
    """Four digits: more would pretend."""
    return float(f"{value:.4g}")
