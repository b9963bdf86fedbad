"""ONNX Runtime's speed with networks here: small networks of known parts, timed and fitted like a phone's."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from octavo.bench.probe import Effort, Trial, trial_seconds
from octavo.plan.device import Coefficients
from octavo.plan.fitting import Row, fit_measurements

SOURCE = "networks of known parts, timed by `octavo devices probe`"
NAME = "onnxruntime"


def network_coefficients(folder: Path, opener: str, threads: int, effort: Effort) -> tuple[Coefficients, ...]:
    """Time `tiny.NETWORKS` in fp32 and fit the latency model's terms to them.

    Raises what the opener raises, WorkerDied, WorkerTimeout, BadInput.
    """
    from octavo.plan.features import features
    from octavo.runtimes.onnx import tiny
    from octavo.sources.facts.open import read_facts

    trials, found = [], {}
    for name, (side, blocks) in tiny.NETWORKS.items():
        path = folder / f"{name}.onnx"
        trials.append(Trial(name, path, tiny.write_network(path, side, blocks)))
        found[name] = features(read_facts(path, None, False, None))
    seconds = trial_seconds(NAME, opener, trials, threads=threads, effort=effort)
    rows = [
        Row(name, "host", NAME, "float", 1e3 * float(seconds[name].value or 0), found[name], unit="cpu")
        for name in found
    ]
    return fit_measurements(rows, source=SOURCE, date=date.today().isoformat())["host"]
