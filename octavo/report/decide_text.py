"""`decide` for a terminal: the answer as a sentence, then the paths, the break-evens, and what would flip it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.records import DecideRecord
from octavo.report.text import size

WHERE = {"device": "on the device", "cloud": "in the cloud", "split": "split"}
NAMES = {"device": "the device", "cloud": "the cloud", "split": "a split"}
CUTS_SHOWN = 8
Figure = Mapping[str, Any]


def decide_summary(record: DecideRecord) -> RenderableType:
    """The whole answer."""
    parts: list[RenderableType] = [Text(sentence(record), style="bold")]
    parts += [Text(f"uncertain: {doubt}", style="yellow") for doubt in record.doubts]
    parts += [Text(""), _paths(record)]
    parts += [Text(""), Text("Break-even, all else equal:"), *(Text(f"  {line}") for line in _break_evens(record))]
    if record.cuts:
        parts += [Text(""), _cuts(record)]
    parts += [Text(""), Text(_flip(record)), Text(f"Rule: {record.rule}", style="dim")]
    return Group(*parts, *(Text(f"note: {note}", style="yellow") for note in record.notes))


def sentence(record: DecideRecord) -> str:
    """The verdict in one sentence, with the figures it rests on."""
    paths = {path["path"]: path for path in record.paths}
    if record.chosen is None:
        return f"Nowhere: {'; '.join(_why_out(path) for path in record.paths)}."
    chosen = paths[record.chosen]
    where = WHERE[record.chosen].capitalize() if record.certain else f"Probably {WHERE[record.chosen]}"
    if record.chosen == "split":
        where += f" behind '{chosen['cut']['after']}'"
    text = f"{where}: {_latency(chosen)} and {_a_day(chosen)}"
    rivals = [path for name, path in paths.items() if name != record.chosen and path["keeps"]]
    if rivals:
        text += ", against " + " or ".join(
            f"{_latency(path)} and {_a_day(path)} {WHERE[path['path']]}" for path in rivals
        )
    if record.chosen == "device" and chosen["battery_j_per_user_day"].get("value") is not None:
        text += f"; it takes {_joules(chosen)} a day from each user's battery{_of_a_charge(chosen)}"
    out = [_why_out(path) for path in record.paths if not path["keeps"]]
    return f"{text}{''.join(f'; {reason}' for reason in out)}."


def _why_out(path: Mapping[str, Any]) -> str:
    return f"{NAMES[path['path']]} is out ({', '.join(path['reasons'])})"


def _a_day(path: Mapping[str, Any]) -> str:
    day, year = path["cost_per_day"], path["cost_per_year"]
    return f"{money(day['value'])} a day" + (f" ({money(year['value'])} a year)" if year["value"] else "")


def _paths(record: DecideRecord) -> Table:
    table = Table(
        "path", "latency", "per day", "per year", "J per user and day", "of a charge", "", box=None, pad_edge=False
    )
    for path in record.paths:
        chosen = path["path"] == record.chosen
        verdict = Text("chosen", style="green") if chosen else Text("" if path["keeps"] else "out", style="red")
        spent, share = path["battery_j_per_user_day"], path["battery_share_per_day"]
        table.add_row(
            path["path"], _ranged(path["latency_ms"], 1, " ms"), _money_cell(path["cost_per_day"]),
            _money_cell(path["cost_per_year"]), _ranged(spent, 1, ""), _ranged(share, 100, " %"), verdict,
        )  # fmt: skip
    table.caption, table.caption_justify = _kinds(record), "left"
    return table


def _kinds(record: DecideRecord) -> str:
    """What is not plain arithmetic on given figures."""
    columns = {"latency": "latency_ms", "cost": "cost_per_day", "battery": "battery_j_per_user_day"}
    found: dict[str, list[str]] = {}
    for path in record.paths:
        for title, key in columns.items():
            if (kind := path[key]["kind"]) != "exact":
                found.setdefault(kind, []).append(f"{title} of {path['path']}")
    return "; ".join(f"{kind}: {', '.join(which)}" for kind, which in found.items())


def _break_evens(record: DecideRecord) -> list[str]:
    found = record.break_even
    shown = {
        "round trip": ("round_trip_ms", "{:,.4g} ms (above it the device answers sooner)"),
        "price per query": ("price", "${:.4g} (above it the device costs less)"),
        "queries per user and day": ("queries", "{:.4g} (above it the device costs less)"),
    }
    said: dict[str, list[str]] = {}
    for title, (key, text) in shown.items():
        said.setdefault(found["reasons"].get(key) or text.format(found[key]), []).append(title)
    return [f"{' and '.join(titles)}: {text}" for text, titles in said.items()]


def _cuts(record: DecideRecord) -> Table:
    """The fastest cuts, the two ends always among them."""
    last = len(record.cuts) - 1
    ranked = sorted(record.cuts, key=lambda cut: (cut["latency_ms"]["value"], cut["index"]))
    kept = {cut["index"] for cut in ranked[:CUTS_SHOWN]} | {0, last}
    title = f"Cuts, fastest first ({len(record.cuts)} in all, --json lists them):"
    table = Table(
        "latency", "device ms", "sent", "received", "server ms", "cut", box=None, pad_edge=False, title=title,
        title_justify="left", title_style="",
    )  # fmt: skip
    for cut in (cut for cut in ranked if cut["index"] in kept):
        where = {0: "all cloud", last: "all device"}.get(cut["index"], f"behind {cut['index']}: {cut['after']}")
        table.add_row(
            f"{cut['latency_ms']['value']:.4g} ms", f"{cut['device_ms']:.4g}", size(cut["up_bytes"]),
            size(cut["down_bytes"]), f"{cut['server_ms']:.4g}", where,
        )  # fmt: skip
    return table


def _flip(record: DecideRecord) -> str:
    flip = record.flip
    if flip is None:
        return "No single change within a factor of 4096 would flip this."
    then = WHERE[flip["chosen"]] if flip["chosen"] else "nowhere, no path being left"
    change = f" ({flip['change']:+.3g} times)" if flip["change"] is not None and abs(flip["change"]) > 10 else ""
    if flip["change"] is not None and not change:
        change = f" ({flip['change']:+.1%})".replace("%", " %")
    return f"What would flip it: {flip['text']}{change}; then {then}."


def money(value: float) -> str:
    """`$1,000,000`, `$12.50`, `$0.0002`."""
    if value and abs(value) < 1:
        return f"${value:.4g}"
    return f"${value:,.2f}".removesuffix(".00")


def _latency(path: Mapping[str, Any]) -> str:
    figure = path["latency_ms"]
    return "an unknown time" if figure.get("value") is None else _spoken(figure, "ms")


def _joules(path: Mapping[str, Any]) -> str:
    return _spoken(path["battery_j_per_user_day"], "J")


def _spoken(figure: Figure, unit: str) -> str:
    """`120 ms`, or `5,703 ms (3,160 to 15,100, estimated)`."""
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None or low == high:
        return f"{_number(figure['value'], 4)} {unit}"
    return f"{_number(figure['value'])} {unit} ({_number(low)} to {_number(high)}, {figure['kind']})"


def _number(value: float, digits: int = 3) -> str:
    """So many significant digits, and no exponent where people would write none."""
    return f"{float(f'{value:.{digits}g}'):,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _of_a_charge(path: Mapping[str, Any]) -> str:
    share = path["battery_share_per_day"].get("value")
    return "" if share is None else f" ({share * 100:.2g} % of a charge)"


def _money_cell(figure: Figure) -> str:
    if figure.get("low") is None:
        return money(figure["value"])
    return f"{money(figure['value'])} [{money(figure['low'])}, {money(figure['high'])}]"


def _ranged(figure: Figure, factor: float, unit: str) -> str:
    """`120 ms`, `315 [0, 629]`, or `unknown`."""
    if figure.get("value") is None:
        return "unknown"
    low, high = figure.get("low"), figure.get("high")
    ends = ""
    if low is not None and high is not None and low < high:
        ends = f" [{_number(low * factor)}, {_number(high * factor)}]"
    return f"{_number(figure['value'] * factor, 3 if ends else 4)}{ends}{unit}"
