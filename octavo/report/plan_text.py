"""`plan` for a terminal: the answer first, then the table, the curve over context, and where each number comes from.

Plain lines, not rich's tables: importing and laying those out takes as long as the plan itself.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo.records import PlanRecord
from octavo.report.size import size

SHOWN = 16  # candidates in the table; --json has all of them
MARKS = {True: "fits", False: "no", None: "?"}
BOLD, DIM, YELLOW, PLAIN = "\033[1m", "\033[2m", "\033[33m", "\033[0m"
LEFT_OUT_FIRST = ("activations", "runtime's", "sustained /s", "first token", "battery/h", "KV cache", "J each")


def plan_text(record: PlanRecord, *, explain: bool = False, width: int = 160, colour: bool = False) -> str:
    """One device in full; of several a line each, and each in full where they are few. `width`: of a line."""
    return "\n".join(_lines(record, explain, max(width, 40), colour))


def _lines(record: PlanRecord, explain: bool, width: int, colour: bool) -> Iterator[str]:
    yield from _wrapped(record.answer, width, BOLD if colour else "")
    yield ""
    if record.devices:
        yield from _columns(*_devices(record), width)
        if len(record.devices) <= 3 or explain:
            for one in record.devices:
                yield ""
                yield from _lines(one, explain, width, colour)
        return
    shown = [row for row in record.candidates if row["memory"] is not None]
    if shown:
        yield from _columns(*_table(record, shown[:SHOWN]), width)
    if any(_flagged(row) for row in shown[:SHOWN]):
        yield "! the two estimates of energy are far apart, or only one is known (--explain says which)"
    if len(shown) > SHOWN:
        yield f"… and {len(shown) - SHOWN} more (--json lists all)"
    out = list(_refused(record))
    if out and (explain or not shown):
        for line in out:
            yield from _wrapped(line, width, DIM if colour else "")
    elif out:
        count = len(record.candidates) - len(shown)
        pairs = "pair cannot run here, or makes" if count == 1 else "pairs cannot run here, or make"
        yield f"{count} other {pairs} no sense (--explain says why)"
    if record.curve:
        yield ""
        yield from _curve(record.curve, record.setting["granted"].get("value"), width)
    for note in record.notes:
        yield from _wrapped(f"note: {note}", width, YELLOW if colour else "")
    if explain:
        yield ""
        yield "Where the numbers come from"
        for line in _explained(record):
            yield from _wrapped(line, width)


def _wrapped(text: str, width: int, style: str = "") -> Iterator[str]:
    """Folded lines; what was indented stays so, its further lines a little more."""
    before = len(text) - len(text.lstrip())
    for line in textwrap.wrap(text, width, subsequent_indent=" " * (before + 2) if before else ""):
        yield f"{style}{line}{PLAIN}" if style else line


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Aligned columns; where they are too wide those of LEFT_OUT_FIRST go, and a line says so."""
    keep, gone = list(range(len(heads))), []
    widths = [max(len(head), *(len(row[at]) for row in rows)) for at, head in enumerate(heads)]
    for name in LEFT_OUT_FIRST:
        if sum(widths[at] + 2 for at in keep) - 2 <= width:
            break
        if name in heads:
            keep.remove(heads.index(name))
            gone.append(name)
    for row in (heads, *rows):
        yield "  ".join(row[at].ljust(widths[at]) for at in keep).rstrip()
    if gone:
        yield f"(left out for width: {', '.join(gone)})"


def _devices(record: PlanRecord) -> tuple[list[str], list[list[str]]]:
    table = []
    for one in record.devices:
        rows = [row for row in one.candidates if row["memory"] is not None]
        first, best = (rows[0] if rows else None), one.best
        label = f"{best['scheme']} {best['runtime']} {best['unit']}" if best else "–"
        least = min((row["memory"]["total"] for row in rows), default=None)
        need = size(first["memory"]["total"] if first and best else least)
        table.append([str(one.device), size(one.slice_bytes), _mark(first) if first else "no", label, need,
                      _pace(first) if first and best else "–"])  # fmt: skip
    return ["device", "slice", "", "best", "needs", "speed"], table


def _mark(row: Mapping[str, Any]) -> str:
    """`fits`, `fits just` where the intervals leave it open, `no`, `no (?)` likewise, `?`."""
    tight = " just" if row["tight"] and row["fits"] else " (?)" if row["tight"] and row["fits"] is False else ""
    return MARKS[row["fits"]] + tight


def _table(record: PlanRecord, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Bytes are exact or as the plan has them; ranges are intervals."""
    language = record.facts["kind"] == "language"
    heads = ["scheme", "runtime", "unit", "today", "", "weights"] + (["KV cache"] if language else [])
    heads += ["activations", "runtime's", "total"] + (["longest context"] if language else [])
    heads += ["ms"] if record.facts["kind"] == "network" else ["tokens/s", "first token"]
    heads += ["J each", "battery/h", "sustained /s"]
    return heads, [cells + [""] * (len(heads) - len(cells)) for cells in (_cells(row, language) for row in rows)]


def _cells(row: Mapping[str, Any], language: bool) -> list[str]:
    memory = row["memory"]
    cells = [row["scheme"], row["runtime"], row["unit"], "yes" if row["exported_today"] else "planned", _mark(row)]
    cells += [size(memory["weights"])] + ([size(memory["kv_cache"])] if language else [])
    cells += [_or_unknown(memory["activations"]), size(memory["runtime"]), size(memory["total"])]
    if language:
        cells.append(f"{row['largest_context']:,}" if row["largest_context"] is not None else "?")
    if "energy_j" not in row:
        return cells
    if "latency_ms" in row:
        cells.append(span(row["latency_ms"]))
    else:
        cells += [span(row.get("tokens_per_second")), _seconds(row.get("time_to_first_token_ms"))]
    energy = row["energy_j"]
    cells.append(span(energy) + (" !" if _flagged(row) else ""))
    cells.append(span(energy["battery_share_per_hour"], 100, " %"))
    cells.append(span(row["sustained"]["sustained_per_second"]))
    return cells


def _flagged(row: Mapping[str, Any]) -> bool:
    """Whether there is a figure of energy that is not to be relied on."""
    energy = row.get("energy_j")
    return energy is not None and energy["value"] is not None and bool(energy["flag"])


def _or_unknown(count: int | None) -> str:
    return "?" if count is None else size(count)


def span(figure: Mapping[str, Any] | None, factor: float = 1.0, unit: str = "") -> str:
    """`8.1–14`; `?` for what is not known."""
    if not figure or figure.get("value") is None:
        return "?"
    low, high = (figure["value"] if figure.get(key) is None else figure[key] for key in ("low", "high"))
    first, last = digits(low * factor), digits(high * factor)
    return f"{first}{unit}" if first == last else f"{first}–{last}{unit}"


def digits(value: float) -> str:
    """Two digits, and no exponent between a ten-thousandth and a million."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _seconds(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure.get("value") is None:
        return "?"
    longest = figure["value"] if figure.get("high") is None else figure["high"]
    return span(figure, 1e-3, " s") if longest >= 1000 else span(figure, 1, " ms")


def _pace(row: Mapping[str, Any]) -> str:
    found, unit = (row["latency_ms"], "ms") if "latency_ms" in row else (row.get("tokens_per_second"), "tokens/s")
    return "?" if span(found) == "?" else f"{span(found)} {unit}"


def _refused(record: PlanRecord) -> Iterator[str]:
    """Pairs that no figure can be given for, one line per reason."""
    reasons: dict[str, list[str]] = {}
    for row in record.candidates:
        if row["memory"] is None:
            reasons.setdefault(row["reason"], []).append(f"{row['scheme']} {row['runtime']} {row['unit']}")
    for reason, pairs in reasons.items():
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        yield f"out: {', '.join(pairs[:3])}{more}: {reason}"


def _curve(curve: Mapping[str, Any], granted: float | None, width: int) -> Iterator[str]:
    yield f"Over context, {curve['of']['name']}:"
    yield from _columns(
        ["context", "KV cache", "activations", "total", ""],
        [
            [f"{point['context']:,}", size(point["kv_cache"]), size(point["activations"]), size(point["total"]),
             MARKS[point["fits"]]]
            for point in curve["points"]
        ],
        width,
    )  # fmt: skip
    longest = curve["largest_context"]
    if longest is None or granted is None:
        yield "The slice is not known."
    elif longest:
        yield f"The longest context that fits in {size(granted)} is {longest:,}."
    else:
        yield f"No context fits in {size(granted)}."


def _explained(record: PlanRecord) -> Iterator[str]:
    """Source, kind and formula of every figure of the first candidate that was weighed, and of what all rest on."""
    setting = record.setting
    yield f"model: {record.facts['origin'] or record.model}, {record.facts['parameters']:,} parameters"
    yield f"slice: {_source(setting['slice'])}"
    if setting["reserve"]:
        yield f"reserve: {setting['reserve']:.0%} of it, for activations and KV cache that cannot be computed"
    row = next((row for row in record.candidates if row["memory"] is not None), None)
    if row is not None:
        yield f"Of {row['scheme']} on {row['runtime']} ({row['unit']}, {row['delegate']}):"
        yield from (f"  {line}" for line in _row_explained(row, setting))
    yield f"order: {record.rule}."


def _row_explained(row: Mapping[str, Any], setting: Mapping[str, Any]) -> Iterator[str]:
    memory = row["memory"]
    bits = f"{row['bits_per_weight']:.3f} bits per weight"
    yield f"weights {memory['weights']:,} B (exact): {bits}, as the runtime stores them"
    if memory["kv_cache"] is not None and setting["context"]:
        kind = setting["kv"] or "the runtime's own type"
        yield f"KV cache {memory['kv_cache']:,} B (exact): {setting['context']:,} positions in {kind}"
    if memory["activations"] is not None:
        what = f", a prompt of {setting['prompt']:,} tokens" if setting["prompt"] else ""
        how = f"liveness over the graph{what}, and the allocator's spare"
        yield f"activations {memory['activations']:,} B (estimated): {how}"
    yield f"runtime {memory['runtime']:,} B: {row['memory_source']}"
    yield f"total {memory['total']:,} B, between {memory['low']:,} and {memory['high']:,}"
    for key, words in (("latency_ms", "latency"), ("tokens_per_second", "decode"),
                       ("time_to_first_token_ms", "first token")):  # fmt: skip
        if key in row:
            yield f"{words} {_source(row[key])}"
    if "energy_j" in row:
        energy, kept = row["energy_j"], row["sustained"]
        yield f"energy bottom-up {_source(energy['bottom_up'])}"
        yield f"energy top-down {_source(energy['top_down'])}"
        if energy["flag"]:
            yield f"energy: {energy['flag']}"
        yield f"battery {span(energy['battery_share_per_thousand'], 100, ' %')} per thousand ({energy['per']}s)"
        yield f"full speed for {'ever' if kept['endless'] else _source(kept['seconds_to_throttle'])}"
        yield f"then {_source(kept['sustained_per_second'])}"
        if kept["reason"]:
            yield f"heat: {kept['reason']}"
    yield from (f"note: {note}" for note in row["notes"])


def _source(figure: Mapping[str, Any]) -> str:
    """`2.1–4.2 W (estimated, 2026-11-22): source`."""
    if figure.get("value") is None:
        return f"unknown{': ' + figure['source'] if figure.get('source') else ''}"
    when = f", {figure['date']}" if figure.get("date") else ""
    rows = f", {figure['n']} rows" if figure.get("n") else ""
    unit = figure.get("unit", "")
    shown = size(figure["value"]) if unit == "B" else f"{span(figure)} {unit}".strip()
    if unit == "B" and figure.get("low") and figure["low"] != figure.get("high"):
        shown += f" ({size(figure['low'])} to {size(figure.get('high'))})"
    return f"{shown} ({figure['kind']}{when}{rows})" + (f": {figure['source']}" if figure.get("source") else "")
