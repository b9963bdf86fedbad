"""What a session may offer beyond its contract: the time of each operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from octavo.runtimes.base import Arrays


@dataclass(frozen=True)
class OpTime:
    """One operator of the graph as the runtime runs it: its name and kind, the unit that ran it, milliseconds per run
    and its share of all operators' time."""

    op: str
    kind: str
    unit: str
    ms: float
    share: float


class Profiled(Protocol):
    """A session whose runtime has a profiler. A session without this method has none: nothing is estimated."""

    def profile(self, inputs: Arrays, state: Any = None, runs: int = 10) -> list[OpTime]:
        """Times per run over `runs` runs after one that warms up, the dearest first. The profiler itself takes time:
        the sum is not the latency. Raises BadInput as `step` does, and OctavoError when the profiler fails."""
        ...
