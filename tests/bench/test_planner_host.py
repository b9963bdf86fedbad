"""benchmarks/planner_host.py on the smallest model there is: the JSON that others rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_predicted_stands_beside_measured(shared: Path) -> None:
    pytest.importorskip("torch")
    arguments = ["--models", str(shared / "data/lm/stories260K/hf"), "--schemes", "w8", "--runtimes", "onnxruntime"]
    arguments += ["--profile", "host", "--rounds", "1", "--quick", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.planner_host", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"memory_median_error", "decode_median_error", "latency_median_error", "rounds"} <= set(report["overall"])
    memory = next(group for group in report["groups"] if group["what"] == "memory")
    assert memory["n"] == 1
    assert memory["low"] <= memory["predicted"] <= memory["high"]
    assert memory["error"] == pytest.approx(abs(memory["predicted"] / memory["measured"] - 1))
    assert memory["error"] < 0.2
