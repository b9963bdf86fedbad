"""What the compression cost a language model on text: perplexity and bits per byte of both sides, paired by token."""

from __future__ import annotations

from math import expm1, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.estimate import Estimate, Ratio, finite
from octavo.core.metrics import Likelihood, negative_log_likelihood
from octavo.errors import BadInput, OctavoError
from octavo.verify.accuracy import AccuracyReport
from octavo.verify.data import Text, Window
from octavo.verify.outputs import OutputComparison, OutputsReport, Run


class LanguageComparison:
    """Accumulates perplexity and bits per byte of both sides, and the paired difference of their logarithms."""

    def __init__(self) -> None:
        self._float, self._artifact, self._difference = Likelihood(), Likelihood(), Ratio()

    def add(self, window: Window, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Feed logits [n, vocabulary] of both sides for window.ids [n]."""
        targets = window.ids[1:]
        f, a = (negative_log_likelihood(side[:-1], targets) for side in (reference, candidate))
        self._float.add(window.cluster, f, window.bytes)
        self._artifact.add(window.cluster, a, window.bytes)
        self._difference.add(window.cluster, float((a - f).sum()), len(targets))

    def report(self, confidence: float = 0.95) -> AccuracyReport:
        """Perplexities, and as `drop` the relative increase, exp(mean difference of nll) − 1, paired."""
        change = self._difference.estimate(confidence)
        drop = Estimate(
            _expm1(change.value),
            None if change.low is None else _expm1(change.low),
            None if change.high is None else _expm1(change.high),
            change.n,
            confidence,
            change.clusters,
        )
        f, a = self._float.bits_per_byte(confidence), self._artifact.bits_per_byte(confidence)
        extra = {
            "log_perplexity_difference": change.as_dict(),
            "bits_per_byte": {
                "float": finite(f.value), "float_interval": f.interval,
                "artifact": finite(a.value), "artifact_interval": a.interval,
            },
        }  # fmt: skip
        sides = (self._float.perplexity(confidence), self._artifact.perplexity(confidence))
        return AccuracyReport("perplexity", *sides, drop, change.n, extra)


def compare_text(
    reference: Run, candidate: Run, text: Text, *, confidence: float = 0.95, progress: Any = None
) -> tuple[OutputsReport, AccuracyReport]:
    """Outputs (KL, agreement, …) and perplexity in one run of both sides: ids int64 [n] → logits [n, vocabulary].

    Raises OctavoError when a side gives logits of the wrong shape, BadInput when the text has ids past the vocabulary.
    """
    outputs, language = OutputComparison("logits"), LanguageComparison()
    for number, window in enumerate(text.windows):
        right, found = np.asarray(reference(window.ids)), np.asarray(candidate(window.ids))
        _check(window, right, "original")
        _check(window, found, "artifact")
        outputs.add({"logits": right}, {"logits": found}, window.cluster)
        language.add(window, right, found)
        if progress is not None:
            progress("outputs", number + 1, len(text.windows))
    report = language.report(confidence)
    report.extra.update(
        clustered_by=text.clustered_by,
        windows=len(text.windows),
        available=text.available,
        documents=text.documents,
        exact_bytes=text.exact_bytes,
    )
    return outputs.report(confidence), report


def _check(window: Window, logits: NDArray[Any], whose: str) -> None:
    if logits.ndim != 2 or len(logits) != len(window.ids):
        raise OctavoError(f"The {whose} gave logits {list(logits.shape)} for {len(window.ids)} tokens.")
    if int(window.ids.max()) >= logits.shape[1]:
        raise BadInput(f"Token {int(window.ids.max())} in the text; the {whose} has {logits.shape[1]} words.")


def _expm1(value: float) -> float:
    return expm1(value) if value < 700 else inf
