"""How fast a plan is: cold from the shell for one device and for all, and a thousand in one process.

    python -m benchmarks.planner_speed [--json FILE] [--repeat N]

The limits are Octavo's own: 0.6 s, 1.5 s, 2 s. Each is printed with a peer of the same run: an interpreter that starts
and ends, and `octavo --version`, which loads the command line and nothing else. Wall time and processor time are both
given: on a machine that others use, the second is the steadier.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CONFIG: dict[str, Any] = {  # meta-llama/Llama-3.2-3B, as published
    "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128,
    "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
}  # fmt: skip
LIMITS = {"one device, cold": 0.6, "all devices, cold": 1.5, "a thousand in process": 2.0}
SCHEMES, RUNTIME = ("fp16", "w8", "w4g32", "w4"), "llamacpp"


def cold(arguments: list[str], repeat: int) -> dict[str, float]:
    """Median wall seconds and median processor seconds of a fresh process."""
    walls, works = [], []
    for _ in range(repeat):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        works.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode not in (0, 3):
            raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return {"wall_s": median(walls), "processor_s": median(works), "n": repeat}


def thousand(config: Path) -> dict[str, float]:
    """A thousand plans of one model: every device, in turn, at a context that no plan had before, one scheme each."""
    from octavo.api.plan import plan
    from octavo.plan.profiles import load_all
    from octavo.sources.facts.open import read_facts

    facts, devices = read_facts(config), load_all()
    wall, work = time.perf_counter(), time.process_time()
    for number in range(1000):
        plan(
            facts, device=devices[number % len(devices)], scheme=SCHEMES[number % len(SCHEMES)], runtime=RUNTIME,
            context=256 + 32 * number,
        )  # fmt: skip
    found = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - work, "n": 1.0}
    start, count = time.process_time(), 50
    for number in range(count):
        plan(facts, device=devices[number % len(devices)], context=300 + 32 * number)
    return found | {"every_pair_ms": (time.process_time() - start) / count * 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.json"
        config.write_text(json.dumps(CONFIG))
        verb = ["-m", "octavo", "plan", str(config)]
        groups: dict[str, dict[str, float]] = {
            "interpreter alone": cold(["-c", "pass"], options.repeat),
            "octavo --version": cold(["-m", "octavo", "--version"], options.repeat),
            "one device, cold": cold([*verb, "--device", "galaxy-s24"], options.repeat),
            "all devices, cold": cold([*verb, "--all-devices"], options.repeat),
            "a thousand in process": thousand(config),
        }
    load = os.getloadavg()[0]
    for name, row in groups.items():
        limit = LIMITS.get(name)
        against = f"  limit {limit:.1f} s, {row['wall_s'] / limit:.2f} of it" if limit else ""
        print(f"{name:22s} {row['wall_s']:.3f} s wall, {row['processor_s']:.3f} s of processor{against}")
    print(f"every scheme and runtime of a device: {groups['a thousand in process']['every_pair_ms']:.2f} ms a plan")
    print(f"load of the machine meanwhile: {load:.1f} on {os.cpu_count()} cores")
    rows = [{"what": name, **row, "limit_s": LIMITS.get(name)} for name, row in groups.items()]
    met = all(groups[name]["wall_s"] <= limit for name, limit in LIMITS.items())
    record = {"overall": {"met": met, "load": load}, "groups": rows}
    if options.json:
        options.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
