"""Reading a .pte file back: constants into codes, scales and values; its edges; the manifest that it carries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, Carried, EditedManifest, Manifest
from octavo.core.model import Edge, TensorValue
from octavo.core.tensor import QuantizedTensor
from octavo.errors import Refused
from octavo.runtimes.pte.container import Container, Span
from octavo.runtimes.pte.places import Finder, Place, digest_of, graphs, moves, places, read, walk
from octavo.runtimes.pte.xnnpack import Graph, Quantised

ASSET = "octavo.asset."  # named data that holds a tokenizer file, labels, …
STRUCTURE = "structure"  # the manifest's `extra` key of the digest of everything that is no weight


class PteReadBack:
    """A .pte file opened for verifying; neither ExecuTorch nor torch is loaded.

    Raises BadInput when the file is damaged or no ExecuTorch program.
    """

    def __init__(self, path: Path) -> None:
        self.container = Container(path)
        self.graphs = graphs(self.container)
        self.places = places(self.container, self.graphs)
        self._finder = Finder(self.container, self.places)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest in the file, None without one.

        Raises EditedManifest when it contradicts itself, or when anything but the weights is not as it was written.
        """
        return checked_manifest(self.container, self.graphs, self.places)

    def tensor(self, carried: Carried) -> TensorValue:
        """Codes and scales, or float32 values. Raises Refused when what lies there cannot be the tensor described.

        A tensor that several operators use may lie in several places: the first that differs is returned.
        """
        at, move = self._where(carried)
        values = [read(self.container, self._place(carried, name), carried.scheme, carried.shape, move) for name in at]
        return next((value for value in values if digest_of(value) != carried.digest), values[0])

    def digest(self, carried: Carried) -> str:
        """The digest of `tensor(carried)`. Raises Refused likewise."""
        return digest_of(self.tensor(carried))

    def stored(self, carried: Carried) -> NDArray[np.float32]:
        """A float tensor as it lies in the file, in its own order of axes. Raises Refused like `tensor`."""
        value = self.tensor(carried)
        return np.asarray(value.dequantize() if isinstance(value, QuantizedTensor) else value, np.float32)

    def edges(self) -> dict[str, Edge]:
        """{edge: how the file quantises that value}: of several places the first that is not as recorded.

        Edges whose value no delegate holds (another operator took it along) are left out.
        """
        manifest = _unchecked(self.container)
        if manifest is None:
            return {}
        wanted = {item["name"]: Edge(**item) for item in manifest.parts["edges"]}
        found: dict[str, Edge] = {}
        for name, held in edges_at(self.graphs, manifest).items():
            if held:
                found[name] = next((edge for edge in held if not _same(edge, wanted[name])), wanted[name])
        return found

    def find(self, carried: Carried) -> tuple[tuple[str, ...], str]:
        """(places with exactly the content that is recorded, the move made to it); no places where there is none."""
        return self._finder.find(carried.scheme, carried.shape, carried.digest)

    def listing(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Every constant of the file: (place, shape of what is stored, type)."""
        return list(walk(self.places))

    def close(self) -> None:
        """Let go of the file."""
        self.container.close()

    def _where(self, carried: Carried) -> tuple[tuple[str, ...], str]:
        if carried.at:
            made = [move for move in carried.moves if move in moves(carried.shape)]
            return carried.at, made[0] if made else ""
        at, move = self.find(carried)
        if not at:
            raise Refused(
                f"{carried.name}: no constant of the file has its content, {carried.scheme} {list(carried.shape)}."
            )
        return at, move

    def _place(self, carried: Carried, name: str) -> Place:
        if name not in self.places:
            raise Refused(f"{carried.name}: the file has no constant {name}.", "Export the model again.")
        return self.places[name]


def checked_manifest(container: Container, graphs: dict[int, Graph], there: dict[str, Place]) -> Manifest | None:
    """The manifest of a file; raises EditedManifest like `PteReadBack.manifest`."""
    manifest = _unchecked(container)
    if manifest is None:
        return None
    if manifest.extra.get(STRUCTURE) != structure_digest(container, manifest, there):
        changed = tuple(f"edge {name}" for name in _changed_edges(graphs, manifest))
        raise EditedManifest(
            f"The program was changed after Octavo wrote the file{': ' if changed else ''}{', '.join(changed)}; "
            "it may compute something else with the same weights.",
            "Export the model again.",
            names=changed,
        )
    return manifest


def structure_digest(container: Container, manifest: Manifest, there: dict[str, Place]) -> str:
    """SHA-256 of all bytes of the file but those of the weights that the manifest names, and of the manifest itself."""
    left_out = [span for item in manifest.tensors for at in item.at if at in there for span in there[at].spans]
    left_out.append(container.named[KEY])
    whole, at = hashlib.sha256(), 0
    for span in _merged(left_out):
        whole.update(container.data[at : span.start])
        at = span.stop
    whole.update(container.data[at:])
    return whole.hexdigest()


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans, key=lambda item: (item.start, item.stop)):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        else:
            merged.append(span)
    return merged


def edges_at(graphs: dict[int, Graph], manifest: Manifest) -> dict[str, list[Edge]]:
    """{edge: what lies at each place that the manifest names for it}; an empty list where no delegate holds it."""
    kinds = {item["name"]: item["dtype"] for item in manifest.parts["edges"]}
    found: dict[str, list[Edge]] = {name: [] for name in kinds}
    for name, at in manifest.extra.get("edges", {}).items():
        for place in at if name in found else ():
            held = _quantised_at(graphs, place)
            if held is not None:
                found[name].append(Edge(name, held.scale, held.zero_point, kinds[name]))
    return found


def find_edges(graphs: dict[int, Graph], edges: Iterable[Edge]) -> dict[str, list[str]]:
    """{edge: the values with exactly its scale and zero point}, when a file is written."""
    there: dict[tuple[float, int], list[str]] = {}
    for number, graph in graphs.items():
        for index, value in enumerate(graph.values):
            held = value.quantised
            if held is not None and held.per_tensor and value.datatype == "qint8":
                there.setdefault((held.scale, held.zero_point), []).append(f"xnnpack{number}:{index}")
    return {edge.name: there.get((float(np.float32(edge.scale)), edge.zero_point), []) for edge in edges}


def _quantised_at(graphs: dict[int, Graph], place: str) -> Quantised | None:
    """The quantisation of value `xnnpackD:V`; None where there is no such value, or it has none."""
    delegate, _, value = place.removeprefix("xnnpack").partition(":")
    if not (delegate.isdigit() and value.isdigit()) or int(delegate) not in graphs:
        return None
    values = graphs[int(delegate)].values
    return values[int(value)].quantised if int(value) < len(values) else None


def _same(found: Edge, wanted: Edge) -> bool:
    """Whether they agree; a file keeps scales in fp32."""
    return (found.scale, found.zero_point) == (float(np.float32(wanted.scale)), wanted.zero_point)


def _changed_edges(graphs: dict[int, Graph], manifest: Manifest) -> list[str]:
    wanted = {item["name"]: Edge(**item) for item in manifest.parts["edges"]}
    found = edges_at(graphs, manifest)
    return [name for name, held in found.items() if any(not _same(edge, wanted[name]) for edge in held)]


def _unchecked(container: Container) -> Manifest | None:
    span = container.named.get(KEY)
    return None if span is None else Manifest.from_json(container.bytes(span).decode("utf-8", "replace"))
