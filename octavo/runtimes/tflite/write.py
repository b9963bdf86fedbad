"""The finished file: the graph with manifest and assets in its metadata, the same bytes for the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.manifest import KEY, Manifest
from octavo.errors import OctavoError
from octavo.runtimes.tflite.file import TfliteFile, graph_digest
from octavo.runtimes.tflite.graph import Graph

ASSET = "octavo.asset."
LIMIT = 2_000_000_000  # FlatBuffers' offsets are 31 bits


def write(path: Path, graph: Graph, manifest: Manifest, assets: dict[str, bytes]) -> None:
    """Write `graph` to `path`, and into its manifest what `graph_digest` says of it.

    Raises OctavoError for more than 2 GB, which the format cannot hold.
    """
    graph.model.description = "octavo"
    size = sum(0 if buffer.data is None else len(buffer.data) for buffer in graph.model.buffers)
    if size + sum(map(len, assets.values())) > LIMIT:
        raise OctavoError(
            f"The file would hold {size:,} bytes; a .tflite holds 2 GB.", "Use fewer bits or another runtime."
        )
    kept = [item for item in graph.model.metadata or () if item.name in (b"min_runtime_version", "min_runtime_version")]
    draft = replace(manifest, extra=manifest.extra | {"graph": "0" * 64}).to_json().encode()
    added = [(f"{ASSET}{name}", data) for name, data in sorted(assets.items())] + [(KEY, draft)]
    graph.model.metadata = kept + [_entry(graph, name, data) for name, data in added]
    path.write_bytes(graph.pack())
    file = TfliteFile(path)
    start, stop = file.span(file.metadata[KEY])
    digest = graph_digest(file, [at for item in manifest.tensors for at in item.at])
    text = replace(manifest, extra=manifest.extra | {"graph": digest}).to_json().encode()
    assert len(text) == stop - start, "a digest is as long as its draft"
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(text)


def _entry(graph: Graph, name: str, data: bytes) -> Any:
    buffer = graph.schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    graph.model.buffers.append(buffer)
    made = graph.schema.MetadataT()
    made.name, made.buffer = name, len(graph.model.buffers) - 1
    return made


def assets_of(file: TfliteFile) -> dict[str, bytes]:
    """What travels with the program: labels, preprocessing."""
    return {name.removeprefix(ASSET): data.tobytes() for name, data in file.metadata.items() if name.startswith(ASSET)}
