"""The framing both ends of a worker share: one JSON header line, then the bytes of an npz.

A message is `{"kind": ..., "arrays": [names], "bytes": n, ...}\\n` followed by n bytes (none when there are no
arrays). Kinds: `request` (parent to child), `event`, `result`, `error` (child to parent). Arrays travel as npz
without pickles, stored and not compressed; their names are in the header, so a name may hold any character.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, WorkerDied

REQUEST, EVENT, RESULT, ERROR = "request", "event", "result", "error"
MAX_HEADER_BYTES = 64 << 20


def pack(kind: str, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """Return one framed message.

    Raises BadInput for an array whose type npz cannot carry without a pickle (objects, and extension types such as
    bfloat16, which numpy would silently store as raw bytes), or for fields that JSON cannot carry.
    """
    arrays = arrays or {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.hasobject or array.dtype.kind == "V":
            got = getattr(array, "dtype", type(array).__name__)
            raise BadInput(f"array {name!r} of type {got} cannot be sent to a worker.", "Send plain numbers or bytes.")
    body = b""
    if arrays:
        buffer = io.BytesIO()
        np.savez(buffer, **{f"a{i}": array for i, array in enumerate(arrays.values())})
        body = buffer.getvalue()
    try:
        header = json.dumps({**fields, "kind": kind, "arrays": list(arrays), "bytes": len(body)}, default=plain)
    except (TypeError, ValueError) as error:
        raise BadInput(f"a worker's {kind} holds something JSON cannot carry: {error}.") from None
    return header.encode() + b"\n" + body


def plain(value: Any) -> Any:
    """Return the Python number behind a numpy scalar; TypeError for anything else JSON does not know."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def header_of(line: bytes) -> dict[str, Any]:
    """Parse a header line. Raises WorkerDied when the other end wrote something that is not the protocol."""
    try:
        header = json.loads(line)
        int(header["bytes"]), list(header["arrays"]), str(header["kind"])
    except (ValueError, KeyError, TypeError):
        raise WorkerDied(f"the worker's pipe carried something that is not the protocol: {line[:80]!r}.") from None
    return header  # type: ignore[no-any-return]


def arrays_of(header: Mapping[str, Any], body: bytes) -> dict[str, NDArray[Any]]:
    """Decode a message's npz body into `{name: array}`; each array owns its memory."""
    if not header["arrays"]:
        return {}
    with np.load(io.BytesIO(body), allow_pickle=False) as npz:
        return {name: npz[f"a{i}"] for i, name in enumerate(header["arrays"])}


def read(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """Read one message from a blocking stream; None when the other end closed it between messages."""
    line = stream.readline(MAX_HEADER_BYTES)
    if not line:
        return None
    header = header_of(line)
    body = stream.read(header["bytes"])
    if len(body) != header["bytes"]:
        return None
    return header, arrays_of(header, body)
