"""Rows and features of published phone measurements: folders laid out like data/phones.

Only model, component, precision, device, runtime and latency_ms of latency.csv are read. What the conversion made of a
model (layers, npu_layers, gpu_layers, cpu_layers, primary_unit) and what a run took (peak memory) are outcomes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import mean

from octavo.plan.features import TERMS
from octavo.plan.fitting import Row

ARCHITECTURES = Path(__file__).with_name("architectures.csv")
RUNTIMES = ("tflite", "onnx", "qnn_dlc", "qnn_context_binary", "precompiled_qnn_onnx")
IDENTITY = ("model", "component", "precision", "device", "runtime")
FAMILY = 4  # letters that two names must share to be of one family
KIN = 3  # architectures of the nearest size, where no name is near
SAME = 1.5  # times as many parameters are another architecture
SIZES = ("gmacs", "params_m", "macts_m")
GROWING = tuple(term for term in TERMS if term not in ("inference", "hundred_operators"))


@dataclass(frozen=True)
class Published:
    """A model's features, and how they came: `counted` from its architecture, else scaled from its `family`'s."""

    features: dict[str, float]
    counted: bool
    how: str


@dataclass(frozen=True)
class Measured:
    """Rows of models whose features are known; `holes`: the rows left out, and why; `models`: how each is known."""

    rows: list[Row]
    holes: list[str]
    models: dict[str, Published]


def read(folder: Path, *, extra: float = 0.0) -> Measured:
    """Rows of the models in `folder`/facts.csv. `extra`: the weight of rows of other models whose architecture is in
    the table (transformers and segmenters among the rows), 0 to leave them out."""
    table = architectures()
    known = published(folder / "facts.csv", table)
    rows, holes = [], []
    with (folder / "latency.csv").open(newline="", encoding="utf-8") as file:
        for number, raw in enumerate(csv.DictReader(file), 2):
            model = raw.get("model") or ""
            weight = 1.0 if model in known else extra if model in table and _alone(raw, model) else 0.0
            if weight == 0.0:
                continue
            found = known[model].features if model in known else table[model]["features"]
            try:
                rows.append(_row(raw, found, weight))
            except ValueError as error:
                holes.append(f"latency.csv:{number}: {error}")
    return Measured(rows, holes, known)


def _alone(raw: dict[str, str], model: str) -> bool:
    """Whether the row is of the whole model: an architecture says nothing of a component."""
    return not any(word in (raw.get("component") or "") for word in ("Encoder", "Decoder"))


def _row(raw: dict[str, str], found: dict[str, float], weight: float) -> Row:
    if missing := [key for key in IDENTITY if not raw.get(key)]:
        raise ValueError(f"no {', '.join(missing)}")
    latency = float(raw.get("latency_ms") or "nan")
    if not 0 < latency < float("inf"):
        raise ValueError(f"a latency of {raw.get('latency_ms')!r}")
    if raw["runtime"] not in RUNTIMES:
        raise ValueError(f"runtime {raw['runtime']!r} is no network's")
    return Row(raw["model"], raw["device"], raw["runtime"], raw["precision"], latency, found, weight)


def architectures() -> dict[str, dict[str, dict[str, float]]]:
    """{model: {"features", "input": {"size"}}} of architectures.csv, under the libraries' own names as well."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with ARCHITECTURES.open(newline="", encoding="utf-8") as file:
        for raw in csv.DictReader(file):
            counted = {"features": {name: float(raw[name]) for name in TERMS}, "input": {"size": float(raw["size"])}}
            found[raw["model"]] = counted
            found.setdefault(raw["architecture"], counted)
    return found


def published(path: Path, table: dict[str, dict[str, dict[str, float]]]) -> dict[str, Published]:
    """Features of every model in a facts.csv: counted where its architecture is in the table, else from its family."""
    with path.open(newline="", encoding="utf-8") as file:
        return {raw["model"]: _published(raw, table) for raw in csv.DictReader(file)}


def _published(raw: dict[str, str], table: dict[str, dict[str, dict[str, float]]]) -> Published:
    known, size = table.get(raw["model"]) or table.get(raw.get("timm") or ""), _number(raw, "size")
    if known is not None and _agrees(raw, known["features"]):
        area = (size / known["input"]["size"]) ** 2 if size else 1.0
        how = "counted" if area == 1 else f"counted at {known['input']['size']:.0f}, scaled to {size:.0f} pixels"
        return Published(_resized(known["features"], area), True, how)
    return _from_family(raw, table)


def _resized(found: dict[str, float], area: float) -> dict[str, float]:
    """Work grows with the input's area; parameters and operators do not."""
    fixed = ("inference", "mparameters", "hundred_operators")
    return {name: value if name in fixed else value * area for name, value in found.items()}


def _agrees(raw: dict[str, str], found: dict[str, float]) -> bool:
    """Whether facts.csv speaks of the architecture that was counted, and not of another size of it."""
    given = _number(raw, "params_m")
    return given is None or 1 / SAME < found["mparameters"] / given < SAME


def _from_family(raw: dict[str, str], table: dict[str, dict[str, dict[str, float]]]) -> Published:
    """The features of the nearest names, or else sizes, scaled to facts.csv's parameters, MACs and activations."""
    names = {raw["model"], raw.get("timm") or ""}
    near = {key: max(_shared(key, name) for name in names) for key in table}
    best = max(near.values(), default=0)
    kin = [key for key, length in near.items() if length == best]
    if best < FAMILY:
        kin = sorted(table, key=lambda key: (_distance(raw, table[key]["features"]), key))[:KIN]
    like = {term: mean(table[key]["features"][term] for key in kin) for term in TERMS}
    size = _sizes(like)
    ratio = {key: (_number(raw, key) or amount) / amount if amount > 0 else 1.0 for key, amount in size.items()}
    scaled = {term: value * ratio[_grows_with(term)] for term, value in like.items() if term in GROWING}
    scaled |= {"inference": 1.0, "hundred_operators": like["hundred_operators"] * ratio["params_m"] ** 0.5}
    return Published(scaled, False, f"not counted: like {', '.join(kin)}")


def _shared(first: str, second: str) -> int:
    """How many letters two names begin with alike."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _sizes(found: dict[str, float]) -> dict[str, float]:
    """What facts.csv has, of features: 10⁹ MACs (those of depthwise convolutions are counted tenfold), 10⁶ parameters
    and 10⁶ activations."""
    activations = ("conv_melements", "depthwise_melements", "matmul_melements")
    return {
        "gmacs": found["dense_gmacs"] + found["narrow_gmacs"] / 10,
        "params_m": found["mparameters"],
        "macts_m": sum(found[term] for term in activations),
    }


def _distance(raw: dict[str, str], found: dict[str, float]) -> float:
    known = {key: _number(raw, key) for key in SIZES}
    return sum(abs(log(given / max(_sizes(found)[key], 1e-6))) for key, given in known.items() if given)


def _grows_with(term: str) -> str:
    return "gmacs" if term.endswith("gmacs") else "params_m" if term == "mparameters" else "macts_m"


def _number(raw: dict[str, str], key: str) -> float | None:
    try:
        return float(raw.get(key) or "nan") if float(raw.get(key) or "nan") > 0 else None
    except ValueError:
        return None
