"""Which operator of a failing artifact diverges: the float graph, the simulation and the file, value by value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.api.original import Original
from octavo.core.metrics import sqnr_db
from octavo.core.model import CompressedModel
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.sources.trace import Trace, Traced
    from octavo.verify.bisect import Value

SAME = 3.0  # dB: what a value of the compressed program has in common with the original's of that name, at least
NO_MODEL = "Bisected without the simulation: with --compressed DIR it can tell quantisation from a runtime's defect."


def bisected(
    artifact: Path,
    runtime: str,
    original: Original,
    *,
    model: CompressedModel | None,
    wrong: Mapping[str, str],
    min_sqnr: float | None,
    edges: frozenset[str],
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """(`diverges` of a VerifyRecord, notes), on the first sample of the data.

    `wrong`: what the weights' check found, with its reasons; `edges`: names of quantised values, as the manifest has
    them, where there is no `model`. What cannot be bisected is a note.
    """
    if original.is_language:
        return None, ("A language model is not bisected: its runtimes show no values in between.",)
    try:
        return _bisected(artifact, runtime, original, model, wrong, min_sqnr, edges)
    except OctavoError as error:
        return None, (f"Not bisected: {error.message}",)


def _bisected(
    artifact: Path,
    runtime: str,
    original: Original,
    model: CompressedModel | None,
    wrong: Mapping[str, str],
    min_sqnr: float | None,
    edges: frozenset[str],
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    from octavo.runtimes.intermediates import record
    from octavo.verify.bisect import BOUND, Circumstances, bisect

    inputs = dict(next(iter(original.data.batches(original.batch))).inputs)
    floats, simulation = _references(original, model, inputs)
    recording = record(runtime, artifact, inputs)
    names = frozenset(edge.name for edge in model.edges) if model is not None else edges
    names &= {item.name for item in floats}
    program = simulation if simulation is not None else _trace(original, inputs)
    found = _found(recording, program.outputs)
    known = Circumstances(
        layouts=recording.layouts,
        bound=BOUND if min_sqnr is None else min_sqnr,
        static=bool(names),
        wrong=wrong,
        scheme=_scheme(model),
        runtime=runtime,
        inputs=program.inputs,
        findable=names | set(program.outputs) if names else frozenset(),
    )
    simulated = [_value(item) for item in simulation.values] if simulation is not None else []
    divergence = bisect(floats, found, simulated, known=known, variants=program.variants)
    notes = () if model is not None else (NO_MODEL,)
    if divergence is None:
        return None, ("Not bisected: no value of the file could be matched with the program's.",)
    return divergence.as_dict(), notes


def _references(
    original: Original, model: CompressedModel | None, inputs: Mapping[str, Any]
) -> tuple[list[Value], Trace | None]:
    """(the float graph's values, the simulation). With a compressed model the values are those of its program, each
    the original's own where that has it; a transform (equalised channels, folded normalisation) may have changed it."""
    from dataclasses import replace

    from octavo.sources.trace import Trace

    source = _trace(original, inputs)
    if model is None:
        return [_value(item) for item in source.values], None
    tensors = {record.name: model.tensor(record.name) for record in model.tensors}
    floats = Trace(model.program, tensors, _renamed(inputs, model))
    simulation = Trace(model.program, tensors, _renamed(inputs, model), model.edges) if model.edges else floats
    own = {item.name: item for item in source.values}
    ends = dict(zip(floats.outputs, source.outputs, strict=True))
    users = _users(floats), _users(source)
    values = []
    for item in floats.values:
        right = own.get(ends.get(item.name, item.name))
        same = right is not None and right.array.shape == item.array.shape
        if same and right is not None and (item.name in ends or _alike(item, right, users)):
            item = replace(item, array=right.array)
        values.append(_value(item))
    return values, simulation


def _alike(item: Traced, right: Traced, users: tuple[dict[str, set[str]], dict[str, set[str]]]) -> bool:
    """Whether two values of one name are the same value: near each other, or computed and used alike."""
    if sqnr_db(right.array, item.array) >= SAME:
        return True
    alike = item.operator == right.operator and item.before == right.before
    return alike and users[0].get(item.name) == users[1].get(right.name)


def _users(trace: Trace) -> dict[str, set[str]]:
    """{value: the kinds of operators that use it}."""
    found: dict[str, set[str]] = {}
    for item in trace.values:
        for name in item.before:
            found.setdefault(name, set()).add(item.operator)
    return found


def _trace(original: Original, inputs: Mapping[str, Any]) -> Trace:
    from octavo.sources.trace import Trace

    source = original.source
    return Trace(source.program, {name: source.rows(name) for name in source.tensors}, inputs)


def _renamed(inputs: Mapping[str, Any], model: CompressedModel) -> dict[str, Any]:
    from octavo.sources.torch import inputs_of

    return dict(zip(inputs_of(model.program), inputs.values(), strict=True))


def _value(item: Traced) -> Value:
    from octavo.verify.bisect import Value

    return Value(item.name, item.array, item.operator, item.before, item.weight, item.tensors)


def _found(recording: Any, outputs: tuple[str, ...]) -> list[Value]:
    """The file's values; its outputs by the program's names, unless a value before them has that name."""
    from octavo.verify.bisect import Value

    names = [item.name for item in recording.values]
    ends = dict(zip(recording.outputs, outputs, strict=True)) if len(recording.outputs) == len(outputs) else {}
    return [
        Value(ends[place] if ends.get(place, names[place]) not in names else names[place], item.array, item.operator)
        for place, item in enumerate(recording.values)
    ]


def _scheme(model: CompressedModel | None) -> str:
    if model is None:
        return ""
    return next((record.scheme for record in model.tensors if record.quantized), "")
