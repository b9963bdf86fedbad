"""Reading a package back: coremltools' reader decodes it in the worker; here its numbers become the tensors again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, Carried, EditedManifest, Manifest
from octavo.core.model import Edge, TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import BadInput, Refused
from octavo.runtimes.mlpackage.layout import OPERATIONS, Compute, decode, layout_of
from octavo.runtimes.mlpackage.service import Package


class CoreMlReadBack:
    """A package opened with coremltools. Raises BadInput when it is damaged or no ML program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._package = Package(path)
        self.metadata: dict[str, str] = self._package.info["metadata"]

    @property
    def manifest(self) -> Manifest | None:
        """The manifest in the package's metadata, None without one.

        Raises EditedManifest when it contradicts itself, or when program or edges are not those that were written.
        """
        return checked_manifest(self._package.info)

    def edges(self) -> dict[str, Edge]:
        """The quantised values by the names that the model has for them; of another program by its own names."""
        info = self._package.info
        return _named_edges(_recorded(info.get("metadata", {})), info["edges"])

    def listing(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Every constant of the program: (name, shape, type; of compressed ones the operation that decodes them)."""
        return [(name, tuple(shape), kind) for name, shape, kind in self._package.info["listing"]]

    def tensor(self, carried: Carried) -> TensorValue:
        """Codes and scales, or float32 values. Raises Refused when what lies there cannot be the tensor described."""
        compute: Compute = "fp16" if self._computes_half() else "fp32"
        affine = carried.stored_as.startswith(OPERATIONS["affine"])
        layout = layout_of(carried.scheme, affine=affine, compute=compute)
        reply = self._package.call("fetch", at=carried.at[0])
        expected = OPERATIONS["blockwise" if layout.kind == "table" else layout.kind]
        if reply.result["type"] != expected:
            raise Refused(f"{carried.name} (as {carried.at[0]}): {reply.result['type']} lies there, not {expected}.")
        arrays = {part: _axes_undone(value, carried) for part, value in reply.arrays.items()}
        if carried.scheme in SCHEMES and not SCHEMES[carried.scheme].is_float:
            return decode(carried.name, carried.scheme, carried.shape, arrays)
        if not (arrays.get("scale", np.float32(1)) == 1).all():
            raise Refused(f"{carried.name} (as {carried.at[0]}): scaled floats lie there.")
        values = np.ascontiguousarray(arrays["values"].astype(np.float32))
        if values.shape != carried.shape:
            raise Refused(f"{carried.name} (as {carried.at[0]}): {list(values.shape)}, not {list(carried.shape)}.")
        return values

    def digest(self, carried: Carried) -> str:
        """The digest of `tensor(carried)`. Raises Refused likewise."""
        value = self.tensor(carried)
        return value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)

    def stored(self, carried: Carried) -> NDArray[np.float32]:
        """A float tensor as it lies in the file; here nothing rewrites one. Raises Refused like `tensor`."""
        return np.asarray(self.tensor(carried), np.float32)

    def close(self) -> None:
        """Let the worker forget the package."""
        self._package.close()

    def _computes_half(self) -> bool:
        manifest = self.manifest
        return manifest is not None and manifest.extra.get("compute") == "fp16"


def checked_manifest(info: dict[str, Any]) -> Manifest | None:
    """The manifest of an opened package; raises EditedManifest like `CoreMlReadBack.manifest`."""
    text = info["metadata"].get(KEY)
    if text is None:
        return None
    manifest = Manifest.from_json(text)
    wrong = _changed_edges(manifest, info["edges"])
    if wrong:
        raise EditedManifest(
            f"The program does not quantise as its manifest says: {', '.join(wrong)}.",
            "Export the model again.",
            names=tuple(f"edge {name}" for name in wrong),
        )
    if manifest.extra.get("graph") != info["digest"]:
        raise EditedManifest(
            "The program was changed after Octavo wrote the package: with the same weights it may compute "
            "something else.",
            "Export the model again.",
        )
    return manifest


def _recorded(metadata: Mapping[str, str]) -> Manifest | None:
    """The manifest, edited or not: only to know which operation is which edge."""
    try:
        return Manifest.from_json(metadata[KEY])
    except (KeyError, BadInput):
        return None


def _named_edges(manifest: Manifest | None, found: list[Any]) -> dict[str, Edge]:
    """{edge: what its quantize operation has}. Without a manifest, the name that it was given after its edge."""
    places = manifest.extra.get("edges", {}) if manifest is not None else {}
    names = {at: name for name, at in places.items()}
    return {
        name: Edge(name, scale, zero, "int8")
        for kind, at, scale, zero in found
        if kind == "quantize" and (name := names.get(at) or re.sub(r"^e\d+_", "", at))
    }


def _changed_edges(manifest: Manifest, found: list[Any]) -> list[str]:
    """Names of the edges that the program has otherwise than the manifest, or not at all, or besides."""
    there = _named_edges(manifest, found)
    recorded = {item["name"]: item for item in manifest.parts["edges"]}
    numbers = {(float(np.float32(item["scale"])), item["zero_point"]) for item in recorded.values()}
    wrong = [
        name
        for name, item in recorded.items()
        if name not in there
        or (there[name].scale, there[name].zero_point) != (float(np.float32(item["scale"])), item["zero_point"])
    ]
    wrong += [name for name in there if name not in recorded]
    return wrong or [at for kind, at, scale, zero in found if kind == "dequantize" and (scale, zero) not in numbers]


def _axes_undone(value: NDArray[Any], carried: Carried) -> NDArray[Any]:
    """Put exchanged axes and another shape back, as the manifest's moves say."""
    for move in carried.moves:
        if move.startswith("shape ") and value.size == prod(carried.shape):
            return value.reshape(carried.shape)
        if move.startswith("axes ") and value.ndim == len(carried.shape):
            order = [int(axis) for axis in move.removeprefix("axes ").split(",")]
            value = value.transpose(np.argsort(order))
    return value
