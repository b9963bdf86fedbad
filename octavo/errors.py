"""Everything that can go wrong, as a shallow tree. Each error says what, where, the numbers, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OctavoError(Exception):
    """Base of all errors that Octavo raises on purpose; the command line prints it without a traceback.

    `message` says what is wrong, where, with the numbers; `remedy` says what to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.message = message
        self.remedy = remedy


class BadInput(OctavoError):
    """A file, option or value that cannot be worked with."""


class Missing(OctavoError):
    """A component (package, runtime, file) that the step needs and this machine lacks."""


class Refused(OctavoError):
    """Something that could only be done by changing the numbers; Octavo does not do that silently."""


class WorkerDied(OctavoError):
    """A worker process ended before it answered; the message names the signal or exit status."""


class WorkerTimeout(OctavoError):
    """A worker process did not answer within its time limit and was killed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the known names closest to `name` (or all of them if none is close)."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"Nearest: {', '.join(close)}." if close else f"Known: {', '.join(names)}."
