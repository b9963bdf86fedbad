"""What the compression cost on labelled data: float original and artifact on the same samples, paired."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.estimate import Estimate, Proportion, Ratio, finite, paired_difference
from octavo.core.metrics import Kind
from octavo.errors import BadInput
from octavo.verify.lazy import Samples
from octavo.verify.outputs import Arrays, OutputComparison, OutputsReport, Run, named

Metric = Callable[[Arrays, NDArray[np.int64]], float]


@dataclass(frozen=True)
class AccuracyReport:
    """A metric of both sides: the float original and the artifact.

    `drop` is what was lost: float minus artifact for an accuracy, artifact over float minus one for perplexity, so
    that more than zero is worse either way. `n` samples stand behind it. `extra`: further metrics by name.
    """

    metric: str
    original: Estimate
    artifact: Estimate
    drop: Estimate
    n: int
    extra: dict[str, Any] = field(default_factory=dict)

    def within(self, max_drop: float, confidence_bound: bool = False) -> bool:
        """Whether the paired estimate (or the upper end of its interval) keeps the budget; an unknown one does not."""
        value = self.drop.high if confidence_bound else self.drop.value
        return value is not None and value <= max_drop

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: {"float", "artifact", "drop", "interval", "n"} and what explains them."""
        return {
            "metric": self.metric,
            "float": finite(self.original.value),
            "artifact": finite(self.artifact.value),
            "drop": finite(self.drop.value),
            "interval": self.drop.interval,
            "n": self.n,
            "confidence": self.drop.confidence,
            "float_interval": self.original.interval,
            "artifact_interval": self.artifact.interval,
            **self.extra,
        }


def compare_accuracy(
    reference: Run,
    candidate: Run,
    data: Samples,
    *,
    output: str | None = None,
    top: tuple[int, ...] = (1,),
    metric: Metric | None = None,
    batch: int = 1,
    confidence: float = 0.95,
    outputs: OutputComparison | None = None,
) -> AccuracyReport:
    """Top-1 accuracy (and further `top`) of both sides on the same samples, or a `metric` of the user's.

    Both sides: {input: array} → {output: array} with class scores on the last axis; `output` names which, if there are
    several. `metric(outputs, labels) -> float` (higher is better) sees a whole set of samples at once, so its
    outputs are kept; its interval is a paired bootstrap over samples. `outputs` is fed along: both reports in one run.
    Raises BadInput without labels, for labels that no class has, or outputs that do not fit them.
    """
    if data.labels is None:
        raise BadInput("Accuracy needs labels.", "Give them as 'y' in the .npz (or name them with --y).")
    judge = _Kept(metric) if metric is not None else _Tops(top, output)
    for part in data.batches(batch):
        right, found = named(reference(part.inputs)), named(candidate(part.inputs))
        if outputs is not None:
            outputs.add(right, found)
        assert part.labels is not None
        judge.add(right, found, part.labels)
    return judge.report(confidence)


def correct(scores: NDArray[Any], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether each label [...] is among the `k` highest of scores [..., classes] (equals: the lowest index first).

    A row with NaN is never correct.
    """
    mine = np.take_along_axis(scores, labels[..., None], axis=-1)
    before = np.arange(scores.shape[-1]) < labels[..., None]
    rank = ((scores > mine) | ((scores == mine) & before)).sum(axis=-1)
    return np.asarray((rank < k) & ~np.isnan(scores).any(axis=-1))


class _Tops:
    """Counts right answers at each k; samples with several labels (a label per position) are clusters."""

    def __init__(self, top: tuple[int, ...], output: str | None) -> None:
        self._output, self._top, self._samples = output, top, 0
        self._float = {k: Proportion() for k in top}
        self._artifact = {k: Proportion() for k in top}
        self._difference = {k: Ratio() for k in top}
        self._only = {k: [0, 0] for k in top}
        self._single = True

    def add(self, right: Arrays, found: Arrays, labels: NDArray[np.int64]) -> None:
        name = _scores_name(right, self._output)
        sides = [_checked(side, name, labels) for side in (right, found)]
        self._single &= labels.ndim == 1
        for k in self._top:
            f, a = (correct(side, labels, k).reshape(len(labels), -1) for side in sides)
            self._only[k][0] += int((f & ~a).sum())
            self._only[k][1] += int((a & ~f).sum())
            for i in range(len(labels)):
                cluster, size = self._samples + i, f.shape[1]
                self._float[k].add(cluster, f[i].sum(), size)
                self._artifact[k].add(cluster, a[i].sum(), size)
                self._difference[k].add(cluster, int(f[i].sum()) - int(a[i].sum()), size)
        self._samples += len(labels)

    def report(self, confidence: float) -> AccuracyReport:
        reports = [self._one(k, confidence) for k in self._top]
        first, others = reports[0], reports[1:]
        extra = {item.metric: item.as_dict() for item in others}
        return AccuracyReport(first.metric, first.original, first.artifact, first.drop, first.n, extra)

    def _one(self, k: int, confidence: float) -> AccuracyReport:
        f, a = self._float[k].estimate(confidence), self._artifact[k].estimate(confidence)
        if self._single:
            drop = paired_difference(self._only[k][0], self._only[k][1], f.n, confidence)
        else:
            drop = self._difference[k].estimate(confidence)
        return AccuracyReport(f"top-{k}", f, a, drop, f.n)


class _Kept:
    """Keeps the outputs for a metric that sees a set whole."""

    RESAMPLES = 1000

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._right: list[Arrays] = []
        self._found: list[Arrays] = []
        self._labels: list[NDArray[np.int64]] = []

    def add(self, right: Arrays, found: Arrays, labels: NDArray[np.int64]) -> None:
        self._right.append({name: np.array(value) for name, value in right.items()})
        self._found.append({name: np.array(value) for name, value in found.items()})
        self._labels.append(labels)

    def report(self, confidence: float) -> AccuracyReport:
        """Paired percentile bootstrap (Efron & Tibshirani 1993, ch. 13): the same resample for both sides."""
        right, found, labels = _joined(self._right), _joined(self._found), np.concatenate(self._labels)
        n = len(labels)
        whole = np.array([float(self._metric(side, labels)) for side in (right, found)])
        random = np.random.default_rng(0)
        draws = np.empty((self.RESAMPLES, 3))
        for row in draws:
            index = random.integers(0, n, n)
            first, second = (
                self._metric({k: v[index] for k, v in side.items()}, labels[index]) for side in (right, found)
            )
            row[:] = first, second, first - second
        ends = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
        original, artifact, drop = (
            Estimate(float(value), float(low), float(high), n, confidence)
            for value, low, high in zip((*whole, whole[0] - whole[1]), *ends, strict=True)
        )
        return AccuracyReport(getattr(self._metric, "__name__", "metric"), original, artifact, drop, n)


def _joined(parts: list[Arrays]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores_name(outputs: Arrays, name: str | None) -> str:
    if name is None and len(outputs) == 1:
        return next(iter(outputs))
    if name is None or name not in outputs:
        what = f"no output '{name}'" if name else "several outputs"
        raise BadInput(f"The model has {what}: {', '.join(outputs)}.", "Name the one with the class scores.")
    return name


def _checked(outputs: Mapping[str, NDArray[Any]], name: str, labels: NDArray[np.int64]) -> NDArray[Any]:
    scores = np.asarray(outputs[name])
    if scores.shape[:-1] != labels.shape:
        raise BadInput(f"Output '{name}' {list(scores.shape)} does not fit labels {list(labels.shape)}.")
    if labels.size and labels.max() >= scores.shape[-1]:
        raise BadInput(f"Label {labels.max()} for an output '{name}' of {scores.shape[-1]} classes.")
    return scores


def compare_both(
    reference: Run, candidate: Run, data: Samples, *, kind: Kind = "logits", **options: Any
) -> tuple[OutputsReport, AccuracyReport | None]:
    """Outputs and, where there are labels, accuracy, in one run of both sides; options as of `compare_accuracy`."""
    comparison, confidence = OutputComparison(kind), options.get("confidence", 0.95)
    if data.labels is None:
        for part in data.batches(options.get("batch", 1)):
            comparison.add(named(reference(part.inputs)), named(candidate(part.inputs)))
        return comparison.report(confidence), None
    accuracy = compare_accuracy(reference, candidate, data, outputs=comparison, **options)
    return comparison.report(confidence), accuracy
