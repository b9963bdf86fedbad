"""Bytes as people say them."""

from __future__ import annotations


def size(count: float | None) -> str:
    """Bytes as people say them: 1 MB is 10⁶ bytes."""
    if count is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"
