"""Decode and time to first token against published phone measurements of language models (data/phones/llm.csv).

    python -m benchmarks._phones_llm TRAIN [TEST]

The shapes of the models are in language_models.toml. Left out in turn: a model (as the issue asks), and an architecture
(llama_v3_8b, elyza_jp and taide are one, with equal rows: leaving one of them out leaves its twins in). The costs of a
compiled graph (plan/language.py: `score_bytes`, `head`, `chunk_macs`) are chosen anew for every model left out, on the
rows that remain. What decides the widths of the fit's terms was set once, and is in language_fit.py.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from octavo.core.decoder_facts import decoder_facts
from octavo.core.decoder_shape import DecoderShape, Experts
from octavo.core.facts import ModelFacts
from octavo.core.quantity import Quantity
from octavo.plan import profiles
from octavo.plan.device import Device
from octavo.plan.language import NPU, Compiled, shape_label
from octavo.plan.language_fit import (
    TARGETS,
    LanguageFit,
    LanguageRow,
    Target,
    chip_name,
    choose_costs,
    first_macs,
    fit_language,
    npu_weight_bytes,
    token_reads,
)

TABLE = Path(__file__).with_name("language_models.toml")
# GB/s where no profile says it: makers' figures of the memory interface; None of a guess: the middle of the others.
BANDWIDTH = {
    "Samsung Galaxy S24": 76.8,  # Snapdragon 8 Gen 3: LPDDR5X-9600, 64 bit
    "Snapdragon 8 Elite QRD": 84.8,  # LPDDR5X-10600, 64 bit
    "Snapdragon 8 Elite Gen 5 QRD": 84.8,  # LPDDR5X-10600, 64 bit
    "Snapdragon X Elite CRD": 135.0,  # LPDDR5x-8448, 128 bit
    "Snapdragon X2 Elite CRD": 152.0,  # LPDDR5x-9523, 128 bit
}


@dataclass(frozen=True)
class Held:
    """A row that was predicted without its model: relative error of the prediction, whether its interval held it, and
    whether the rows that remained had its device and its precision."""

    row: LanguageRow
    error: float
    covered: bool
    seen: bool


def language(train: Path, test: Path | None) -> dict[str, Any]:
    """Errors of decode (tokens/s) and of the time to first token [relative], on the rows of `test` after a fit on
    `train`, or on those of `train` leaving one model, and one architecture, out. `left_out` names rows not used."""
    rows, left_out = read_rows(train / "llm.csv")
    facts, assumed = model_facts(rows, train / "models.csv")
    found: dict[str, Any] = {"fitted_rows": len(rows), "left_out": left_out}
    if not rows:
        return found
    costs = choose(rows, facts)
    found |= {"costs": {"score_bytes": costs.score_bytes, "head": costs.head, "chunk_macs": costs.chunk_macs}}
    if test is None:
        for group, of in (("model", _model), ("architecture", lambda row: _architecture(row, facts))):
            found[f"leave_one_{group}_out"] = _summary(leave_out(rows, facts, of), facts)
        found["leave_one_model_out_twins_not_looked_up"] = _summary(leave_out(rows, facts, _model, twins=False), facts)
        return found | {"assumed_shapes": sorted(assumed), "baseline_0.7_of_bandwidth": _naive(rows, facts)}
    unseen, left_out = read_rows(test / "llm.csv")
    more, assumed = model_facts(unseen, test / "models.csv", train / "models.csv")
    held = _predict(rows, unseen, facts | more, costs)
    found |= {"test_rows": len(unseen), "test_left_out": left_out, "assumed_shapes": sorted(assumed)}
    return found | {"test": _summary(held, facts | more), "baseline_0.7_of_bandwidth": _naive(unseen, more)}


def fragments(train: Path, date: str) -> dict[str, str]:
    """By profile, the tables of coefficients for its file in octavo/devices/fitted: every device whose NPU Genie or QNN
    reaches. Those without a row have the share of bandwidth that the others have in common; a rate of prompts only
    where the chip has rows, since nothing says what another chip multiplies."""
    rows, _ = read_rows(train / "llm.csv")
    facts, _ = model_facts(rows, train / "models.csv")
    rows = [replace(row, device=profiles.canonical(row.device) or row.device) for row in rows]
    reached = [device.name for device in profiles.load_all() if _compiles(device)]
    speeds, chips = memory_of([*(row.device for row in rows), *reached])
    source = "octavo.plan.language_fit on qualcomm/ai-hub-models @ b61a009028de, perf.yaml"
    fit = fit_language(rows, speeds, facts, chips=chips, source=source, date=date)
    measured = {chips[row.device] for row in rows}
    return {name: fit.toml(name, rate=chips[name] in measured) for name in reached}


def _compiles(device: Device) -> bool:
    npu = device.unit("npu")
    return npu is not None and not {"genie", "qnn"}.isdisjoint(npu.runtimes)


def read_rows(path: Path) -> tuple[list[LanguageRow], list[str]]:
    """The rows of an llm.csv, and those that have holes. The times to first token are of a short prompt, one run of the
    prompt processor, and of the longest: equal where one run takes the whole context."""
    rows: list[LanguageRow] = []
    left_out: list[str] = []
    if not path.is_file():
        return rows, [f"{path}: no such file"]
    with path.open(newline="", encoding="utf-8") as file:
        for number, raw in enumerate(csv.DictReader(file), 2):
            try:
                context, speed = int(float(raw["context_length"])), float(raw["tokens_per_second"])
                first, last = float(raw["ttft_min_ms"] or 0), float(raw["ttft_max_ms"] or 0)
                prompt = context if first == last and context <= 1024 else NPU.chunk
                if not (speed > 0 and context > 0 and first >= 0):
                    raise ValueError(f"{speed} tokens/s at {context}")
                kind = (raw["model"], raw["device"], raw["runtime"], raw["precision"])
                rows.append(LanguageRow(*kind, context, speed, first, prompt))
            except (KeyError, TypeError, ValueError) as error:
                left_out.append(f"{path.name}:{number}: {error}")
    return rows, left_out


def model_facts(rows: Iterable[LanguageRow], *tables: Path) -> tuple[dict[str, ModelFacts], set[str]]:
    """Facts by model, and the models whose shape is assumed from a parameter count (of models.csv, or in the name)."""
    found: dict[str, ModelFacts] = {}
    assumed: set[str] = set()
    for name in dict.fromkeys(row.model for row in rows):
        known = _by_model().get(name)
        if known is None:
            assumed.add(name)
        found[name] = decoder_facts(_shape(known) if known else _typical(_parameters(name, tables)), name)
    return found, assumed


@cache
def _by_model() -> dict[str, dict[str, Any]]:
    entries = tomllib.loads(TABLE.read_text("utf-8"))
    return {model: entry | {"architecture": key} for key, entry in entries.items() for model in entry["models"]}


def _shape(entry: Mapping[str, Any]) -> DecoderShape:
    layers = entry["layers"]
    experts = None
    if "experts" in entry:
        experts = Experts(entry["experts"], entry["experts_per_token"], entry["intermediate"], (True,) * layers)
    window = entry.get("window")
    every = entry.get("window_every", 1)
    windows = tuple(window if window and layer % every == 0 else None for layer in range(layers))
    return DecoderShape(
        family="", vocab_size=entry["vocab"], hidden_size=entry["hidden"], intermediate_size=entry["intermediate"],
        layers=layers, heads=entry["heads"], kv_heads=entry["kv_heads"], head_dim=entry["head_dim"],
        context=entry.get("context", 131072), tied=entry["tied"], windows=windows, caches=(True,) * layers,
        gated=entry.get("gated", True), experts=experts,
    )  # fmt: skip


def _typical(parameters: float) -> DecoderShape:
    """A decoder of so many parameters as most are built: hidden = 128 · layers, 12 · layers · hidden² of them in
    the layers, heads of 128 and one key head for four; an assumption, for models whose config nobody published."""
    layers = max(2, round((parameters / (12 * 128**2)) ** (1 / 3)))
    hidden = 128 * layers
    return DecoderShape(
        family="", vocab_size=max(256, round(0.08 * parameters / hidden)), hidden_size=hidden,
        intermediate_size=round(8 / 3 * hidden), layers=layers, heads=layers, kv_heads=max(1, layers // 4),
        head_dim=128, context=131072, tied=True, windows=(None,) * layers, caches=(True,) * layers,
    )  # fmt: skip


def _parameters(name: str, tables: Sequence[Path]) -> float:
    """From the `params` column, else a size in the name (`…_7b_…`, `6p7b`), else 3e9: somewhere a phone can run."""
    for table in tables:
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as file:
                for raw in csv.DictReader(file):
                    if raw.get("model") == name and (size := _size(raw.get("params") or "")):
                        return size
    sizes = [size for part in name.split("_") if part[-1:] in "bm" and (size := _size(part.replace("p", ".")))]
    return sizes[0] if sizes else 3e9


def _size(text: str) -> float:
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper())
    try:
        return float(text[:-1].replace(",", "")) * factor if factor else 0.0
    except ValueError:
        return 0.0


def memory_of(devices: Iterable[str]) -> tuple[dict[str, float], dict[str, str]]:
    """B/s by device, and its chip: the profile's, else of `BANDWIDTH`, else the middle of those (it is fitted to)."""
    speeds: dict[str, float] = {}
    chips: dict[str, str] = {}
    for device in dict.fromkeys(devices):
        value, chip = _profile(device)
        speeds[device] = value or 1e9 * BANDWIDTH.get(device, median(BANDWIDTH.values()))
        chips[device] = chip_name(chip) if chip else device
    return speeds, chips


@cache
def _profile(device: str) -> tuple[float | None, str]:
    name = profiles.canonical(device)
    if name is None:
        return None, ""
    profile = profiles.load(name)
    return profile.bandwidth.value, profile.soc


def leave_out(
    rows: list[LanguageRow], facts: Mapping[str, ModelFacts], group: Callable[[LanguageRow], str], twins: bool = True
) -> dict[Target, list[Held]]:
    """Every row predicted by a fit on the rows of other groups, the costs chosen on those as well. `twins`: where
    another group has a model of the same architecture on the same device, that measurement is the prediction, as in a
    plan."""
    found: dict[Target, list[Held]] = {target: [] for target in TARGETS}
    for name in sorted({group(row) for row in rows}):
        rest, out = [row for row in rows if group(row) != name], [row for row in rows if group(row) == name]
        for target, held in _predict(rest, out, facts, choose(rest, facts), twins).items():
            found[target] += held
    return found


def choose(rows: list[LanguageRow], facts: Mapping[str, ModelFacts]) -> Compiled:
    """The costs of a compiled graph, from these rows alone."""
    speeds, chips = memory_of(row.device for row in rows)
    return choose_costs(rows, speeds, facts, chips=chips)


def _predict(
    train: list[LanguageRow], test: list[LanguageRow], facts: Mapping[str, ModelFacts], costs: Compiled,
    twins: bool = True,
) -> dict[Target, list[Held]]:  # fmt: skip
    speeds, chips = memory_of(row.device for row in [*train, *test])
    fit = fit_language(train, speeds, facts, chips=chips, costs=costs, keys=[row.key for row in test])
    if not twins:
        fit = replace(fit, decode=_general(fit.decode), prefill=_general(fit.prefill))
    found: dict[Target, list[Held]] = {target: [] for target in TARGETS}
    for row in test:
        seen = any(other.device == row.device for other in train) and any(other.key == row.key for other in train)
        for target in TARGETS:
            if _measured(target, row) > 0:
                value, low, high = _prediction(target, row, facts, fit, speeds, costs)
                truth = _measured(target, row)
                found[target].append(Held(row, value / truth - 1, low <= truth <= high, seen))
    return found


def _general(tables: Mapping[str, Mapping[str, Quantity]]) -> dict[str, dict[str, Quantity]]:
    """The coefficients that are not of one architecture."""
    return {name: {key: cell for key, cell in table.items() if "@" not in key} for name, table in tables.items()}


def _prediction(
    target: Target, row: LanguageRow, facts: Mapping[str, ModelFacts], fit: LanguageFit, speeds: Mapping[str, float],
    costs: Compiled,
) -> tuple[float, float, float]:  # fmt: skip
    """Value, low, high: tokens/s, or ms to the first token."""
    cells = (fit.decode if target == "decode" else fit.prefill)[row.device]
    cell = cells.get(f"{row.key}@{shape_label(facts[row.model])}", cells[row.key])
    assert cell.value is not None
    assert cell.low is not None
    assert cell.high is not None
    if target == "decode":
        reads = token_reads(facts[row.model], row, npu_weight_bytes)
        scale = speeds[row.device] / (reads.total + costs.score_bytes * reads.scores)
        return cell.value * scale, cell.low * scale, cell.high * scale
    work = 2e3 * first_macs(facts[row.model], row, costs)
    return work / cell.value, work / cell.high, work / cell.low


def _measured(target: Target, row: LanguageRow) -> float:
    return row.tokens_per_second if target == "decode" else row.first_ms


def _model(row: LanguageRow) -> str:
    return row.model


def _architecture(row: LanguageRow, facts: Mapping[str, ModelFacts]) -> str:
    """Models of one shape are one architecture, whatever they are called."""
    return shape_label(facts[row.model])


def _summary(held: Mapping[Target, list[Held]], facts: Mapping[str, ModelFacts]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for target in TARGETS:
        rows = held[target]
        once = {
            (_architecture(one.row, facts), one.row.device, one.row.key, _measured(target, one.row)): one
            for one in rows
        }
        keys = sorted({one.row.key for one in rows})
        found["decode_tokens_per_second" if target == "decode" else "time_to_first_token"] = {
            **_figures(rows),
            "each_measurement_once": _figures(list(once.values())),
            "device_and_precision_seen": _figures([one for one in rows if one.seen]),
            "device_or_precision_never_seen": _figures([one for one in rows if not one.seen]),
            "by_key": {key: _figures([one for one in rows if one.row.key == key]) for key in keys},
        }
    return found


def _figures(held: Sequence[Held]) -> dict[str, float | int | None]:
    if not held:
        return {"n": 0, "median": None, "p90": None, "coverage80": None}
    errors = [abs(one.error) for one in held]
    covered = sum(one.covered for one in held) / len(held)
    return {"n": len(held), "median": median(errors), "p90": _p90(errors), "coverage80": covered}


def _p90(errors: list[float]) -> float:
    return sorted(errors)[int(0.9 * (len(errors) - 1) + 0.5)]


def _naive(rows: list[LanguageRow], facts: Mapping[str, ModelFacts]) -> dict[str, Any]:
    """Decode by 0.7 of the bandwidth over all parameters at 4 bits: what people compute on a napkin."""
    speeds, _ = memory_of(row.device for row in rows)
    guesses = [0.7 * speeds[row.device] / (facts[row.model].parameters / 2) for row in rows]
    errors = [abs(guess / row.tokens_per_second - 1) for guess, row in zip(guesses, rows, strict=True)]
    return {"n": len(errors), "median": median(errors), "p90": _p90(errors)} if errors else {"n": 0}


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(language(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None), indent=1))
