"""Latency of a network on a device that others were measured on: t [ms] = Σ terms[k] · features[k], with an interval.

The terms come from a profile's Coefficients (plan/fitting.py fits them), the features from the model's facts
(plan/features.py counts them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite, log

from octavo.core.facts import ModelFacts
from octavo.core.quantity import Kind, Quantity
from octavo.plan.device import Coefficients, Device
from octavo.plan.features import features

__all__ = ["RUNTIMES", "base_precision", "estimate", "features", "predict", "stretch", "value_of"]

# Octavo's runtimes, and what the published phone rows call the way they reach the same unit.
RUNTIMES = {
    "litert": ("tflite",),
    "onnxruntime": ("onnx", "precompiled_qnn_onnx"),
    "qnn": ("qnn_dlc", "qnn_context_binary", "precompiled_qnn_onnx"),
}
# Precisions that nobody measured, and the measured ones that move at least as many bytes.
STANDS_FOR = {"w8": "float", "w4": "float", "w4a16": "w8a16", "w4a8": "w8a8", "fp16": "float", "fp32": "float"}
FALLBACK_UNIT = "cpu"
UNSEEN = 0.5  # what a kind of work that no fitted model had adds to the stretch
OUTSIDE = 0.1  # what anything outside adds at least
MOST = 3.0  # beyond, the interval says nothing more


def base_precision(word: str) -> str:
    """`w8a16_mixed_int16` → w8a16: rows of mixed precision are fitted with those they are a variant of."""
    return word.partition("_mixed")[0]


def value_of(terms: Mapping[str, float], found: Mapping[str, float]) -> float:
    """Σ terms · features [ms]."""
    return sum(cost * found.get(name, 0.0) for name, cost in terms.items())


def stretch(
    terms: Mapping[str, float], ranges: Mapping[str, tuple[float, float]], found: Mapping[str, float]
) -> tuple[float, tuple[str, ...]]:
    """(the power to which the interval's factors are raised, at least 1; the features outside the fit's range).

    A feature above the range counts with its share of the time and the logarithm of how far it is out.
    """
    total = max(value_of(terms, found), 1e-12)
    added, outside = 0.0, []
    for name, (low, high) in ranges.items():
        amount = found.get(name, 0.0)
        if amount > high:
            share = terms.get(name, 0.0) * amount / total
            added += UNSEEN if high <= 0 else share * log(amount / high)
        elif amount < low:
            added += OUTSIDE * log(low / amount) if amount > 0 else OUTSIDE
        else:
            continue
        outside.append(name)
    return (min(1 + max(added, OUTSIDE), MOST) if outside else 1.0), tuple(outside)


def estimate(coefficients: Coefficients, found: Mapping[str, float]) -> Quantity:
    """The latency [ms] that these coefficients give, with its 80 % interval, wider outside what they were fitted to."""
    value = value_of(coefficients.terms, found)
    power, outside = stretch(coefficients.terms, coefficients.ranges, found)
    source = _source(coefficients)
    if outside:
        source += "; a wider interval, outside the models fitted: " + ", ".join(
            f"{name} {found.get(name, 0.0):.4g} (fitted {coefficients.ranges[name][0]:.4g} to "
            f"{coefficients.ranges[name][1]:.4g})"
            for name in outside
        )
    low, high = value * coefficients.low**power, value * coefficients.high**power
    return Quantity(
        value, "ms", Kind.ESTIMATED, min(low, value), max(high, value), coefficients.rows, source, coefficients.date
    )


def _source(coefficients: Coefficients) -> str:
    rested = f"fitted to {coefficients.rows} rows of {coefficients.models} models ({coefficients.source})"
    if not isfinite(coefficients.median_error):
        return f"{rested}; too few to tell how far other models are missed"
    return (
        f"{rested}; models left out were missed by {coefficients.median_error:.0%} in the median, by "
        f"{coefficients.p90_error:.0%} one time in ten"
    )


def predict(facts: ModelFacts, device: Device, runtime: str, unit: str, precision: str) -> Quantity | None:
    """The latency [ms] of a network on a unit of the device through a runtime; None where nothing like it was measured.

    `runtime`: Octavo's word or the measurements' own; `precision`: a word of the measurements, or one that stands for
    another (int8 weights with float activations run as float does), which the source then says; it also says where
    measurements on that unit fell back to the CPU.
    """
    found = features(facts)
    chosen = _chosen(device.coefficients, runtime, unit, precision)
    if not found or chosen is None:
        return None
    quantity = estimate(chosen, found)
    notes = [quantity.source]
    if chosen.precision != base_precision(precision):
        notes.insert(0, f"measurements of {chosen.precision}, none of {precision}")
    if chosen.unit != unit:
        notes.insert(0, f"asked for the {unit}, what was measured ran on the {chosen.unit}")
    return replace(quantity, source="; ".join(notes))


def _chosen(given: Iterable[Coefficients], runtime: str, unit: str, precision: str) -> Coefficients | None:
    """The coefficients of this way, of several runtimes' words the first. Where everything measured of a runtime and
    precision fell back to the CPU, whatever was asked for, that is what an accelerator will do too."""
    word = base_precision(precision)
    known = {(one.runtime, one.precision, one.unit): one for one in given}
    names = (runtime, *RUNTIMES.get(runtime, ()))
    for wanted in dict.fromkeys((word, STANDS_FOR.get(word, word))):
        for place in dict.fromkeys((unit, FALLBACK_UNIT)):
            for name in names:
                if (name, wanted, place) in known:
                    return known[name, wanted, place]
    return None
