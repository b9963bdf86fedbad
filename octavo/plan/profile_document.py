"""A profile's TOML document, checked key by key into a Device (plan/profile_text.py writes one).

name, title, year, kind, soc, aliases, notes, cliff
body, platform      rows of devices/tables/bodies.toml and platforms.toml that fill in what the profile does not say
process, memory     the node and DRAM type that energies are scaled to (devices/tables/energy.toml)
ram, slice_bytes, bandwidth, dram_energy, battery, sustained_power, peak_power, thermal_tau      quantities
[units.KIND]        name, types, and tables: runtimes, rates, vector_rates, energy, overhead_ms
[decode_efficiency]   [prefill_efficiency]   [runtime_memory]
                    quantities by runtime or "runtime.precision": a share of bandwidth; a share of the peak rate, or
                    op/s; bytes
[[coefficients]]    the fields of plan/device.py's Coefficients
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput, nearest
from octavo.plan import profile_tables as tables
from octavo.plan import quantities
from octavo.plan.device import Coefficients, Device, Unit

KINDS = ("phone", "tablet", "laptop", "board", "car", "microcontroller", "host")
UNIT_KINDS = ("cpu", "gpu", "npu", "dsp")
TYPES = ("fp32", "fp16", "int8", "int4")
TEXTS = ("name", "title", "kind", "soc")
QUANTITIES = {
    "ram": "B",
    "slice_bytes": "B",
    "bandwidth": "B/s",
    "dram_energy": "J/B",
    "battery": "Wh",
    "sustained_power": "W",
    "peak_power": "W",
    "thermal_tau": "s",
}
BY_RUNTIME = {"decode_efficiency": "1", "prefill_efficiency": "1", "runtime_memory": "B"}
UNIT_TABLES = {"rates": "op/s", "vector_rates": "op/s", "energy": "J/op", "overhead_ms": "ms"}
OPTIONAL = {"weight_storage": "B"}
OTHER = ("year", "aliases", "notes", "cliff", "body", "platform", "process", "memory", "units", "coefficients")
KEYS = (*TEXTS, *OTHER, *QUANTITIES, *OPTIONAL, *BY_RUNTIME)
COEFFICIENT_KEYS = tuple(field.name for field in fields(Coefficients))
Document = Mapping[str, Any]


def read_document(where: str, document: Document, fits: Sequence[tuple[str, Document]] = ()) -> Device:
    """The Device that a parsed profile and its files of coefficients describe. Raises BadInput naming file and key."""
    _known(where, document, KEYS)
    texts = {key: _text(where, document, key) for key in TEXTS}
    if texts["kind"] not in KINDS:
        raise BadInput(f"{where}: unknown kind '{texts['kind']}'.", nearest(texts["kind"], KINDS))
    year = document.get("year")
    if not isinstance(year, int):
        raise BadInput(f"{where}: year is {year!r}.", "Write the year it came out, as a number.")
    body = tables.entry(f"{where}: body", "bodies", document["body"]) if "body" in document else {}
    known: dict[str, Any] = {**texts, **_quantities(where, document, body), **by_runtime(where, document, fits)}
    return Device(
        **known,
        year=year,
        aliases=tuple(document.get("aliases", ())),
        units=tuple(_units(where, document)),
        coefficients=coefficients_of(where, document, fits),
        cliff=document.get("cliff", body.get("cliff", "")),
        process=document.get("process", ""),
        memory=document.get("memory", ""),
        notes=tuple(document.get("notes", ())),
    )


def _known(where: str, found: Document, known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            raise BadInput(f"{where}: unknown key '{key}'.", nearest(key, known))


def _text(where: str, document: Document, key: str) -> str:
    if not isinstance(document.get(key), str) or not document[key]:
        raise BadInput(f"{where}: no {key}.", f'Write {key} = "…" at the top.')
    return str(document[key])


def _quantities(where: str, document: Document, body: Document) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {}
    for key, unit in QUANTITIES.items():
        at = f"{where}: {key}"
        if key in document or key in body:
            found[key] = quantities.read(at, document.get(key, body.get(key)), unit)
        elif key == "slice_bytes" and "slice_share" in body:
            found[key] = tables.share_of(found["ram"], quantities.read(at, body["slice_share"], "1"))
        elif key == "dram_energy" and "memory" in document:
            found[key] = tables.dram_energy(at, document["memory"])
        else:
            raise BadInput(f"{where}: no {key}.", f'Write its figure in {unit}, or {key} = "unknown".')
    found |= {
        key: quantities.read(f"{where}: {key}", document[key], OPTIONAL[key]) for key in OPTIONAL if key in document
    }
    ram, slice_bytes = found["ram"].value, found["slice_bytes"].value
    if ram is not None and slice_bytes is not None and slice_bytes > ram:
        raise BadInput(
            f"{where}: slice_bytes is {slice_bytes:,.0f} B of {ram:,.0f} B of ram.", "An app is granted less."
        )
    return found


def _units(where: str, document: Document) -> list[Unit]:
    platform = _platform(where, document)
    raw = document.get("units", {})
    if not isinstance(raw, Mapping) or not raw:
        raise BadInput(f"{where}: no units.", "Add [units.cpu] at least.")
    _known(f"{where}: units", raw, UNIT_KINDS)
    return [_unit(f"{where}: units.{kind}", kind, {**platform.get(kind, {}), **raw[kind]}, document) for kind in raw]


def _platform(where: str, document: Document) -> Document:
    if "platform" not in document:
        return {}
    return tables.entry(f"{where}: platform", "platforms", document["platform"])


def _unit(where: str, kind: str, raw: Document, document: Document) -> Unit:
    _known(where, raw, ("name", "types", "runtimes", *UNIT_TABLES))
    types = tuple(raw.get("types", ()))
    if not types:
        raise BadInput(f"{where}: no types.", f"Say what it computes in: types = [{', '.join(TYPES)}].")
    _known(f"{where}.types", dict.fromkeys(types), TYPES)
    found: dict[str, dict[str, Quantity]] = {}
    for key, unit in UNIT_TABLES.items():
        cells = raw.get(key, {})
        if key != "overhead_ms":
            _known(f"{where}.{key}", cells, TYPES)
        found[key] = {name: quantities.read(f"{where}.{key}.{name}", cell, unit) for name, cell in cells.items()}
    unscaled = Quantity(None, "J/op", Kind.UNKNOWN, source="the process node is not known")
    if document.get("process"):
        for name in types:
            if name not in found["energy"]:
                found["energy"][name] = tables.operation_energy(f"{where}.energy", document["process"], kind, name)
    else:
        found["energy"] = dict.fromkeys(types, unscaled) | found["energy"]
    return Unit(kind, _text(where, raw, "name"), runtimes=dict(raw.get("runtimes", {})), types=types, **found)


def by_runtime(where: str, document: Document, fits: Sequence[tuple[str, Document]]) -> dict[str, dict[str, Quantity]]:
    """Quantities by runtime: a later file's replaces an earlier one's."""
    found: dict[str, dict[str, Quantity]] = {key: {} for key in BY_RUNTIME}
    shared = _shared_memory(where, document)
    for at, source in ((where, {"runtime_memory": shared}), (where, document), *fits):
        if at != where:
            _known(at, source, ("device", "coefficients", *BY_RUNTIME))
        for key, unit in BY_RUNTIME.items():
            for runtime, cell in source.get(key, {}).items():
                wanted = "op/s" if key == "prefill_efficiency" and _is_rate(cell) else unit
                found[key][runtime] = quantities.read(f"{at}: {key}.{runtime}", cell, wanted)
    return found


def _shared_memory(where: str, document: Document) -> dict[str, Any]:
    """What the platform's table says of the memory of the runtimes that the device has."""
    if "platform" not in document:
        return {}
    platform = _platform(where, document)
    reached = {name for kind in document.get("units", {}) for name in platform.get(kind, {}).get("runtimes", {})}
    cells = {**tables.table("platforms")["any"]["runtime_memory"], **platform.get("runtime_memory", {})}
    return {name: cell for name, cell in cells.items() if name in reached}


def _is_rate(cell: Any) -> bool:
    unit = cell.get("unit") if isinstance(cell, Mapping) else None
    return (
        isinstance(unit, str) and unit in quantities.UNITS and quantities.UNITS[unit][0] == quantities.UNITS["op/s"][0]
    )


def coefficients_of(
    where: str, document: Document, fits: Sequence[tuple[str, Document]] = ()
) -> tuple[Coefficients, ...]:
    """Those of a document and of the files that add to it: of the same runtime, unit and precision the last count."""
    found: dict[tuple[str, str, str], Coefficients] = {}
    for at, source in ((where, document), *fits):
        for index, raw in enumerate(source.get("coefficients", ())):
            one = _coefficient(f"{at}: coefficients[{index}]", raw)
            found[one.runtime, one.unit, one.precision] = one
    return tuple(found.values())


def _coefficient(where: str, raw: Document) -> Coefficients:
    _known(where, raw, COEFFICIENT_KEYS)
    if missing := [key for key in COEFFICIENT_KEYS if key not in raw]:
        raise BadInput(f"{where}: no {', '.join(missing)}.", "Write it with `octavo devices fit`.")
    if not 0 < raw["low"] <= raw["high"]:
        raise BadInput(
            f"{where}: the interval's factors are {raw['low']} and {raw['high']}.", "Order them 0 < low ≤ high."
        )
    ranges = {str(key): (float(low), float(high)) for key, (low, high) in raw["ranges"].items()}
    terms = {str(key): float(value) for key, value in raw["terms"].items()}
    return Coefficients(**{**raw, "ranges": ranges, "terms": terms})
