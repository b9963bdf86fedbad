"""The first operator of an artifact whose output diverges from the float graph, and what to change.

The rule, in the order of the program:
    1. Where a simulation of the compressed model is given: the first value that is more than 6 dB farther from the
       float graph than the simulation's is, while its inputs are not (of a model without static edges it must also
       be below the bound, or more than 10 dB below its inputs: runtimes quantise activations as they come).
    2. Else the first value below the bound whose inputs reach it; else the first one more than 10 dB below its inputs.
    3. Else nothing stands out: the noise adds up, and the largest loss is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.estimate import finite
from octavo.verify.align import align
from octavo.verify.alike import Likeness, axes_word, compare, explain

BOUND, DROP = 20.0, 10.0  # dB
DIFFERS = 6.0  # dB: codes that are one off, as runtimes round, add 3 dB where one value in twelve is, 6 at one in four


@dataclass(frozen=True)
class Value:
    """An operator's output. `before`: the values that it is computed from; `layer`: the weight that it multiplies by;
    `tensors`: all that it uses, its bias among them."""

    name: str
    array: NDArray[Any] = field(repr=False)
    operator: str = ""
    before: tuple[str, ...] = ()
    layer: str = ""
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operator:
    """One matched value. `operators`: what is computed since the matched values before it, `layers`: their weights,
    `tensors`: all that they use.

    `sqnr_db`: artifact to float graph; `simulated_db`: the simulation to it; `before_db`: the worst of its inputs.
    """

    name: str
    operators: tuple[str, ...]
    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    before: tuple[str, ...]
    likeness: Likeness
    simulated_db: float | None
    before_db: float

    @property
    def sqnr_db(self) -> float:
        return self.likeness.sqnr_db

    def as_dict(self) -> dict[str, Any]:
        """JSON; `identical` values have no finite SQNR."""
        return {
            "name": self.name,
            "operator": "+".join(self.operators),
            "layer": ", ".join(self.layers),
            "sqnr_db": finite(self.sqnr_db),
            "identical": self.sqnr_db == inf,
            "simulated_db": None if self.simulated_db is None else finite(self.simulated_db),
            "before_db": finite(self.before_db),
        }


@dataclass(frozen=True)
class Divergence:
    """What `bisect` found. `cause`: "layout", "file", "runtime", "quantisation" or "unknown"."""

    at: Operator
    cause: str
    reason: str
    suggestion: str
    operators: tuple[Operator, ...]
    unmatched: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "operator": self.at.name,
            "kind": "+".join(self.at.operators),
            "cause": self.cause,
            "reason": self.reason,
            "sqnr_db": finite(self.at.sqnr_db),
            "suggestion": self.suggestion,
            "operators": [item.as_dict() for item in self.operators],
            "unmatched": self.unmatched,
        }


@dataclass(frozen=True)
class Circumstances:
    """What is known besides the values. `layouts`: orders of axes that the format may use (alike.LAYOUTS); `static`:
    activations are quantised to fixed grids; `wrong`: tensors and edges that the weights' check found to be wrong, with
    its reason; `scheme`, `runtime`: for the suggestion; `inputs`: names of the program's inputs; `findable`: the values
    that the file has under whatever name (its edges and outputs; where none are named, all)."""

    layouts: tuple[str, ...] = ("nchw",)
    bound: float = BOUND
    static: bool = False
    wrong: Mapping[str, str] = field(default_factory=dict)
    scheme: str = ""
    runtime: str = "the runtime"
    inputs: tuple[str, ...] = ()
    findable: frozenset[str] = frozenset()


Variants = Callable[[str], Iterable[tuple[str, NDArray[Any]]]]


def bisect(
    reference: Sequence[Value],
    artifact: Sequence[Value],
    simulated: Sequence[Value] = (),
    *,
    known: Circumstances = Circumstances(),
    variants: Variants = lambda name: (),
) -> Divergence | None:
    """Compare operator by operator, in the reference's order (its `before` names are of the reference).

    `reference`: the float graph; `simulated`: the compressed model run in torch, by the same names. `variants(name)`:
    (what was done, the value then) of an operator computed wrongly in likely ways, to recognise one. None when no value
    of the artifact can be matched.
    """
    operators = _operators(reference, artifact, {item.name: item for item in simulated}, known)
    if not operators:
        return None
    at, found = _first(operators, known)
    right = next(item for item in (*(simulated if found == "simulation" else ()), *reference) if item.name == at.name)
    cause, reason = _cause(at, right.array, found, known, variants)
    rows = tuple(operators)
    return Divergence(at, cause, reason, _suggestion(at, cause, reason, known), rows, len(reference) - len(rows))


def _operators(
    reference: Sequence[Value], artifact: Sequence[Value], simulated: Mapping[str, Value], known: Circumstances
) -> list[Operator]:
    """One row per value of the reference that the artifact has."""
    places = align([simulated.get(item.name, item) for item in reference], artifact, known.findable)
    by_name = {item.name: item for item in reference}
    rows: dict[str, Operator] = {}
    for item in reference:
        if item.name not in places:
            continue
        near, between = _since(item, by_name, rows)
        found = artifact[places[item.name]].array
        model = simulated.get(item.name)
        expected = None if model is None else compare(item.array, model.array, (), -inf, None).sqnr_db
        reachable = known.bound if expected is None else min(known.bound, expected - DIFFERS)
        rows[item.name] = Operator(
            item.name,
            tuple(v.operator for v in between),
            tuple(v.layer for v in between if v.layer),
            tuple(name for v in between for name in v.tensors),
            tuple(near),
            compare(item.array, found, known.layouts, reachable, _unflattened(item, by_name)),
            expected,
            min((rows[name].sqnr_db for name in near), default=inf),
        )
    return list(rows.values())


def _since(item: Value, values: Mapping[str, Value], rows: Mapping[str, Operator]) -> tuple[list[str], list[Value]]:
    """(matched values that `item` is computed from, what lies between them and it, it included)."""
    near: list[str] = []
    between: list[Value] = []
    waiting, seen = [item], {item.name}
    while waiting:
        value = waiting.pop()
        between.append(value)
        for name in value.before:
            if name in seen or name not in values:
                continue
            seen.add(name)
            (near.append(name) if name in rows else waiting.append(values[name]))
    return near, between[::-1]


def _unflattened(item: Value, values: Mapping[str, Value]) -> NDArray[Any] | None:
    """The same numbers with more axes, where `item` only flattens them."""
    for name in item.before:
        other = values.get(name)
        if (
            other is not None
            and other.array.ndim > item.array.ndim
            and other.array.size == item.array.size
            and np.array_equal(other.array.reshape(-1), item.array.reshape(-1))
        ):
            return other.array
    return None


def _first(operators: Sequence[Operator], known: Circumstances) -> tuple[Operator, str]:
    """(where it diverges, by which part of the rule)."""
    rows = {item.name: item for item in operators}
    for item in operators:
        if _differs(item, known) and not any(_differs(rows[name], known) for name in item.before):
            return item, "simulation"
    for item in operators:
        if item.sqnr_db < known.bound <= item.before_db:
            return item, "bound"
    for item in operators:
        if item.sqnr_db < item.before_db - DROP and item.before_db < inf:
            return item, "drop"
    inner = [item for item in operators if item.before_db < inf] or operators
    return max(inner, key=lambda item: item.before_db - min(item.sqnr_db, item.before_db)), "sum"


def _differs(item: Operator, known: Circumstances) -> bool:
    """Whether the artifact's value is farther off than the simulation's."""
    if item.likeness.transposed:
        return True
    if item.simulated_db is None or item.sqnr_db >= item.simulated_db - DIFFERS:
        return False
    return known.static or item.sqnr_db < known.bound or item.sqnr_db < item.before_db - DROP


def _cause(at: Operator, right: NDArray[Any], found: str, known: Circumstances, variants: Variants) -> tuple[str, str]:
    """(cause, reason in words)."""
    how = f"{at.sqnr_db:.1f} dB to the float graph"
    how += f", its inputs {at.before_db:.1f} dB" if at.before_db < inf else ""
    how += f", simulated {at.simulated_db:.1f} dB" if at.simulated_db is not None else ""
    if at.likeness.transposed:
        return "layout", f"transposed layout: {axes_word(at.likeness.transposed)} ({how})"
    least = min(known.bound, at.sqnr_db + 10 if at.simulated_db is None else at.simulated_db - DIFFERS)
    for what, value in variants(at.name):
        like = value.shape == at.likeness.aligned.shape
        if like and compare(value, at.likeness.aligned, (), -inf, None).sqnr_db >= max(least, at.sqnr_db + 6):
            swapped = "swapped" in what
            words = f"{'transposed layout: ' if swapped else ''}it is what comes of {what} ({how})"
            return "layout" if swapped else "file", words
    for name in (at.name, *at.tensors):
        if name in known.wrong:
            return "file", f"{name} is not what was compressed: {known.wrong[name]} ({how})"
    reason = explain(right, at.likeness.aligned)
    words = f"{reason} ({how})" if reason else how
    if found == "simulation":
        return "runtime", f"it differs from the simulation of the compressed model: {words}"
    if found == "sum":
        return "quantisation", f"no operator stands out, the noise adds up; the largest loss is here: {words}"
    return ("quantisation" if at.simulated_db is not None or known.static else "unknown"), words


def _suggestion(at: Operator, cause: str, reason: str, known: Circumstances) -> str:
    """What to change, in one or two sentences."""
    keep = f"keep it in float: --keep {at.layers[0]}" if at.layers else ""
    if cause == "layout" and at.name in known.inputs:
        return "Give the data in the order of axes that the file takes; if they are, the file turns them: export again."
    if cause == "layout":
        what = at.layers[0] if at.layers else at.name
        return f"Export again; if it stays, report this defect: {known.runtime} has {what} in another order of axes."
    if cause == "file":
        return "The file is not what was exported: export again."
    if cause == "runtime":
        meanwhile = f" To go on meanwhile, {keep}." if keep else ""
        return (
            f"If the weights are exact, report this defect: {known.runtime} computes {at.name} otherwise than "
            f"simulated.{meanwhile}"
        )
    ways = [f"{keep[0].upper()}{keep[1:]}"] if keep else []
    if "cuts the values off" in reason:
        ways.insert(0, "Calibrate with --observer minmax or more samples")
    elif known.scheme == "w8ta8":
        ways.insert(0, "Use w8a8 (a scale per channel)")
    elif known.static:
        ways += ["Calibrate with another --observer", *(["Use w8a16"] if known.scheme == "w8a8" else [])]
    else:
        ways.append("Use a scheme with more bits")
    return "; or ".join([ways[0], *(way[0].lower() + way[1:] for way in ways[1:])]) + "."
