"""Which runtime reaches which unit, and what the unit's delegate takes: the reasons a scheme cannot run there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.core.facts import ModelFacts
from octavo.plan.device import Device, Unit
from octavo.plan.say import listed
from octavo.plan.say import runtime as title
from octavo.plan.schemes import KNOWN, PlanScheme

UNITS = ("cpu", "gpu", "npu", "dsp")
INTEGER_UNITS = ("npu", "dsp")
DECOMPRESSES = ("coreml", "genie")  # widen weights that are quantised alone on the way to the unit
WIDENS_HALVES = ("onnxruntime",)  # computes fp16 and dequantised weights in fp32 on a CPU
FIXED_SHAPES = ("litert", "onnxruntime")  # through an NPU's compiler these run graphs of fixed shapes: no growing cache


@dataclass(frozen=True)
class Way:
    """A runtime on a unit, through a delegate; or, with no unit, why there is no such way."""

    runtime: str
    unit: Unit | None
    kind: str
    delegate: str = ""
    refused: str = ""


def ways(device: Device, runtimes: Sequence[str], units: Sequence[str]) -> list[Way]:
    """Every way the device has; of those asked for by name (`runtimes`, `units`, empty: any) also the missing ones."""
    found = [
        Way(name, unit, unit.kind, delegate)
        for unit in device.units
        for name, delegate in unit.runtimes.items()
        if (not runtimes or name in runtimes) and (not units or unit.kind in units)
    ]
    for kind in units:
        if device.unit(kind) is None:
            has = listed([unit.kind.upper() for unit in device.units]) or "nothing that is known"
            found += [Way(name, None, kind, refused=f"{device.title} has no {kind.upper()}: it has {has}")
                      for name in runtimes or ("any",)]  # fmt: skip
    for name in runtimes:
        if not any(way.runtime == name for way in found):
            there = sorted({title(other) for unit in device.units for other in unit.runtimes})
            verb = "do" if len(there) > 1 else "does"
            where = f" on its {listed([kind.upper() for kind in units], 'or')}" if units else ""
            reason = f"{title(name)} does not reach {device.title}{where}: {listed(there) or 'no runtime'} {verb}"
            found.append(Way(name, None, units[0] if units else "any", refused=reason))
    return found


def refusal(way: Way, scheme: PlanScheme | None, facts: ModelFacts) -> str:
    """Why this way cannot run the model in the scheme (None: as it is); empty when it can."""
    if way.unit is None:
        return way.refused
    if way.runtime == "llamacpp" and facts.kind == "network":
        return "llama.cpp runs language models of known families, not operator graphs"
    if way.runtime == "genie" and facts.kind == "network":
        return "Genie runs language models"
    if facts.kind != "network" and way.kind in INTEGER_UNITS and way.runtime in FIXED_SHAPES:
        return (
            f"{way.delegate} compiles fixed shapes, and a language model's cache grows (qnn and genie are built for it)"
        )
    if scheme is None and facts.kind == "network" and finished(facts) == "w8":
        scheme = KNOWN["w8"]
    return "" if scheme is None else _types(way.unit, way.runtime, scheme)


def finished(facts: ModelFacts) -> str:
    """The scheme whose kernels run a model that is planned as it is, by the bytes of its activations: w8a8, w8a16, and
    w8 where they are floats, as they are in every language model's file."""
    widths = {edge.element_bytes for edge in facts.edges}
    if facts.kind != "network" or not widths & {1, 2}:
        return "w8"
    return "w8a8" if 1 in widths else "w8a16"


def _types(unit: Unit, name: str, scheme: PlanScheme) -> str:
    has = f"computes in {listed(list(unit.types), 'or')}"
    who = f"{unit.name} ({unit.kind.upper()})"
    if scheme.activation == "int16" and unit.kind not in INTEGER_UNITS:
        return f"{who} has no fast kernels for 16-bit integer activations"
    if scheme.activation != "float":
        return "" if "int8" in unit.types else f"{who} {has}, not in int8"
    if unit.kind in INTEGER_UNITS and not scheme.is_float and name not in DECOMPRESSES:
        return f"{who} wants activations quantised together with the weights (w8a8), not weights alone"
    if unit.kind in INTEGER_UNITS and scheme.name == "fp32" and "fp32" not in unit.types:
        return f"{who} {has}, not in fp32: take fp16" if "fp16" in unit.types else f"{who} {has}: take w8a8"
    if not {"fp32", "fp16"} & set(unit.types):
        return f"{who} {has}, not in floats"
    return ""


def compute_type(unit: Unit, scheme: str, known: PlanScheme | None, runtime: str = "", *, network: bool = False) -> str:
    """The type whose rate and energy count for this scheme on the unit; `network`: the model has convolutions."""
    if known is None:
        return "int8" if "int8" in unit.types else "fp32"
    if known.activation != "float" and "int8" in unit.types:
        return "int8"
    half = unit.kind != "cpu" or (scheme == "fp16" and runtime not in WIDENS_HALVES)
    floats = "fp16" if half and "fp16" in unit.types else "fp32"
    if known.is_float or unit.kind != "cpu" or "int8" not in unit.types:
        return floats
    # Weights alone: CPU kernels quantise activations on the way and multiply in int8; not ONNX Runtime's convolutions.
    return floats if network and runtime in WIDENS_HALVES else "int8"
