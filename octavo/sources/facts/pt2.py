"""Facts of a .pt2 that the user trusts: opened in a worker, since opening it can run code; read as open JSON here."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from octavo.core.facts import ModelFacts, WeightFacts
from octavo.core.model import Program
from octavo.core.safetensors import SafetensorsFile
from octavo.errors import BadInput
from octavo.sources.facts.aten import graph_facts
from octavo.workers.local import Worker

SECONDS = 600.0


def pt2_facts(path: Path) -> ModelFacts:
    """Facts of an exported program. Raises BadInput for a .pt of weights only, and for a file torch cannot read."""
    with tempfile.TemporaryDirectory(prefix="octavo-") as directory, Worker() as worker:
        params = {"path": str(path.resolve()), "directory": directory, "trust": True}
        result = worker.call("octavo.sources.trusted:convert", params, timeout=SECONDS).result
        if result["program"] is None:
            raise BadInput(
                f"{path}: holds weights and no program.",
                "Save them as safetensors and give --module pkg.file:factory --weights W.safetensors.",
            )
        program = json.loads(Path(result["program"]).read_text("utf-8"))
        with SafetensorsFile(Path(result["weights"])) as file:
            stored = {
                name: WeightFacts(name, file.entries[name].shape, role, "fp32", file.entries[name].nbytes)
                for name, role in result["roles"].items()
            }
    return graph_facts(Program(program["kind"], program["body"]), stored, path.stem, f"the program of {path.name}")
