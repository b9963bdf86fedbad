"""Time per operator, as ONNX Runtime's own profiler has it: a second session of the same file, with profiling on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.errors import BadInput, OctavoError
from octavo.runtimes.profile import OpTime

KERNEL = "_kernel_time"


def profile_runs(
    make: Callable[[Any], Any], options: Any, run: Callable[[Any], Any], runs: int, units: Mapping[str, str]
) -> list[OpTime]:
    """Time of each node per run, the dearest first, over `runs` runs after one that warms up.

    `make(options)` opens the session, `run(session)` runs it once; `units`: {provider: unit}. Nodes are those of the
    optimised graph: what was folded away has no time, what was fused has its fused name. Raises BadInput for no runs,
    OctavoError when ONNX Runtime wrote no profile.
    """
    if runs < 1:
        raise BadInput(f"{runs} runs to profile.", "Use 1 or more.")
    with tempfile.TemporaryDirectory(prefix="octavo-profile-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "ort")
        session = make(options)
        for _ in range(runs + 1):
            run(session)
        written = Path(session.end_profiling())
        try:
            events = json.loads(written.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise OctavoError(f"ONNX Runtime wrote no profile that can be read ({error}).") from error
    return [replace(item, unit=units.get(item.unit, item.unit)) for item in operator_times(events, runs)]


def operator_times(events: list[dict[str, Any]], runs: int) -> list[OpTime]:
    """Out of the profiler's events (durations in µs): milliseconds per run of each node in the last `runs` runs.

    `unit` is the execution provider's name.
    """
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    since = starts[-runs] if len(starts) >= runs else 0
    found: dict[tuple[str, str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL) and event["ts"] >= since:
            detail = event["args"]
            kind = detail.get("op_name", "")
            name = event["name"].removesuffix(KERNEL) or f"{kind} {detail.get('node_index', '')}".rstrip()
            key = (name, kind, detail.get("provider", ""))
            found[key] = found.get(key, 0.0) + event["dur"]
    total = sum(found.values())
    made = [
        OpTime(name, kind, provider, micro / runs / 1e3, micro / total if total else 0.0)
        for (name, kind, provider), micro in found.items()
    ]
    return sorted(made, key=lambda item: -item.ms)
