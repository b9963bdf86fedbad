"""Which tensor gets which scheme: decided once, as data, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.core.architecture import Role, TensorSpec
from octavo.core.assign import role_schemes
from octavo.core.model import Skipped
from octavo.core.scheme import Scheme, scheme
from octavo.core.source import Source
from octavo.errors import Refused


@dataclass(frozen=True)
class Assignment:
    """What becomes of one tensor: a scheme, or its float type when it stays float."""

    name: str
    shape: tuple[int, ...]
    role: Role
    dtype: str
    scheme: str


@dataclass(frozen=True)
class Assigned:
    """Every tensor's assignment, and what was left in float against the scheme's intent."""

    tensors: tuple[Assignment, ...]
    skipped: tuple[Skipped, ...]


def assign(
    source: Source, scheme_name: str, *, embedding: str | None = None, head: str | None = None, allow_skip: bool = False
) -> Assigned:
    """Give each tensor its scheme: the weights of Linear and Conv get `scheme_name`, embedding and head `w8` unless
    said otherwise (the scheme itself when it is a float one), everything else keeps its float type.

    A tied embedding is one tensor: `embedding` decides, else `head`.
    Raises Refused for a tensor that its scheme cannot hold, unless `allow_skip`; BadInput for an unknown scheme.
    """
    roles = {spec.role for spec in source.tensors.values()}
    by_role = role_schemes(scheme(scheme_name), roles, embedding=embedding, head=head)
    assigned: list[Assignment] = []
    skipped: list[Skipped] = []
    for name, spec in source.tensors.items():
        chosen = by_role.get(spec.role)
        if chosen is not None:
            try:
                chosen.check(name, spec.shape)
            except Refused as refusal:
                if not allow_skip:
                    raise
                skipped.append(Skipped(name, refusal.message))
                chosen = None
        assigned.append(_assignment(source, name, spec, chosen))
    return Assigned(tuple(assigned), tuple(skipped))


def _assignment(source: Source, name: str, spec: TensorSpec, chosen: Scheme | None) -> Assignment:
    dtype = source.dtype(name)
    return Assignment(name, spec.shape, spec.role, dtype, chosen.name if chosen else dtype)
