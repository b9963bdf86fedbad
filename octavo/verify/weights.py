"""Whether an artifact holds exactly the compressed model's weights, as the vendor's own reader decodes them.

Every tensor is decoded, digested and compared with the digest recorded for it, in the artifact's manifest or (better:
nobody can have edited that) in the compressed model itself; so are a static model's edges. No file hash is consulted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import Carried, EditedManifest, Manifest
from octavo.core.model import CompressedModel, Edge, TensorValue
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import OctavoError

Progress = Callable[[str, int, int], None]


class Decoder(Protocol):
    """What is needed of a runtime's read-back."""

    def tensor(self, carried: Carried) -> TensorValue: ...

    def stored(self, carried: Carried) -> NDArray[np.float32]:
        """A float tensor as it lies in the file, before any move is undone; asked for only with a carried_digest."""
        ...


@dataclass(frozen=True)
class Wrong:
    """A tensor that is not what was recorded, and what is known about how."""

    name: str
    reason: str


@dataclass(frozen=True)
class WeightsReport:
    """`against`: whose digests were compared; `checked` of `tensors` were right; `widened` counts them by move."""

    against: Literal["manifest", "compressed model", "nothing"]
    tensors: int
    checked: int
    digest: str = ""
    wrong: tuple[Wrong, ...] = ()
    widened: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str | dict[str, Any]:
        """ "exact", "unknown", or {"wrong": [{"name", "reason"}, …]}."""
        if self.wrong:
            return {"wrong": [{"name": wrong.name, "reason": wrong.reason} for wrong in self.wrong]}
        return "unknown" if self.against == "nothing" else "exact"


def check_weights(
    decoder: Decoder,
    manifest: Manifest | None,
    model: CompressedModel | None = None,
    *,
    carry: Callable[[CompressedModel], Manifest] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> WeightsReport:
    """Decode every tensor of the artifact and compare digests.

    With `model` its own records are the truth, not the artifact's manifest. `carry` (the runtime's) says where that
    model's tensors must lie: needed for an artifact without a manifest, and for floats that an architecture rule
    changes. Neither manifest nor model: unknown. Raises ValueError for a model without a manifest and without `carry`.
    """
    if manifest is None and model is None:
        return WeightsReport("nothing", 0, 0, notes=("No manifest in the artifact, no compressed model given.",))
    plan = carry(model) if carry is not None and model is not None else None
    lies = manifest if manifest is not None else plan
    if lies is None:
        raise ValueError("an artifact without a manifest is compared with a model through the runtime's carry()")
    expected = _expected(lies, model)
    rewritten = {c.name: c.carried_digest for c in (plan or lies).tensors if c.carried_digest}
    wrong: list[Wrong] = [*_absent(lies, expected), *_wrong_edges(decoder, lies, model)]
    total = len(lies.tensors)
    for done, carried in enumerate(lies.tensors):
        progress("weights", done, total)
        reason = _compare(decoder, carried, expected, rewritten, model)
        if reason:
            wrong.append(Wrong(carried.name, reason))
    progress("weights", total, total)
    return WeightsReport(
        against="manifest" if model is None else "compressed model",
        tensors=len(expected),
        checked=len(expected) - len({item.name for item in wrong}),
        digest=lies.digest if model is None else model.digest,
        wrong=tuple(wrong),
        widened=_moves(lies),
        notes=_notes(lies, model),
    )


def edited_manifest(error: EditedManifest) -> WeightsReport:
    """The report for an artifact whose manifest contradicts itself, so that nothing in it can be relied on."""
    names = error.names or ("(manifest)",)
    return WeightsReport("manifest", 0, 0, wrong=tuple(Wrong(name, str(error)) for name in names))


def _expected(lies: Manifest, model: CompressedModel | None) -> dict[str, str]:
    """The digest that each tensor must have. A manifest's parts are what its model digest is made of."""
    if model is not None:
        return {record.name: record.digest for record in model.tensors}
    return dict(lies.parts["tensors"])


def _absent(lies: Manifest, expected: Mapping[str, str]) -> list[Wrong]:
    there = {carried.name for carried in lies.tensors}
    return [Wrong(name, "is not in the artifact.") for name in expected if name not in there]


def _wrong_edges(decoder: Decoder, lies: Manifest, model: CompressedModel | None) -> list[Wrong]:
    """Quantised activations that are not what was recorded, of those that the format shows; each by its operator."""
    shown = getattr(decoder, "edges", None)
    recorded = [asdict(edge) for edge in model.edges] if model is not None else lies.parts.get("edges", [])
    if shown is None or not recorded:
        return []
    try:
        found = shown()
    except OctavoError as error:
        return [Wrong("(edges)", str(error))]
    if not found:  # the file does not say which of its values is which edge
        return []
    return [wrong for edge in recorded if (wrong := _edge_differs(edge, found.get(edge["name"])))]


def _edge_differs(edge: Mapping[str, Any], found: Edge | None) -> Wrong | None:
    if found is None:
        return Wrong(edge["name"], "the file does not quantise the value that this operator gives.")
    parts = [
        f"{what.replace('_', ' ')} {getattr(found, what)} for {edge[what]}"
        for what in ("scale", "zero_point", "dtype")
        if getattr(found, what) != edge[what]
    ]
    return Wrong(edge["name"], f"the value that this operator gives has {' and '.join(parts)}.") if parts else None


def _compare(
    decoder: Decoder,
    carried: Carried,
    expected: Mapping[str, str],
    rewritten: Mapping[str, str],
    model: CompressedModel | None,
) -> str:
    """Why the tensor is wrong; empty when it is right."""
    if carried.name not in expected:
        return "is in the artifact's manifest but not in the compressed model."
    try:
        if carried.name in rewritten:
            return _compare_rewritten(decoder, carried, expected[carried.name], rewritten[carried.name])
        if carried.carried_digest:
            return "the manifest says that its values were rewritten, and this runtime does not rewrite them."
        digest = _digest(decoder, carried)
    except (OctavoError, KeyError, ValueError) as error:
        return f"cannot be decoded from {', '.join(carried.at)}: {error}"
    if digest == expected[carried.name]:
        return ""
    twins = [name for name, other in expected.items() if other == digest]
    if twins:
        return f"holds the content of {' or '.join(twins)}: swapped."
    if model is not None:
        return f"{_difference(model.tensor(carried.name), decoder.tensor(carried))} ({', '.join(carried.at)})."
    return f"what {', '.join(carried.at)} holds has digest {digest[:16]}…, recorded {expected[carried.name][:16]}…."


def _digest(decoder: Decoder, carried: Carried) -> str:
    """The digest of what the file holds; a decoder that can digest in row blocks never holds the tensor whole."""
    streaming = getattr(decoder, "digest", None)
    if streaming is not None:
        return str(streaming(carried))
    value = decoder.tensor(carried)
    return value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)


def _compare_rewritten(decoder: Decoder, carried: Carried, record: str, rewritten: str) -> str:
    """A float tensor that an architecture's rule changed in float32 (Gemma's norm + 1): compare what lies there."""
    if carried.scheme not in ("fp32", "fp16", "bf16"):
        return f"the manifest says that its values were rewritten, which is never done to {carried.scheme}."
    if carried.digest != record:
        return f"the manifest records digest {carried.digest[:16]}…, the compressed model {record[:16]}…."
    digest = float_digest(decoder.stored(carried))
    if digest == rewritten:
        return ""
    return f"what {', '.join(carried.at)} holds has digest {digest[:16]}…, expected {rewritten[:16]}…."


def _difference(right: TensorValue, found: TensorValue) -> str:
    """How two tensors differ, counted."""
    if isinstance(right, QuantizedTensor) != isinstance(found, QuantizedTensor) or right.shape != found.shape:
        return f"expected {_kind(right)}, found {_kind(found)}"
    if not isinstance(right, QuantizedTensor) or not isinstance(found, QuantizedTensor):
        return _count("values", np.asarray(right), np.asarray(found))
    if right.block != found.block or right.range != found.range:
        return f"expected {_kind(right)}, found {_kind(found)}"
    parts = [
        _count(what, a, b)
        for what, a, b in (
            ("codes", right.codes, found.codes),
            ("scales", right.scale, found.scale),
            ("zero points", _zeros(right), _zeros(found)),
        )
        if not np.array_equal(a, b)
    ]
    return "; ".join(parts) or "the codes and scales agree, and the digests do not"


def _count(what: str, right: NDArray[Any], found: NDArray[Any]) -> str:
    where = np.argwhere(~((right == found) | ((right != right) & (found != found))))
    if not len(where):
        return f"the {what} agree, and the digests do not"
    first = tuple(int(i) for i in where[0])
    return f"{len(where)} of {right.size} {what} differ, first {list(first)}: {found[first]} for {right[first]}"


def _zeros(tensor: QuantizedTensor) -> NDArray[np.int8]:
    return np.zeros(tensor.scale.shape, np.int8) if tensor.zero_point is None else tensor.zero_point


def _kind(value: TensorValue) -> str:
    if isinstance(value, QuantizedTensor):
        grid = value.range
        return f"codes {list(value.shape)} in [{grid.low}, {grid.high}] with scales per {list(value.block)}"
    return f"floats {list(value.shape)}"


def _moves(lies: Manifest) -> dict[str, int]:
    """How many tensors were widened, by scheme and stored type; `why` is set by the runtime where a form is wider."""
    return dict(Counter(f"{c.scheme} as {c.stored_as}: {c.why}" for c in lies.tensors if c.why))


def _notes(lies: Manifest, model: CompressedModel | None) -> tuple[str, ...]:
    """What besides the weights differs between the artifact's manifest and the model."""
    if model is None or lies.digest == model.digest:
        return ()
    parts = model.parts()
    other = [name for name in parts if name != "tensors" and parts[name] != lies.parts.get(name)]
    renamed = [name for name, digest in parts["tensors"].items() if lies.parts["tensors"].get(name) != digest]
    found = [f"The artifact's manifest differs from the compressed model in: {', '.join(other)}."] if other else []
    if renamed:
        found.append(f"The manifest's own digests differ from the compressed model's for {len(renamed)} tensors.")
    return tuple(found)
