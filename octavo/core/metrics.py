"""How far an artifact's outputs lie from the reference's: SQNR, cosine, KL divergence, agreement, perplexity.

Everything is computed in float64 and fed window by window, in row blocks: logits are never held for a whole data set,
nor a float64 copy of one window's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from math import exp, inf, isfinite, log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from octavo.core.estimate import Estimate, Proportion, Ratio

Floats = NDArray[np.floating[Any]]
Kind = Literal["logits", "values"]
BLOCK_ELEMENTS = 1 << 21  # 16 MiB of float64 per temporary


def sqnr_db(reference: Floats, artifact: Floats) -> float:
    """Signal to quantisation noise: 10·log10(Σ r² / Σ (r − a)²) in dB; inf when equal, −inf for a zero reference."""
    power = Ratio()
    power.add(0, *_power(np.ravel(reference), np.ravel(artifact)))
    return power.decibels().value


def cosine(reference: Floats, artifact: Floats) -> NDArray[np.float64]:
    """Per row of [rows, columns]: Σ r·a / (‖r‖·‖a‖), float64 [rows]. Two zero rows count 1, one zero row 0."""
    r, a = np.asarray(reference, np.float64), np.asarray(artifact, np.float64)
    lengths = np.sqrt((r * r).sum(axis=1) * (a * a).sum(axis=1))
    both_zero = ~(r.any(axis=1) | a.any(axis=1))
    safe = np.where(lengths > 0, lengths, 1.0)
    return np.asarray(np.where(both_zero, 1.0, (r * a).sum(axis=1) / np.where(np.isnan(lengths), np.nan, safe)))


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """log softmax along the last axis in float64: z − max − ln Σ exp(z − max)."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def kl_divergence(reference: Floats, artifact: Floats) -> NDArray[np.float64]:
    """Per row of logits [rows, vocabulary]: KL(p‖q) = Σ p·(ln p − ln q) in nats, p the reference's softmax."""
    log_p, log_q = log_softmax(reference), log_softmax(artifact)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # a token ruled out by −inf: p = 0, and 0·ln 0 is 0
        return np.asarray(np.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1))


def agreement(reference: Floats, artifact: Floats) -> NDArray[np.bool_]:
    """Per row: whether both put the same column first (the lowest index among equals)."""
    return np.asarray(reference.argmax(axis=-1) == artifact.argmax(axis=-1))


def negative_log_likelihood(logits: Floats, targets: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """−ln softmax(logits)[target] in nats for logits [rows, vocabulary] and targets [rows]; float64 [rows]."""
    found = np.empty(len(targets), np.float64)
    for rows in row_blocks(*logits.shape):
        z = np.asarray(logits[rows], np.float64)
        top = z.max(axis=-1)
        total = np.log(np.exp(z - top[:, None]).sum(axis=-1))
        found[rows] = total + top - np.take_along_axis(z, targets[rows, None], axis=-1)[:, 0]
    return found


def perplexity(mean_nll: Estimate) -> Estimate:
    """exp of a mean negative log likelihood (nats per token) and of the ends of its interval."""
    low, high = (None if end is None else _exp(end) for end in (mean_nll.low, mean_nll.high))
    return Estimate(_exp(mean_nll.value), low, high, mean_nll.n, mean_nll.confidence, mean_nll.clusters)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows whose float64 copy stays small."""
    step = max(1, BLOCK_ELEMENTS // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@dataclass(frozen=True)
class Distances:
    """The four distances of one output; `kl` and `agreement` are None for outputs that are no logits.

    `nonfinite` counts values of the artifact that are NaN or infinite where the reference is finite; with any of those
    SQNR, cosine and KL are NaN, which no bound admits.
    """

    sqnr_db: Estimate
    cosine: Estimate
    kl: Estimate | None
    agreement: Estimate | None
    identical: bool
    nonfinite: int


class Distance:
    """Accumulates `Distances` over windows or samples."""

    def __init__(self, kind: Kind = "logits") -> None:
        self._power, self._cosine = Ratio(), Ratio()
        self._kl = Ratio() if kind == "logits" else None
        self._agreement = Proportion() if kind == "logits" else None
        self._identical, self._nonfinite = True, 0

    def add(self, reference: Floats, artifact: Floats, cluster: Hashable) -> None:
        """Feed rows [rows, columns] of both sides. Raises ValueError when the shapes differ."""
        if reference.shape != artifact.shape or reference.ndim != 2:
            raise ValueError(f"shapes {reference.shape} and {artifact.shape}: two equal matrices are compared")
        for rows in row_blocks(*reference.shape):
            self._add(reference[rows], artifact[rows], cluster)

    def _add(self, reference: Floats, artifact: Floats, cluster: Hashable) -> None:
        rows = len(reference)
        same = reference == artifact  # equal infinities (masked tokens) carry no error
        self._identical &= bool(same.all())
        self._nonfinite += int((~np.isfinite(artifact) & ~same).sum())
        masked = same & np.isinf(reference)
        plain_r, plain_a = (np.where(masked, 0, side) for side in (reference, artifact))
        with np.errstate(invalid="ignore", over="ignore"):
            self._power.add(cluster, *_power(plain_r, plain_a), n=rows)
            self._cosine.add(cluster, cosine(plain_r, plain_a).sum(), rows)
            if self._kl is not None and self._agreement is not None:
                self._kl.add(cluster, kl_divergence(reference, artifact).sum(), rows)
                self._agreement.add(cluster, agreement(reference, artifact).sum(), rows)

    def result(self, confidence: float = 0.95) -> Distances:
        return Distances(
            self._power.decibels(confidence),
            self._cosine.estimate(confidence),
            None if self._kl is None else self._kl.estimate(confidence),
            None if self._agreement is None else self._agreement.estimate(confidence),
            self._identical,
            self._nonfinite,
        )


class Likelihood:
    """Accumulates perplexity and bits per byte over windows."""

    def __init__(self) -> None:
        self._per_token, self._per_byte = Ratio(), Ratio()

    def add(self, cluster: Hashable, nll: NDArray[np.float64], text_bytes: float) -> None:
        """Feed the nats of the scored tokens and the bytes of text that they stand for."""
        total, tokens = float(nll.sum()), len(nll)
        self._per_token.add(cluster, total, tokens)
        self._per_byte.add(cluster, total / log(2), text_bytes, tokens)

    def perplexity(self, confidence: float = 0.95) -> Estimate:
        """exp(Σ nll / tokens)."""
        return perplexity(self._per_token.estimate(confidence))

    def bits_per_byte(self, confidence: float = 0.95) -> Estimate:
        """Σ nll / (ln 2 · bytes): comparable across tokenizers."""
        return self._per_byte.estimate(confidence)


def _power(reference: Floats, artifact: Floats) -> tuple[float, float]:
    """Σ r² and Σ (r − a)² in float64."""
    r = np.asarray(reference, np.float64)
    noise = r - np.asarray(artifact, np.float64)
    return float((r * r).sum()), float((noise * noise).sum())


def _exp(value: float) -> float:
    return exp(value) if value < 700 or not isfinite(value) else inf
