"""Profiles of devices as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.records import DeviceFitRecord, DeviceRecord, DevicesRecord
from octavo.report.size import size

SCALES = (
    ("T", 1e12),
    ("G", 1e9),
    ("M", 1e6),
    ("k", 1e3),
    ("", 1.0),
    ("m", 1e-3),
    ("µ", 1e-6),
    ("n", 1e-9),
    ("p", 1e-12),
)
UNSCALED = ("1", "Wh", "s", "ms")  # what nobody says with a prefix
COLOURS = {"measured": "green", "exact": "green", "datasheet": "cyan", "unknown": "yellow"}
UNKNOWN = "unknown"
NAMED = 8  # models or devices of rows that were left out


def devices_table(record: DevicesRecord) -> RenderableType:
    """`devices list`."""
    table = Table(
        "name", "device", "RAM", "slice", "bandwidth", "units", "runtimes", "fitted", box=None, pad_edge=False
    )
    for item in record.devices:
        bandwidth = UNKNOWN if item["bandwidth"] is None else f"{item['bandwidth'] / 1e9:.3g} GB/s"
        sizes = [UNKNOWN if item[key] is None else size(item[key]) for key in ("ram_bytes", "slice_bytes")]
        fitted = f"{item['coefficients']} ({item['rows']:,} rows)" if item["coefficients"] else "–"
        lists = [" ".join(item[key]) for key in ("units", "runtimes")]
        table.add_row(item["name"], item["title"], *sizes, bandwidth, *lists, fitted)
    return table


def device_summary(record: DeviceRecord) -> RenderableType:
    """`devices show` and `devices probe`: units, then every figure with kind, source and date."""
    head = Text(f"{record.name}  ", style="bold") + Text(f"{record.title}, {record.year}; {record.soc}", style="")
    units = Table("unit", "", "types", "reached by", box=None, pad_edge=False)
    for unit in record.units:
        how = "; ".join(f"{name} ({delegate})" for name, delegate in unit["runtimes"].items())
        units.add_row(unit["kind"], unit["name"], " ".join(unit["types"]), how or "nothing installed")
    table = Table("figure", "value", "interval", "kind", "date", "source", box=None, pad_edge=False)
    for key, figure in record.figures.items():
        ends = ""
        if "low" in figure and "high" in figure:
            ends = f"{scaled(figure['low'], figure['unit'])} … {scaled(figure['high'], figure['unit'])}"
        kind = Text(str(figure["kind"]), style=COLOURS.get(str(figure["kind"]), ""))
        value = scaled(figure.get("value"), figure["unit"])
        table.add_row(key, value, ends, kind, figure.get("date", ""), figure.get("source", ""))
    parts: list[RenderableType] = [head, units, Text(), table]
    if record.coefficients:
        parts += [Text(), _coefficients(record.coefficients)]
    parts += [Text(f"above the slice: {record.cliff}", style="dim")] if record.cliff else []
    parts += [Text(f"note: {note}", style="yellow") for note in record.notes]
    return Group(*parts, *([Text(f"written to {record.path}")] if record.path else []))


def fit_summary(record: DeviceFitRecord) -> RenderableType:
    """`devices fit`: errors on models left out, then what was not used and why."""
    head = Text(
        f"{record.used:,} of {record.rows:,} rows fitted; errors are of models left out of the fit.", style="bold"
    )
    table = Table("device", "runtime", "precision", "unit", "rows", "models", box=None, pad_edge=False)
    for name in ("median", "p90", "80 % interval"):
        table.add_column(name, justify="right")
    for group in record.groups:
        named = [str(group[key]) for key in ("device", "runtime", "precision", "unit", "rows", "models")]
        ends = f"× {group['low']:.2f} … {group['high']:.2f}"
        table.add_row(*named, percent(group["median_error"]), percent(group["p90_error"]), ends)
    groups, error = record.overall["groups"], percent(record.overall["median_error"])
    lines = [Text(f"the middle row lies in a group of median error {error} ({groups} groups)")]
    lines += [Text(_left_out(item), style="yellow") for item in record.left_out]
    lines += [Text(f"note: {note}", style="yellow") for note in record.notes]
    return Group(head, table, *lines, *(Text(f"written to {path}") for path in record.written))


def _left_out(item: dict[str, Any]) -> str:
    names, lines = list(item["names"]), ", ".join(map(str, item["lines"]))
    said = f"left out: {item['rows']:,} row{'' if item['rows'] == 1 else 's'}, {item['reason']}"
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"{said}: {', '.join(names[:NAMED])}{more}"
    return f"{said} (line {lines}{', …' if item['rows'] > len(item['lines']) else ''})"


def _coefficients(coefficients: tuple[dict[str, Any], ...]) -> RenderableType:
    table = Table(
        "fitted", "unit", "precision", "rows", "models", "median error", "p90", "interval", box=None, pad_edge=False
    )
    for one in coefficients:
        counts = [str(one["rows"]), str(one["models"]), percent(one["median_error"]), percent(one["p90_error"])]
        table.add_row(one["runtime"], one["unit"], one["precision"], *counts, f"× {one['low']:.2f} … {one['high']:.2f}")
    return table


def percent(share: float | None) -> str:
    """A fraction in per cent; a dash for none."""
    return "–" if share is None else f"{100 * share:.3g} %"


def scaled(value: float | None, unit: str) -> str:
    """`76.8 GB/s`, `0.25 pJ/op`, `62 %`: three digits with the prefix that suits."""
    if value is None:
        return UNKNOWN
    if unit == "1":
        return f"{100 * value:.3g} %"
    if unit in UNSCALED or not value:
        return f"{value:.3g} {unit}"
    prefix, scale = next(((prefix, scale) for prefix, scale in SCALES if abs(value) >= 0.9995 * scale), SCALES[-1])
    return f"{value / scale:.3g} {prefix}{unit}"
