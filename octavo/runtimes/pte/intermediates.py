"""The outputs of a .pte file: all that can be seen of it, since XNNPACK shows nothing from inside its part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo.runtimes.base import Arrays
from octavo.runtimes.pte.session import PteSession


def record(params: dict[str, Any], arrays: Arrays, emit: Any) -> tuple[dict[str, Any], Arrays]:
    """A worker's target: path, names (of the inputs, in the order of `arrays`), threads."""
    session = PteSession(Path(params["path"]), threads=params["threads"])
    try:
        given = dict(zip(params["names"], arrays.values(), strict=True))
        feeds = {name: given[name] for name in session.inputs if name in given}
        if len(feeds) < len(session.inputs):
            feeds = dict(zip(session.inputs, given.values(), strict=False))
        found, _ = session.step(feeds)
    finally:
        session.close()
    values = [["", name] for name in found]
    held = {str(place): np.asarray(value, np.float32) for place, value in enumerate(found.values())}
    return {"values": values, "outputs": list(range(len(values)))}, held
