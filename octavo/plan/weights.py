"""Bytes of a model's weights in a scheme, as a runtime stores them: exact, from shapes; what was widened or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from octavo.core.architecture import FAMILIES, Role
from octavo.core.assign import role_schemes
from octavo.core.carriage import table as carriage_table
from octavo.core.facts import ModelFacts
from octavo.core.scheme import SCHEMES
from octavo.errors import Refused
from octavo.plan.say import runtime as title
from octavo.plan.schemes import AS_IS, FLOAT_BITS, KNOWN, PlanScheme, door, plan_scheme

ALIGNMENT = {"llamacpp": 32}  # bytes: GGUF's general.alignment, which every tensor's data is padded to
PADDED_ROWS = {"onnxruntime": {2: 32, 4: 16, 8: 16}}  # MatMulNBits: rows of whole blocks, of which these are the least
BARE = "a bare count: weights are exactly parameters × bits ÷ 8; scales and tensors that stay float are not in it"
OPENS = {"litert": ("litert", "litert-micro")}  # other runtimes that open a runtime's file
NETWORKS_ONLY = ("litert", "executorch", "coreml")  # runtimes whose files of language models are not written yet
SHARES_TIED = ("llamacpp", "onnxruntime")  # store a weight that embedding and head share once


@dataclass(frozen=True)
class Weighed:
    """`bytes`: of all weights; `read`: of those that one token or inference reads (embedding rows are gathered, experts
    chosen); `bits`: true bits per weight. `made`: whether Octavo can export this today. `refused`: why not at all.
    `read_by`: `read` by the scheme of what is read; `repacked`: bytes of which the runtime keeps a second
    form in memory, in its kernels' own layout."""

    scheme: str
    runtime: str
    bytes: int = 0
    read: int = 0
    bits: float = 0.0
    made: bool = True
    notes: tuple[str, ...] = ()
    refused: str = ""
    remedy: str = ""
    read_by: tuple[tuple[str, float], ...] = ()
    repacked: int = 0


@dataclass(frozen=True)
class _Group:
    """Tensors of one shape, role and stored type, of which a token reads the same share; `name` is the first one's."""

    name: str
    shape: tuple[int, ...]
    role: Role
    stored: str
    share: float
    count: int
    stored_bytes: int


class Scale:
    """Weighs one model, each scheme and runtime once. `embedding`, `head`, `allow_skip`: as of `compress`.

    `file_runtime`: the runtime whose finished file the model is, if it is one: its weights are what they are.
    """

    def __init__(
        self,
        facts: ModelFacts,
        *,
        embedding: str | None = None,
        head: str | None = None,
        allow_skip: bool = False,
        file_runtime: str | None = None,
    ) -> None:
        self.facts, self.embedding, self.head, self.allow_skip = facts, embedding, head, allow_skip
        self.file_runtime = file_runtime
        self.groups = _grouped(facts)
        self.roles = {group.role for group in self.groups}
        self.tied = facts.language is not None and facts.language.tied
        self.fixed = file_runtime is not None or any(_quantised(group) for group in self.groups)
        self._held: dict[tuple[str, str], Weighed] = {}

    def weigh(self, scheme: str, runtime: str) -> Weighed:
        """The weights in `scheme` as `runtime` stores them; a pair that cannot be is `refused`, with the reason.

        Raises BadInput for an unknown scheme, or an embedding or head option that no tensor answers to.
        """
        key = (scheme, runtime)
        if key not in self._held:
            found = self._weigh(scheme, runtime)
            lacking = self._lacking(runtime)
            if lacking and found.made and not found.refused:
                found = replace(found, made=False, notes=(*found.notes, f"planned: Octavo cannot {lacking} yet"))
            self._held[key] = found
        return self._held[key]

    def _lacking(self, runtime: str) -> str:
        """What Octavo would have to learn first to make this file, in words; empty when it can."""
        if self.facts.kind in ("language", "size") and runtime in NETWORKS_ONLY:
            return f"export a language model to {title(runtime)}"
        return _unknown_family(self.facts)

    def _weigh(self, scheme: str, runtime: str) -> Weighed:
        if self.fixed != (scheme == AS_IS):
            what = "is compressed already: it is planned as it is" if self.fixed else "is a float model: name a scheme"
            return Weighed(scheme, runtime, refused=f"the model {what}")
        if self.file_runtime is not None and runtime not in OPENS.get(self.file_runtime, (self.file_runtime,)):
            return Weighed(scheme, runtime, refused=f"a finished file of {self.file_runtime}: {runtime} cannot open it")
        if self.facts.kind == "size":
            return self._bare(plan_scheme(scheme), runtime)
        tally = _Tally(self, runtime)
        by_role = {} if scheme == AS_IS else self._by_role(plan_scheme(scheme))
        try:
            for group in self.groups:
                tally.add(group, by_role.get(group.role))
        except Refused as refusal:
            return Weighed(scheme, runtime, refused=refusal.message.rstrip("."), remedy=refusal.remedy)
        return tally.result(scheme)

    def _by_role(self, main: PlanScheme) -> dict[Role, PlanScheme]:
        """core/assign.py's rule; a scheme that core does not have takes the place of the main one."""
        stands_for = main.base or SCHEMES["w8"]
        chosen = role_schemes(stands_for, self.roles, embedding=self.embedding, head=self.head)
        found = {role: KNOWN[scheme.name] for role, scheme in chosen.items()}
        found["matmul"] = found["conv"] = main
        if main.activation != "float":  # a static graph is quantised throughout; 8 bits where the weights have fewer
            large = KNOWN["w8a8" if main.activation == "int8" else "w8a16"]
            found["embedding"] = found["embedding"] if self.embedding or (self.tied and self.head) else large
            found["head"] = found["head"] if self.head else large
        return found

    def _bare(self, scheme: PlanScheme, runtime: str) -> Weighed:
        """Of a parameter count: exactly P·b/8 bytes."""
        way = door(runtime, "matmul", scheme.name)
        if not way.holds:
            return Weighed(scheme.name, runtime, refused=_no_door(runtime, scheme.name, "matmul", way.why))
        count = round(self.facts.parameters * scheme.bits) // 8
        read = count * self.facts.active_parameters // self.facts.parameters
        notes = (BARE, *_planned(way.made, scheme.name, runtime))
        return Weighed(scheme.name, runtime, count, read, scheme.bits, way.made, notes)


class _Tally:
    """The sum as it grows, and what has to be said about it."""

    def __init__(self, scale: Scale, runtime: str) -> None:
        self.scale, self.runtime = scale, runtime
        self.bytes = 0
        self.read = 0.0
        self.read_by: dict[str, float] = {}
        self.repacked = 0
        self.made = True
        self.notes: dict[str, int] = {}

    def add(self, group: _Group, chosen: PlanScheme | None) -> None:
        """Count a group. Raises Refused when the scheme or the runtime cannot hold it."""
        if self.scale.file_runtime is not None:
            name, one = group.stored, group.stored_bytes // group.count
            self.made = self.runtime in carriage_table()
        else:
            name = self._scheme(group, chosen)
            one = self._bytes(group, name)
        part = one * group.count * group.share
        self.read += part
        self.read_by[name] = self.read_by.get(name, 0.0) + part
        if self._twice(group, name):
            self.repacked += one * group.count
        copies = 1
        if group.role == "embedding" and self.scale.tied and self.runtime not in SHARES_TIED:
            copies = 2
            self.note(f"{self.runtime} is taken to store the weight that embedding and head share twice")
        self.bytes += one * group.count * copies

    def _twice(self, group: _Group, scheme: str) -> bool:
        """Whether the runtime keeps the file's form beside its kernels' own: of a tied table the one is gathered from,
        the other multiplied with."""
        tied = group.role == "embedding" and self.scale.tied
        return self.runtime == "onnxruntime" and tied and scheme not in FLOAT_BITS

    def note(self, text: str, count: int = 0) -> None:
        self.notes[text] = self.notes.get(text, 0) + count

    def _scheme(self, group: _Group, chosen: PlanScheme | None) -> str:
        """The name of the scheme or float type that the group gets."""
        if chosen is None:
            return group.stored if group.stored in KNOWN or group.stored in FLOAT_BITS else "fp32"
        try:
            chosen.check(group.name, group.shape)
        except Refused as refusal:
            if not self.scale.allow_skip:
                raise
            self.note(f"left in float: {refusal.message.rstrip('.')}", group.count)
            return group.stored if group.stored in FLOAT_BITS else "fp32"
        return chosen.name

    def _bytes(self, group: _Group, scheme: str) -> int:
        """Bytes of one tensor of the group in the runtime's file."""
        operator = group.role if len(group.shape) > 1 and group.role != "other" else "other"
        way = door(self.runtime, operator, scheme)
        if not way.holds:
            raise Refused(_no_door(self.runtime, scheme, operator, way.why))
        columns = group.shape[-1] if len(group.shape) > 1 else way.multiple
        fitting = way.for_row(columns)
        if fitting is None:
            raise Refused(
                f"{group.name} {list(group.shape)}: {self.runtime} holds {scheme} in rows of a multiple of "
                f"{way.least_multiple}"
            )
        self.made &= way.made
        if fitting.why and way.made:
            self.note(f"{scheme} as {fitting.stored_as}: {fitting.why}", group.count)
        return self._aligned(_stored(group.shape, scheme, fitting.bits, self.runtime))

    def _aligned(self, count: int) -> int:
        step = ALIGNMENT.get(self.runtime, 1)
        return -(-count // step) * step

    def result(self, scheme: str) -> Weighed:
        facts = self.scale.facts
        notes = tuple(f"{text} ({count} tensors)" if count > 1 else text for text, count in self.notes.items())
        bits = 8 * self.bytes / max(facts.parameters, 1)
        return Weighed(
            scheme,
            self.runtime,
            self.bytes,
            round(self.read),
            bits,
            self.made,
            notes + _planned(self.made, scheme, self.runtime),
            read_by=tuple(self.read_by.items()),
            repacked=self.repacked,
        )


def _stored(shape: tuple[int, ...], scheme: str, bits: float | None, runtime: str) -> int:
    """Bytes of a tensor as it lies in the runtime's file, before alignment."""
    if bits is not None:
        return round(prod(shape) * bits) // 8
    if scheme in FLOAT_BITS:
        return prod(shape) * FLOAT_BITS[scheme] // 8
    grid = KNOWN[scheme]
    padding = PADDED_ROWS.get(runtime)
    if padding is None or len(shape) != 2 or grid.base is None or grid.base.range is None:
        return grid.bytes(shape)
    step = padding[grid.base.range.bits]
    extra = -(-shape[1] // step) * step - shape[1]
    return grid.bytes(shape) + shape[0] * extra * grid.base.range.bits // 8


def _grouped(facts: ModelFacts) -> tuple[_Group, ...]:
    shares = _shares(facts)
    held: dict[tuple[Any, ...], list[Any]] = {}
    for weight in facts.weights:
        key = (weight.shape, weight.role, weight.stored, shares.get(weight.name, 1.0))
        found = held.setdefault(key, [weight.name, 0, 0])
        found[1] += 1
        found[2] += weight.stored_bytes
    return tuple(
        _Group(name, shape, role, stored, share, count, size)
        for (shape, role, stored, share), (name, count, size) in held.items()
    )


def _shares(facts: ModelFacts) -> dict[str, float]:
    """The share of each weight that one inference or token reads: a row of a table, the experts that were chosen; a
    matrix that is gathered from and multiplied with (a tied embedding) whole."""
    if facts.kind != "language":
        return {}
    rows = {weight.name: weight for weight in facts.weights if len(weight.shape) > 1}
    found: dict[str, float] = {}
    for operator in facts.operators:
        for name in operator.weights:
            if weight := rows.get(name):
                part = 1 / max(weight.shape[0], 1) if operator.kind == "gather" else 1.0
                if operator.macs and operator.kind != "gather":  # at one token, a weight read is one MAC
                    part = min(1.0, operator.macs / max(weight.parameters, 1))
                found[name] = max(part, found.get(name, 0.0))
    return found


def _unknown_family(facts: ModelFacts) -> str:
    if facts.decoder is None or facts.decoder.family in FAMILIES:
        return ""
    return f"fold models of the family '{facts.decoder.family}'"


def _quantised(group: _Group) -> bool:
    return len(group.shape) > 1 and group.stored not in FLOAT_BITS and group.stored not in ("unknown", "fp64", "float")


def _no_door(runtime: str, scheme: str, operator: str, why: str) -> str:
    reason = f": {why}" if why else ""
    return f"{runtime} has no exact form of {scheme} for '{operator}'{reason}"


def _planned(made: bool, scheme: str, runtime: str) -> tuple[str, ...]:
    if made:
        return ()
    what = f"run files of {title(runtime)}" if scheme == AS_IS else f"export {scheme} to {title(runtime)}"
    return (f"planned: Octavo cannot {what} yet",)


def scale_of(facts: ModelFacts, **options: Any) -> Scale:
    """A Scale that is kept with the facts, as a cached property would be: plans of one model share it."""
    held: dict[Any, Scale] = facts.__dict__.setdefault("_scales", {})
    key = tuple(sorted(options.items()))
    if key not in held:
        held[key] = Scale(facts, **options)
    return held[key]
