"""Static quantisation of a graph: transforms, codes, calibration, biases; out comes a compressed model's content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.compress.annotate import Plan, annotate
from octavo.compress.bias import snap_biases
from octavo.compress.calibrate import Calibration, Progress, calibrate
from octavo.compress.codes import codes
from octavo.compress.nodes import Layer, layers, matches, tensors
from octavo.compress.walk import Sample, evenly, samples
from octavo.core.model import Edge
from octavo.core.scheme import scheme as scheme_of
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput, nearest

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Arrays = dict[str, NDArray[np.float32]]
EQUALISE = ("best", "none", "weights", "activations")
TRIAL = 16  # samples on which the ways to equalise are compared
ADJUST = ("none", "bias", "learned")


@dataclass(frozen=True)
class StaticResult:
    """What a static model is made of.

    exported: the program after all transforms, whose node names the edges use; its biases are snapped already.
    weights: {tensor: codes and scales} of every quantised weight, to be stored as they are. edges: activations.
    biases: {tensor: float32 on its int32 grid}. kept: {layer's node: why} left in float. lineage: what was done.
    """

    exported: ExportedProgram
    weights: dict[str, QuantizedTensor]
    edges: tuple[Edge, ...]
    biases: Arrays
    kept: dict[str, str]
    lineage: dict[str, Any]


@dataclass(frozen=True)
class Choices:
    """How: `observer` of activations; `equalise` channels by weights, by activations too, or not; `adjust` biases, or
    biases and rounding ("learned"), to calibration data, or nothing; `search` the weights' scales; `keep` in float."""

    scheme: str
    target: str
    observer: str
    equalise: str
    adjust: str
    search: bool
    keep: tuple[str, ...]


def quantise(
    exported: ExportedProgram,
    batches: Iterable[Sample],
    *,
    scheme: str = "w8a8",
    target: str = "common",
    observer: str = "mse",
    equalise: str = "best",
    adjust: str = "learned",
    search: bool = True,
    keep: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> StaticResult:
    """Quantise weights and activations of a float program, calibrated on `batches` ({input: array}).

    `equalise`: "none", "weights", "activations", or "best": chosen by the noise at the outputs when the first samples
    calibrate, on the ones after them. `adjust`: "none", "bias" or "learned" (rounding and biases). `keep`: patterns of
    layers (node, weight or module names) that stay in float.
    Raises BadInput for a scheme that is not static, calibration data that does not fit, and patterns that name nothing;
    Refused as the target refuses.
    """
    how = Choices(scheme, target, observer, equalise, adjust, search, tuple(keep))
    _check(how)
    given: list[Sample] = list(samples(exported, batches))
    if equalise == "best":
        how, tried = _best(exported, how, given)
    else:
        tried = {}
    result = _quantised(exported, how, given, progress)
    result.lineage["tried_db"] = tried
    return result


def transformed(exported: ExportedProgram, how: Choices, given: list[Sample]) -> ExportedProgram:
    """The float program as it is quantised: one spelling, batch normalisation folded, every layer with a bias,
    channels equalised. The same function, to rounding."""
    from octavo.compress.batchnorm import fold_batchnorm
    from octavo.compress.canonical import canonical, with_bias
    from octavo.compress.equalise import channel_peaks, equalise, equalise_activations

    program = canonical(fold_batchnorm(exported))
    if how.adjust != "none":
        program = with_bias(program)
    if how.equalise == "weights":
        return equalise(program)
    if how.equalise == "activations":
        return equalise_activations(program, channel_peaks(program, given))
    return program


def plan_of(exported: ExportedProgram, target: str, kind: str, found: Sequence[Layer], kept: dict[str, str]) -> Plan:
    """Which values get scales, given the layers whose weights have codes."""
    own = {node.name for layer in found for node in (layer.weight_node, layer.bias_node) if node is not None}
    return annotate(exported.graph, target, kind, weights=own, keep=tuple(kept))


def _best(exported: ExportedProgram, how: Choices, given: list[Sample]) -> tuple[Choices, dict[str, float]]:
    """The way to equalise of the least noise, and the SQNR of each in dB, everything but `adjust` as asked for."""
    from octavo.compress.sensitivity import whole

    spread = evenly(given, 2 * TRIAL)
    few, others = spread[::2], spread[1::2]
    tried = {}
    for way in EQUALISE[1:]:
        made = _quantised(exported, replace(how, equalise=way, adjust="none"), few, lambda what, done, total: None)
        tried[way] = whole(made.exported, made.edges, made.weights, others or few)
    return replace(how, equalise=max(tried, key=lambda way: tried[way])), tried


def _quantised(exported: ExportedProgram, how: Choices, given: list[Sample], progress: Progress) -> StaticResult:
    import torch

    from octavo.compress.refine import refine
    from octavo.compress.surgery import duplicate

    program = transformed(exported, how, given)
    found, kept = _chosen(program, how.keep)
    floats = {name: item.detach().numpy() for name, item in tensors(program).items() if item.is_floating_point()}
    weights = codes(floats, dict.fromkeys(layer.weight for layer in found), how.scheme, search=how.search)
    plan = plan_of(program, how.target, scheme_of(how.scheme).activation or "int8", found, kept)
    decoded = {name: torch.from_numpy(held.dequantize()) for name, held in weights.items()}
    seen = calibrate(program, plan, given, how=how.observer, values=decoded, progress=progress)
    biases = floats
    if how.adjust != "none":
        few = list(samples(program, given))
        weights, biases = refine(
            program, found, {edge.name: edge for edge in seen.edges}, weights, floats, few, how.scheme,
            rounding=how.adjust == "learned", progress=progress,
        )  # fmt: skip
    snapped, notes = snap_biases(program, found, seen.edges, weights, biases)
    program = duplicate(program, {name: torch.from_numpy(values) for name, values in snapped.items()})
    notes = [*_dead(weights), *notes]
    return StaticResult(program, weights, seen.edges, snapped, kept, _lineage(how, plan, seen, notes))


def _check(how: Choices) -> None:
    if scheme_of(how.scheme).activation is None:
        raise BadInput(f"{how.scheme} quantises no activations.", "Static schemes: w8a8, w8ta8, w8a16.")
    for word, value, known in (("equalise", how.equalise, EQUALISE), ("adjust", how.adjust, ADJUST)):
        if value not in known:
            raise BadInput(f"Unknown choice for {word}: '{value}'.", nearest(value, known))


def _chosen(exported: ExportedProgram, keep: tuple[str, ...]) -> tuple[list[Layer], dict[str, str]]:
    """The layers to quantise, and {node: why} of the others."""
    every = list(layers(exported))
    unknown = [pattern for pattern in keep if not any(matches(layer, (pattern,)) for layer in every)]
    if unknown:
        shown = ", ".join(layer.weight for layer in every[:6])
        raise BadInput(f"No layer is called '{unknown[0]}'.", f"There are {len(every)}: {shown}, ….")
    kept = {layer.node.name: "kept in float, as asked for" for layer in every if matches(layer, keep)}
    return [layer for layer in every if layer.node.name not in kept], kept


def _dead(weights: dict[str, QuantizedTensor]) -> list[str]:
    """Output channels whose weights are all zero."""
    counts = {name: int((~held.codes.reshape(held.shape[0], -1).any(axis=1)).sum()) for name, held in weights.items()}
    return [f"{name}: {count} of its output channels are all zero" for name, count in counts.items() if count]


def _lineage(how: Choices, plan: Plan, seen: Calibration, notes: list[str]) -> dict[str, Any]:
    return {
        "step": "static",
        "scheme": how.scheme,
        "target": how.target,
        "observer": how.observer,
        "equalise": how.equalise,
        "adjust": how.adjust,
        "samples": seen.samples,
        "edges": len(seen.edges),
        "kept": list(how.keep),
        "in_float": [{"node": node, "reason": reason} for node, reason in plan.floats],
        "notes": [*seen.notes, *notes],
    }
