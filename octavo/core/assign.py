"""Which scheme for which tensor: the rule that stage one and the planner share. Roles and shapes in, schemes out."""

from __future__ import annotations

from collections.abc import Collection

from octavo.core.architecture import Role
from octavo.core.scheme import Scheme, scheme
from octavo.errors import BadInput


def role_schemes(
    main: Scheme, roles: Collection[Role], *, embedding: str | None = None, head: str | None = None
) -> dict[Role, Scheme]:
    """The scheme of every role that is quantised, of a model whose tensors have `roles`; other roles stay float.

    Linear and Conv get `main`, embedding and head `w8` unless said otherwise (`main` itself when it is a float one).
    Without a head of its own the embedding is tied, one tensor: `embedding` decides, else `head`.
    Raises BadInput for an unknown scheme, two for one tied tensor, or an option that no tensor answers to.
    """
    large = main if main.is_float else scheme("w8")
    tied = "head" not in roles
    if tied and embedding and head and embedding != head:
        raise BadInput(
            f"Embedding and head are one tied tensor: it cannot be both {embedding} and {head}.",
            "Give one of --embedding and --head.",
        )
    if embedding and "embedding" not in roles:
        raise BadInput(f"--embedding {embedding}: the model has no embedding.", "Leave the option out.")
    if head and tied and "embedding" not in roles:
        raise BadInput(f"--head {head}: the model has no head apart from its layers.", "Leave the option out.")
    return {
        "matmul": main,
        "conv": main,
        "embedding": scheme(embedding or (head if tied else None) or large.name),
        "head": scheme(head or large.name),
    }
