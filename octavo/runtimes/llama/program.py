"""What llama.cpp will compute with a file's weights: every metadata key, and the tensors beside the model's own.

A GGUF holds no graph: llama.cpp derives it from the metadata and from which tensors are there (an added bias is added).
So the manifest names both, and a file that says anything else is no longer the one that was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, EditedManifest, Manifest
from octavo.core.tensor import float_digest

EXTRA = "program"  # in manifest.extra: {"metadata": {key: digest}, "tensors": {GGUF name: digest}}
HEADER = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")  # gguf-py lists these among the keys


def written_program(writer: Any, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, dict[str, str]]:
    """The record of what a GGUFWriter holds by now; `tensors`: those beside the model's own (RoPE factors)."""
    held = {key: value for shard in writer.kv_data for key, value in shard.items()}
    packed = {
        key: writer._pack_val(value.value, value.type, add_vtype=True, sub_type=value.sub_type)
        for key, value in held.items()
    }
    return {
        "metadata": {key: hashlib.sha256(value).hexdigest() for key, value in sorted(packed.items())},
        "tensors": {name: float_digest(values) for name, values in sorted(tensors.items())},
    }


def check_program(manifest: Manifest, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Hold gguf-py's `fields` and `tensors` of a file against its manifest.

    Raises EditedManifest, naming the keys and tensors, when something was added, taken away or changed.
    """
    recorded = manifest.extra.get(EXTRA)
    if not isinstance(recorded, dict) or not all(isinstance(recorded.get(k), dict) for k in ("metadata", "tensors")):
        raise EditedManifest("The manifest does not say which metadata the file was written with.", "Export it again.")
    keys, others = recorded["metadata"], recorded["tensors"]
    own = {at for carried in manifest.tensors for at in carried.at}
    found = {key: _field_digest(field) for key, field in fields.items() if key not in (*HEADER, KEY)}
    beside = {name: _tensor_digest(tensor) for name, tensor in tensors.items() if name not in own}
    differ = [*_differences("metadata", keys, found), *_differences("tensor", others, beside)]
    if differ:
        what = "; ".join(text for _, text in differ[:5])
        raise EditedManifest(
            f"The file was changed after Octavo wrote it, and llama.cpp may compute something else with the same "
            f"weights: {what} ({len(differ)} in all).",
            "Export the model again.",
            names=tuple(name for name, _ in differ),
        )


def _differences(kind: str, recorded: Mapping[str, str], found: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """(name, what is wrong with it), in order of names."""
    for name in sorted(recorded.keys() | found.keys()):
        if name not in recorded:
            yield name, f"{kind} {name} was added"
        elif name not in found:
            yield name, f"{kind} {name} is gone"
        elif recorded[name] != found[name]:
            yield name, f"{kind} {name} was changed"


def _field_digest(field: Any) -> str:
    """SHA-256 of the value's bytes in the file, its type in front: what gguf-py's writer packs."""
    digest = hashlib.sha256()
    for part in field.parts[2:]:  # the key's length and text come before
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _tensor_digest(tensor: Any) -> str:
    """Of a float32 tensor as the model's are; of any other the type is enough to tell it from what is written."""
    if tensor.tensor_type.name != "F32":
        return str(tensor.tensor_type.name)
    shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
    return float_digest(np.asarray(tensor.data, np.float32).reshape(shape))
