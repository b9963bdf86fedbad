"""Reading a .tflite file back through LiteRT's schema: constants into codes, scales and values, and the edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, Carried, EditedManifest, Manifest
from octavo.core.model import Edge, TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import Refused
from octavo.runtimes.tflite.file import AGAIN, DAMAGE, TfliteFile, is_intact, manifest_of
from octavo.runtimes.tflite.layout import (
    BIAS,
    PRODUCTS,
    bias_values,
    bits_of,
    constant_values,
    decode,
    product_of,
    with_negative_zeros,
)
from octavo.runtimes.tflite.match import axes_of

FLOATS = {"FLOAT32": np.float32, "FLOAT16": np.float16}
WANTED = {"CONV_2D": (0, 2, 3, 1), "DEPTHWISE_CONV_2D": (1, 2, 3, 0)}  # axes of our weights, as these lie in a file
BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_3D")


class TfliteReadBack:
    """A file opened with LiteRT's schema; nothing of it is run. Raises BadInput when it is damaged or no .tflite."""

    def __init__(self, path: Path) -> None:
        self.file = TfliteFile(path)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest in the file, None without one.

        Raises EditedManifest when it contradicts itself, or when the graph is not the one that was written: with the
        names of the tensors and edges that are other than recorded, where it is those.
        """
        manifest = manifest_of(self.file)
        if manifest is not None and not is_intact(self.file, manifest):
            names = (*self._other_tensors(manifest), *self._other_edges(manifest))
            raise EditedManifest(
                "The graph was changed after Octavo wrote the file: it may compute something else.",
                "Export the model again.",
                names,
            )
        return manifest

    def edges(self) -> dict[str, Edge]:
        """The quantised activations by the names of the model's edges; of a file without a manifest by the tensors'.

        Raises Refused for one without a scale.
        """
        manifest = manifest_of(self.file)
        if manifest is None:
            return dict(self._edges_by_tensor())
        return {name: self._edge(name, at) for name, at in manifest.extra.get("edges", {}).items()}

    def tensor(self, carried: Carried) -> TensorValue:
        """Codes and scales, or float32 values. Raises Refused when what lies there cannot be the tensor described."""
        ways = [carried] if KEY in self.file.metadata else self._ways(carried)
        found = [self._decoded(way) for way in ways[:1]]
        found += [self._decoded(way) for way in ways[1:] if _digest(found[0]) != carried.digest]
        return next((value for value in found if _digest(value) == carried.digest), found[0])

    def _decoded(self, carried: Carried) -> TensorValue:
        try:
            values = [self._tensor(carried, at) for at in carried.at]
        except DAMAGE as error:
            raise Refused(f"{carried.name}: cannot be read ({type(error).__name__}: {error}).", AGAIN) from error
        if len({_digest(value) for value in values}) != 1:
            raise Refused(f"{carried.name}: {' and '.join(carried.at)} differ.", "Export the model again.")
        return values[0]

    def digest(self, carried: Carried) -> str:
        """The digest of `tensor(carried)`. Raises Refused likewise."""
        return _digest(self.tensor(carried))

    def listing(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Every constant of the file: (name, shape, type)."""
        try:
            file = self.file
            held = (index for index in range(file.count) if file.bytes_of(index).size)
            return [(file.name(index), file.shape(index), file.type(index)) for index in held]
        except DAMAGE as error:
            raise self.file.damaged(error) from error

    def stored(self, carried: Carried) -> NDArray[np.float32]:
        """A float tensor as it lies in the file; here nothing rewrites one. Raises Refused like `tensor`."""
        return np.asarray(self.tensor(carried), np.float32)

    def close(self) -> None:
        """Let go of what was read."""
        del self.file

    def _tensor(self, carried: Carried, at: str) -> TensorValue:
        if at not in self.file.names:
            raise Refused(f"{carried.name}: the file has no tensor {at}.", "Export the model again.")
        index, shape = self.file.names[at], carried.shape
        axes = axes_of(carried.moves, len(shape))
        grid = SCHEMES.get(carried.scheme)
        if grid is None or grid.range is None:
            values = self._values(carried, index).reshape([shape[axis] for axis in axes])
            return np.ascontiguousarray(values.transpose(np.argsort(axes)) if shape else values)
        bits, kind = bits_of(carried.scheme), self.file.type(index)
        if kind != f"INT{bits}":
            raise Refused(f"{carried.name} (as {at}): the file has {kind}, not INT{bits}.")
        scale = self._scale(carried, index, axes)
        return decode(carried.name, carried.scheme, shape, axes, self.file.bytes_of(index), bits, scale)

    def _scale(self, carried: Carried, index: int, axes: tuple[int, ...]) -> NDArray[np.float32]:
        """The scales of a weight. Raises Refused where they are not of its scheme, or it has a zero point."""
        group = SCHEMES[carried.scheme].group
        if group:
            blocks = self.file.block_scales(index)
            if blocks is None or blocks[1] != group:
                raise Refused(f"{carried.name}: the file has no scales per {group} weights.")
            return blocks[0]
        held = self.file.quantization(index)
        if held is None:
            raise Refused(f"{carried.name}: the file has no scales.")
        scale, zero, axis = held
        if zero.any():
            raise Refused(f"{carried.name}: zero points up to {np.abs(zero).max()}; weights have none.")
        if scale.size > 1 and axis != axes.index(0):
            raise Refused(f"{carried.name}: its scales run along axis {axis}, not {axes.index(0)}.")
        return scale

    def _values(self, carried: Carried, index: int) -> NDArray[np.float32]:
        """A float tensor's values: floats, or the codes of a bias or of a constant with an edge of its own."""
        kind, data = self.file.type(index), self.file.bytes_of(index)
        if kind in FLOATS:
            return data.view(FLOATS[kind]).astype(np.float32)
        return with_negative_zeros(self._from_integers(carried, index, kind, data), carried.moves)

    def _from_integers(self, carried: Carried, index: int, kind: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        held = self.file.quantization(index)
        if kind in ("INT32", "INT64") and held is not None:
            for operator, inputs, _ in self.file.operators():
                if operator in BIASED and len(inputs) > 2 and inputs[2] == index:
                    return self._bias(carried, inputs, data.view(np.int32 if kind == "INT32" else np.int64))
        if kind in ("INT8", "INT16") and held is not None and held[0].size == 1:
            codes = data.view(np.int8 if kind == "INT8" else np.int16)
            return constant_values(codes, held[0][0], int(held[1][0]))
        raise Refused(f"{carried.name}: the file has {kind}, which is no form of {carried.scheme}.")

    def _bias(self, carried: Carried, inputs: list[int], codes: NDArray[np.generic]) -> NDArray[np.float32]:
        scales = self.file.quantization(inputs[0]), self.file.quantization(inputs[1])
        if scales[0] is None or scales[1] is None:
            raise Refused(f"{carried.name}: integer codes beside an input or a weight without a scale.")
        return bias_values(codes, scales[0][0][0], scales[1][0], product_of(carried.moves))

    def _edge(self, name: str, at: str) -> Edge:
        index = self.file.names.get(at)
        held = self.file.quantization(index) if index is not None else None
        if index is None or held is None or held[0].size != 1:
            raise Refused(f"The edge '{name}' (as {at}): the file has no scale for it.", AGAIN)
        return Edge(name, float(held[0][0]), int(held[1][0]), self.file.type(index).lower())

    def _edges_by_tensor(self) -> Iterator[tuple[str, Edge]]:
        """Of several tensors whose names differ by a number only, the first that is quantised."""
        seen: set[str] = set()
        for index in range(self.file.count):
            at = self.file.name(index)
            name, held = at.partition("#")[0], self.file.quantization(index)
            if name not in seen and held is not None and held[0].size == 1:
                seen.add(name)
                yield name, self._edge(name, at)

    def _ways(self, carried: Carried) -> list[Carried]:
        """How a tensor can lie in a file that does not say it: as the operator that reads it wants its axes."""
        index = self.file.names.get(carried.at[0], -1)
        kinds = [kind for kind, inputs, _ in self.file.operators() if len(inputs) > 1 and inputs[1] == index]
        orders = [WANTED[kind] for kind in kinds if kind in WANTED and len(WANTED[kind]) == len(carried.shape)]
        moves = [f"permuted {','.join(map(str, axes))}" for axes in orders[:1]]
        products = [f"{BIAS}{product}" for product in PRODUCTS] if carried.scheme in ("fp32", "fp16", "bf16") else []
        return [replace(carried, moves=(*carried.moves, *moves, product)) for product in products or [""]]

    def _other_tensors(self, manifest: Manifest) -> list[str]:
        """Names of the tensors that do not decode to their digest."""
        return [item.name for item in manifest.tensors if self._digest_or_none(item) != item.digest]

    def _digest_or_none(self, carried: Carried) -> str | None:
        try:
            return self.digest(carried)
        except (Refused, *DAMAGE):
            return None

    def _other_edges(self, manifest: Manifest) -> list[str]:
        """Names of the edges whose scale, zero point or type is not the recorded one."""
        held, wrong = manifest.extra.get("edges", {}), []
        for item in manifest.parts["edges"]:
            try:
                edge = self._edge(item["name"], held[item["name"]])
                same = (edge.scale, edge.zero_point, edge.dtype) == (item["scale"], item["zero_point"], item["dtype"])
            except (Refused, *DAMAGE):
                same = False
            wrong += [] if same else [item["name"]]
        return wrong


def _digest(value: TensorValue) -> str:
    return value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)
