"""An ML program's protobuf message: its operations, and a digest of all of it but the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.manifest import KEY

KEPT = ("name", "output_dtype", "axis", "lut")  # of a tensor's operation: what says how its numbers are meant


def operations(spec: Any) -> Iterator[Any]:
    """Every operation of every function, nested blocks included."""
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from _of_block(block)


def _of_block(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _of_block(inner)


def program_digest(spec: Any, weights: Path, carried: set[str]) -> str:
    """SHA-256 of the program, its metadata and its constants, except the manifest and what the tensors `carried` hold.

    What those hold is proved by their own digests. Raises whatever coremltools' reader raises for a damaged file.
    """
    from coremltools.converters.mil.frontend.milproto.load import TranscriptionContext, _load_value

    bare = type(spec)()
    bare.CopyFrom(spec)
    bare.description.metadata.userDefined.pop(KEY, None)
    context, digest = TranscriptionContext(str(weights)), hashlib.sha256()
    for operation in operations(bare):
        own = {output.name for output in operation.outputs}
        held = own & carried or {name.removesuffix("_table") for name in own} & carried
        for value in _file_values(operation):
            if not held:
                digest.update(np.ascontiguousarray(_load_value(context, value)).tobytes())
        if held:
            _blank(operation)
    digest.update(bare.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _file_values(operation: Any) -> Iterator[Any]:
    """The values of an operation that lie in the file of weights."""
    for value in (*operation.attributes.values(), *_bound(operation)):
        if value.WhichOneof("value") == "blobFileValue":
            yield value


def _bound(operation: Any) -> Iterator[Any]:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                yield binding.value


def _blank(operation: Any) -> None:
    """Take the numbers out of a tensor's operation; its types, shapes and the table of its codes stay."""
    for key, value in operation.attributes.items():
        if key not in KEPT:
            value.ClearField("immediateValue")
    for key, argument in operation.inputs.items():
        for binding in argument.arguments:
            if key not in KEPT and binding.WhichOneof("binding") == "value":
                binding.value.ClearField("immediateValue")
