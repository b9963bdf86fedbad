"""What an artifact says about itself: which compressed model it carries, and where and how each tensor lies in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from octavo.core.model import CompressedModel, canonical_json, model_digest
from octavo.errors import BadInput

FORMAT = "octavo.manifest/1"
KEY = "octavo.manifest"  # the metadata key in formats that have metadata; else a sidecar FILE.octavo.json


@dataclass(frozen=True)
class Carried:
    """One tensor in an artifact.

    name, shape, role, scheme, digest: as in the compressed model. stored_as: the format's own type. at: its name(s)
    in the artifact. moves: the exact moves made, in order. carried_digest: for a float tensor that the architecture's
    rules change in float32 (Gemma's norm + 1), the digest of what lies in the file instead.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    scheme: str
    digest: str
    stored_as: str
    at: tuple[str, ...]
    moves: tuple[str, ...] = ()
    why: str = ""
    carried_digest: str = ""


@dataclass(frozen=True)
class Manifest:
    """The record that travels with an artifact. `parts` are what the model's digest is made of (model.py)."""

    runtime: str
    parts: dict[str, Any]
    tensors: tuple[Carried, ...]
    notes: tuple[str, ...] = ()
    program: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The compressed model's digest."""
        return model_digest(self.parts)

    def to_json(self) -> str:
        """One line of JSON with a seal over the rest, so that an edit anywhere is noticed."""
        body = {"format": FORMAT, "digest": self.digest} | asdict(self)
        body["seal"] = _seal(body)
        return canonical_json(body).decode()

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read a manifest. Raises BadInput when it is damaged or was edited (naming what does not agree)."""
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise BadInput(f"Manifest format {body['format']!r}; this Octavo reads {FORMAT!r}.")
            lists = ("shape", "at", "moves")
            tensors = tuple(Carried(**item | {key: tuple(item[key]) for key in lists}) for item in body["tensors"])
            manifest = Manifest(
                body["runtime"], body["parts"], tensors, tuple(body["notes"]), body["program"], body["extra"]
            )
            digest, seal = body["digest"], body.pop("seal")
            edited = [item.name for item in tensors if manifest.parts["tensors"].get(item.name) != item.digest]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EditedManifest(f"The artifact's manifest is damaged ({type(error).__name__}: {error}).") from error
        if edited or digest != manifest.digest or seal != _seal(body):
            what = f"tensor {edited[0]}" if edited else "model digest" if digest != manifest.digest else "seal"
            raise EditedManifest(
                f"The artifact's manifest was edited: its {what} does not agree with the rest.", names=tuple(edited)
            )
        return manifest


class EditedManifest(BadInput):
    """A manifest that contradicts itself: the artifact's weights cannot be called exact (exit code 6).

    `names`: the tensors whose two digests disagree, where it is those.
    """

    def __init__(self, message: str, remedy: str = "", names: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.names = names


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json({key: value for key, value in body.items() if key != "seal"})).hexdigest()


def manifest_for(model: CompressedModel, runtime: str, tensors: tuple[Carried, ...], **fields: Any) -> Manifest:
    """The manifest of `model` lowered to `runtime`."""
    return Manifest(runtime=runtime, parts=model.parts(), tensors=tensors, **fields)
