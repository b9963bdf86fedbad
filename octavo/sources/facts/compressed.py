"""Facts of a compressed model: its program's, with the schemes and exact bytes its tensors are stored in."""

from __future__ import annotations

from pathlib import Path

from octavo.core.architecture import Role, decoder_spec
from octavo.core.decoder_facts import decoder_facts
from octavo.core.facts import ModelFacts, WeightFacts
from octavo.core.model import CompressedModel, Program
from octavo.core.source import Source
from octavo.core.store import load
from octavo.sources.facts.aten import graph_facts

FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def compressed_facts(model: Path | CompressedModel) -> ModelFacts:
    """Facts of a compressed model, or of its directory. Raises BadInput when the directory is damaged or is not one."""
    held = load(model) if isinstance(model, Path) else model
    weights = {r.name: WeightFacts(r.name, r.shape, r.role, r.scheme, r.bytes) for r in held.tensors}
    name = model.resolve().name if isinstance(model, Path) else ""
    return _of_program(held.program, weights, name, f"a compressed model of {held.bytes:,} bytes")


def source_facts(source: Source, name: str = "") -> ModelFacts:
    """Facts of an opened float source, whatever it came from: a captured module above all."""
    weights = {}
    for key, tensor in source.tensors.items():
        stored, role = source.dtype(key), tensor.role
        weights[key] = _weight(key, tensor.shape, role, stored)
    return _of_program(source.program, weights, name, f"a float program of {len(weights)} tensors")


def _weight(name: str, shape: tuple[int, ...], role: Role, stored: str) -> WeightFacts:
    weight = WeightFacts(name, shape, role, stored, 0)
    return WeightFacts(name, shape, role, stored, weight.parameters * FLOAT_BYTES[stored])


def _of_program(program: Program, weights: dict[str, WeightFacts], name: str, origin: str) -> ModelFacts:
    if program.kind == "huggingface":
        return decoder_facts(decoder_spec(program.body), name, weights=weights, origin=origin)
    return graph_facts(program, weights, name or "network", origin)
