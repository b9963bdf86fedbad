"""`--fix`: what the user says of a graph's inputs, as text or as values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import BadInput

Fix = Mapping[str, "int | float | Sequence[int]"]


def parse_fix(given: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """`sr=16000` is a value or a size, `input=1x576` a shape. A mapping is taken as it is. Raises BadInput."""
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    found: dict[str, Any] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        if not name or name in found:
            raise BadInput(f"--fix {text}: {'given twice' if name else 'no NAME=VALUE'}.", "Write --fix sr=16000.")
        found[name] = _value(text, value.strip())
    return found


def _value(text: str, value: str) -> int | float | tuple[int, ...]:
    if re.fullmatch(r"\d+([x×,]\d+)+", value):
        return tuple(int(size) for size in re.split("[x×,]", value))
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        raise BadInput(f"--fix {text}: no number and no shape.", "Write --fix sr=16000 or --fix input=1x576.") from None
