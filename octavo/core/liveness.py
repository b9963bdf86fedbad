"""The largest sum of activations alive at once, by liveness over the operators in the order they run.

What a planner of static memory (LiteRT's arena, ONNX Runtime's memory pattern) could at best reach without splitting:
no fragmentation, no padding, no scratch space of kernels. An operator's inputs and outputs are alive together; a view
(`VIEWS`) shares its input's buffer. With `in_place`, a pointwise operator also writes over an input of its size that
nobody reads later, as ONNX Runtime does (and LiteRT, where activations are part of the operator before them); graph
inputs and outputs are the caller's and are never written over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from octavo.core.facts import EdgeFacts, ModelFacts, OperatorFacts

# In any format's spelling, lower case: the bytes stay where they are.
VIEWS = frozenset(("reshape", "squeeze", "unsqueeze", "flatten", "unflatten", "expand_dims", "view", "_unsafe_view",
                   "identity", "dropout", "alias", "detach"))  # fmt: skip


POINTWISE = ("activation", "elementwise")


@dataclass(frozen=True)
class Peak:
    """The most bytes alive at once, the operator that runs then, and the edges that are alive (a view's source)."""

    bytes: int
    operator: str
    edges: tuple[str, ...]


def activation_peak(facts: ModelFacts, element_bytes: float | None = None, *, in_place: bool = False) -> Peak:
    """The activation peak of one inference (one token of a language model). `element_bytes` replaces every edge's."""
    return peak(facts.operators, facts.edges, facts.inputs, facts.outputs, element_bytes, in_place=in_place)


def peak(
    operators: Sequence[OperatorFacts],
    edges: Iterable[EdgeFacts],
    inputs: Iterable[str],
    outputs: Iterable[str],
    element_bytes: float | None = None,
    *,
    in_place: bool = False,
) -> Peak:
    """The peak of any graph in running order, in linear time.

    Graph inputs are alive from the start to their last use (unused ones during the first operator), graph outputs to
    the end, every other edge from the operator that writes it to the last that reads it. Names that are no edge
    (weights, a cache) count nothing.
    """
    size = {e.name: e.bytes if element_bytes is None else round(e.elements * element_bytes) for e in edges}
    inputs, outputs = tuple(inputs), tuple(outputs)
    buffer, born, dies = _lifetimes(operators, size, inputs, outputs)
    if in_place:
        kept = {*inputs, *(buffer.get(name, name) for name in outputs)}
        _write_over(operators, size, kept, buffer, born, dies)
    largest: dict[str, int] = {}
    for name, owner in buffer.items():
        largest[owner] = max(largest.get(owner, 0), size[name])
    steps = max(len(operators), 1)
    change = [0] * (steps + 1)
    for owner, count in largest.items():
        change[born[owner]] += count
        change[dies[owner] + 1] -= count
    alive = list(accumulate(change[:steps]))
    top = max(alive)
    at = alive.index(top)
    living = tuple(owner for owner in largest if born[owner] <= at <= dies[owner])
    return Peak(top, operators[at].name if operators else "", living)


def _lifetimes(
    operators: Sequence[OperatorFacts], size: dict[str, int], inputs: Iterable[str], outputs: Iterable[str]
) -> tuple[dict[str, str], dict[str, int], dict[str, int]]:
    """{edge: the edge whose buffer holds it}, {buffer: first operator}, {buffer: last operator}."""
    buffer: dict[str, str] = {name: name for name in inputs if name in size}
    born = dict.fromkeys(buffer, 0)
    dies = dict(born)
    for at, operator in enumerate(operators):
        read = [name for name in operator.inputs if name in size]
        for name in read:
            owner = buffer.setdefault(name, name)
            born.setdefault(owner, 0)  # written by nobody: it was there from the start
            dies[owner] = at
        view = operator.op.lower() in VIEWS and bool(read)
        for name in operator.outputs:
            if name in size and name not in buffer:
                owner = buffer[name] = buffer[read[0]] if view else name
                born.setdefault(owner, at)
                dies[owner] = at
    for name in outputs:
        if name in buffer:
            dies[buffer[name]] = max(len(operators) - 1, 0)
    return buffer, born, dies


def _write_over(
    operators: Sequence[OperatorFacts],
    size: dict[str, int],
    kept: set[str],
    buffer: dict[str, str],
    born: dict[str, int],
    dies: dict[str, int],
) -> None:
    """Join the buffers of pointwise operators with the input that each may write over (none of `kept`), in place."""
    joined: dict[str, str] = {}
    for at, operator in enumerate(operators):
        if operator.kind not in POINTWISE or len(operator.outputs) != 1 or operator.outputs[0] not in buffer:
            continue
        made = buffer[operator.outputs[0]]
        for name in operator.inputs:
            old = buffer.get(name, made)
            if old != made and old not in kept and dies[old] == at and size[old] == size[made] and born[made] == at:
                joined[made] = old
                break
    for made, old in joined.items():  # in running order: what was written over may itself have written over another
        joined[made] = joined.get(old, old)
        dies[joined[made]] = max(dies[joined[made]], dies[made])
    for name, owner in buffer.items():
        buffer[name] = joined.get(owner, owner)
