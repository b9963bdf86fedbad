"""What is this path: a float model, a compressed model or an artifact; read from headers and indexes only."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from octavo.api.compress import describe
from octavo.core.manifest import EditedManifest, Manifest
from octavo.core.store import INDEX
from octavo.core.store import load as load_store
from octavo.errors import BadInput
from octavo.records import ModelRecord, TensorSummary
from octavo.runtimes.base import SUFFIXES


def inspect(path: str | Path) -> ModelRecord:
    """Describe `path`. Raises BadInput when it is nothing that Octavo knows, or is damaged."""
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path}: no such file or directory.", "Check the path.")
    if (path / INDEX).is_file():
        return describe(load_store(path), path)
    if path.is_dir() and path.suffix not in SUFFIXES:
        return _huggingface(path)
    return _artifact(path)


def _huggingface(path: Path) -> ModelRecord:
    from octavo.sources.huggingface import open_huggingface

    source = open_huggingface(path)
    try:
        tensors = tuple(TensorSummary(n, t.shape, source.dtype(n), None) for n, t in source.tensors.items())
        parameters = sum(prod(tensor.shape) for tensor in tensors)
        size = sum(source.files[name].entries[name].nbytes for name in source.tensors)
    finally:
        source.close()
    kind = f"float model ({source.spec.family}, Hugging Face)"
    return ModelRecord(str(path), kind, None, parameters, size, 8 * size / max(parameters, 1), tensors)


def _artifact(path: Path) -> ModelRecord:
    """An artifact by its runtime's own reader: every tensor it lists, and the manifest if it has one."""
    from octavo.runtimes.base import runtime_of

    target = runtime_of(path)
    notes: list[str] = []
    manifest: Manifest | None = None
    read_back: Any = target.read_back(path)
    try:
        listed = [TensorSummary(n, tuple(shape), kind, None) for n, shape, kind in read_back.listing()]
        try:
            manifest = read_back.manifest
        except EditedManifest as error:
            notes.append(str(error))
    finally:
        read_back.close()
    size = sum(file.stat().st_size for file in target.files(path))
    parameters = sum(prod(t.shape) for t in manifest.tensors) if manifest else sum(prod(t.shape) for t in listed)
    foreign = manifest is None and not notes
    is_float = foreign and all("FLOAT" in t.scheme.upper() for t in listed if len(t.shape) > 1)
    if foreign and not is_float:
        notes.append("No manifest: made by another tool, or stripped. Its weights cannot be traced to a model.")
    return ModelRecord(
        path=str(path),
        kind=f"float model ({path.suffix[1:]})" if is_float else f"{target.name} artifact",
        digest=manifest.digest if manifest else None,
        parameters=parameters,
        bytes=size,
        bits_per_weight=8 * size / max(parameters, 1),
        tensors=tuple(listed),
        notes=(*notes, *(manifest.notes if manifest else ())),
    )
