"""Counts the features of published architectures (octavo/plan/features.py) into architectures.csv.

    pip install timm==1.0.31 torchvision==0.29.2 transformers          # no weights are fetched
    python -m benchmarks.architectures [NAME …]

Each is built without weights from the code of timm, torchvision or transformers, captured by torch.export, and read by
the very reader that reads a user's model (octavo/sources/facts/aten.py). Where a torchvision made for CUDA has no
compiled operators, its pure Python part is all that is needed here. NAME: count only these, keep the other rows.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from benchmarks.architecture_builders import PUBLISHED, Recipe
from octavo.core.facts import ModelFacts, WeightFacts
from octavo.core.model import Program
from octavo.plan.features import TERMS, features
from octavo.sources.facts.aten import graph_facts

TABLE = Path(__file__).with_name("architectures.csv")
COLUMNS = ("model", "library", "architecture", "size", *TERMS)


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = {row["model"]: row for row in csv.DictReader(TABLE.open(encoding="utf-8"))} if TABLE.exists() else {}
    for name, recipe in PUBLISHED.items():
        if name not in names if names else name in rows:
            continue
        try:
            rows[name] = _row(name, recipe)
            print(name, rows[name]["dense_gmacs"], rows[name]["mparameters"], flush=True)
        except Exception as error:  # a library lacks it, or torch.export gives up: the others count
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows[key] for key in PUBLISHED if key in rows)


def _row(name: str, recipe: Recipe) -> dict[str, Any]:
    found = features(facts_of(name, recipe))
    said = {"model": name, "library": recipe.library, "architecture": recipe.architecture, "size": recipe.size}
    return said | {key: f"{value:.6g}" for key, value in found.items()}


def facts_of(name: str, recipe: Recipe) -> ModelFacts:
    """The facts of a published architecture, through torch.export and Octavo's reader of its graphs."""
    import torch
    from torch._export.serde import serialize

    torch.set_num_threads(1)
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent"))  # names compiled operators
    module, inputs = recipe.build()
    with torch.no_grad():
        exported = torch.export.export(module.eval(), inputs, strict=False)
    graph = serialize.serialize(
        exported, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
    )
    tensors = {**exported.state_dict, **exported.constants}
    stored = {
        key: WeightFacts(key, tuple(value.shape), "other", "fp32", value.numel() * 4)
        for key, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }
    return graph_facts(Program("graph", {"exported": json.loads(graph.exported_program)}), stored, name)


if __name__ == "__main__":
    main(sys.argv[1:])
