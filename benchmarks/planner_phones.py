"""Predicted against published phone latencies, for models that the fit has not seen.

    python -m benchmarks.planner_phones [--train DIR] [--test DIR] [--json] [--write DIR]

Folders are laid out like data/phones. Without --test, every model of TRAIN/facts.csv is left out in turn, and the
intervals come from models left out of those that remain: nested. --write: fit on all of TRAIN and write coefficients of
every device that has a profile.

The baseline is fitted to the same rows: constant + MACs + weight bytes + activation bytes of facts.csv, non-negative
least squares on the relative error, per device × runtime × precision. It cannot predict where a config has fewer than
five other models; figures "where the baseline predicts" compare like with like.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._phones import Measured, Published, read
from octavo.plan.fitting import Row, alike, fit, interval, left_out, predicted
from octavo.plan.latency import base_precision
from octavo.plan.nnls import nnls

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 6  # groups of models left out together, inside the models that remain
UNCOUNTED = 2.0  # the interval's stretch where features are those of a family, not counted
EXTRA = 0.1  # weight of rows of models outside facts.csv whose architecture is counted


@dataclass(frozen=True)
class Prediction:
    """A row, what was predicted for it without its model, and the 80 % interval [ms]."""

    row: Row
    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        return abs(self.value / self.row.latency_ms - 1)

    @property
    def covered(self) -> bool:
        return self.low <= self.row.latency_ms <= self.high


def predict(train: Sequence[Row], test: Sequence[Row], models: dict[str, Published]) -> list[Prediction]:
    """Predictions of `test` from `train`, which shares no model with it; intervals from models left out of `train`."""
    made, held, found = fit(train), left_out(train, folds=FOLDS), []
    factors: dict[tuple[str, str], tuple[float, float]] = {}
    for row in test:
        one = predicted(made, row)
        assert one is not None, f"no fit for {row.device}, {row.runtime}, {row.precision}"
        group = (row.runtime, base_precision(row.precision))
        if group not in factors:
            factors[group] = interval(alike(held, *group))
        power = one.stretch * (1.0 if models[row.model].counted else UNCOUNTED)
        low, high = (factor**power for factor in factors[group])
        found.append(Prediction(row, one.predicted, one.predicted * low, one.predicted * high))
    return found


def leave_one_out(measured: Measured) -> list[Prediction]:
    """Every model of facts.csv predicted from the others."""
    found = []
    for model in sorted({row.model for row in measured.rows if row.weight >= 1}):
        rest = [row for row in measured.rows if row.model != model]
        found += predict(rest, [row for row in measured.rows if row.model == model], measured.models)
    return found


def baseline(train: Sequence[Row], test: Sequence[Row], facts: dict[str, list[float]]) -> dict[int, float]:
    """{index in `test`: predicted ms} of the four-term model; none where a config has under five other models."""
    configs: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in train:
        if row.weight >= 1 and row.model in facts:
            configs[row.device, row.runtime, row.precision].append(row)
    found = {}
    for index, row in enumerate(test):
        others = [one for one in configs[row.device, row.runtime, row.precision] if one.model != row.model]
        if len({one.model for one in others}) >= 5 and row.model in facts:
            x = np.array([facts[one.model] for one in others]) / np.array([[one.latency_ms] for one in others])
            found[index] = float(np.array(facts[row.model]) @ nnls(x.T @ x, x.sum(0)))
    return found


def plain_facts(*folders: Path) -> dict[str, list[float]]:
    """{model: [1, 10⁹ MACs, 10⁶ parameters, 10⁶ activations]} of facts.csv."""
    found = {}
    for folder in folders:
        with (folder / "facts.csv").open(newline="", encoding="utf-8") as file:
            for raw in csv.DictReader(file):
                try:
                    found[raw["model"]] = [1.0, *(float(raw[key]) for key in ("gmacs", "params_m", "macts_m"))]
                except (KeyError, ValueError):
                    continue
    return found


def summary(found: Sequence[Prediction]) -> dict[str, Any]:
    errors = np.array([one.error for one in found])
    if not len(errors):
        return {"median_error": None, "p90_error": None, "coverage_80": None, "n": 0}
    return {
        "median_error": round(float(np.median(errors)), 4),
        "p90_error": round(float(np.quantile(errors, 0.9)), 4),
        "coverage_80": round(float(np.mean([one.covered for one in found])), 4),
        "n": len(found),
    }


def compared(found: Sequence[Prediction], plain: dict[int, float]) -> dict[str, Any]:
    """The baseline's errors, and this model's on the rows that the baseline predicts."""
    errors = np.array([abs(value / found[index].row.latency_ms - 1) for index, value in plain.items()])
    if not len(errors):
        return {"n": 0}
    same = summary([found[index] for index in plain])
    return {
        "median_error": round(float(np.median(errors)), 4),
        "p90_error": round(float(np.quantile(errors, 0.9)), 4),
        "n": len(errors),
        "ours_there": {key: same[key] for key in ("median_error", "p90_error", "coverage_80")},
    }


def report(train: Path, test: Path | None) -> dict[str, Any]:
    """All figures, as fractions."""
    measured = read(train, extra=EXTRA)
    if test is None:
        found, rest = leave_one_out(measured), measured.rows
        holes, models, facts = measured.holes, measured.models, plain_facts(train)
    else:
        unseen = read(test)
        rest = [row for row in measured.rows if row.model not in unseen.models]
        found, holes, models = predict(rest, unseen.rows, unseen.models), measured.holes + unseen.holes, unseen.models
        facts = plain_facts(train, test)
    plain = baseline(rest, [one.row for one in found], facts)
    groups: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    by_model: dict[str, list[Prediction]] = defaultdict(list)
    for one in found:
        groups[one.row.precision, one.row.runtime].append(one)
        by_model[one.row.model].append(one)
    return {
        "overall": summary(found),
        "groups": [{"precision": p, "runtime": r, **summary(some)} for (p, r), some in sorted(groups.items())],
        "baseline": compared(found, plain),
        "models": [{"model": m, "features": models[m].how, **summary(some)} for m, some in sorted(by_model.items())],
        "holes": holes,
        "language": _language(train, test),
    }


def _language(train: Path, test: Path | None) -> dict[str, Any]:
    from benchmarks._phones_llm import language

    return language(train, test)


def show(found: dict[str, Any]) -> None:
    def line(label: str, some: dict[str, Any]) -> str:
        if not some.get("n"):
            return f"{label:36} nothing predicted"
        cover = f"{some['coverage_80']:6.0%}" if "coverage_80" in some else "     –"
        return f"{label:36}{some['median_error']:8.1%}{some['p90_error']:8.1%} {cover} {some['n']:6}"

    print(f"{'':36}{'median':>8}{'p90':>8} {'in 80 %':>6} {'rows':>6}")
    print(line("overall", found["overall"]))
    print(line("baseline (where it predicts)", found["baseline"]))
    if "ours_there" in found["baseline"]:
        print(line("ours on the same rows", found["baseline"]["ours_there"] | {"n": found["baseline"]["n"]}))
    for some in found["groups"]:
        print(line(f"  {some['precision']} · {some['runtime']}", some))
    for some in found["models"]:
        note = "" if some["features"] == "counted" else f" ({some['features']})"
        print(line(f"  {some['model']}{note}", some))
    print(f"rows with holes: {len(found['holes'])}")
    for hole in found["holes"][:20]:
        print(f"  {hole}")
    print("language:", json.dumps(found["language"], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--train", type=Path, default=(ROOT / shared) / "data/phones")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, metavar="DIR")
    parser.add_argument("--date", default="")
    given = parser.parse_args()
    if given.write is not None:
        from benchmarks.phone_profiles import write

        write(given.train, given.write, given.date, EXTRA)
        return
    found = report(given.train, given.test)
    print(json.dumps(found, indent=1)) if given.json else show(found)


if __name__ == "__main__":
    main()
