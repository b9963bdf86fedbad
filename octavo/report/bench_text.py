"""What `bench` measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.records import BenchRecord
from octavo.report.size import size

OPERATORS_SHOWN = 20
BARS = "▁▂▃▄▅▆▇█"
SPARKS = 60
COLOURS = {"steady": "green", "throttled": "red", "slower": "red", "disturbed": "yellow"}


def bench_summary(record: BenchRecord) -> RenderableType:
    """One configuration as facts, several as a table; then the sustained run and the operators."""
    head = Text(record.artifact, style="bold") + Text(f"  {record.runtime}, {_units(record.units)}", style="dim")
    parts: list[RenderableType] = [head]
    parts.append(_table(record) if len(record.configurations) > 1 else _facts(record))
    if record.sustained:
        parts += [Text(), *_sustained(record)]
    if record.profile:
        parts += [Text(), *_operators(record.profile)]
    parts += [Text(f"note: {note}", style="yellow") for note in record.notes]
    parts.append(Text(record.rule, style="dim"))
    return Group(*parts)


def _facts(record: BenchRecord) -> RenderableType:
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    inputs = ", ".join(
        f"{name} {'x'.join(map(str, i['shape'])) or 'one'} {i['dtype']}" for name, i in record.inputs.items()
    )
    times = record.latency_ms
    grid.add_row("inputs", inputs)
    grid.add_row("threads", "all cores" if record.threads is None else str(record.threads))
    grid.add_row("per token" if record.language else "latency", _latency(times))
    grid.add_row(
        "", f"p90 {times['p90']:.4g}, p99 {times['p99']:.4g}, slowest {times['max']:.4g} ms; {times['n']:,} calls"
    )
    if record.tokens_per_second and record.language:
        rate, language = record.tokens_per_second, record.language
        grid.add_row("decode", f"{rate['decode']:.4g} tokens/s, {language['decode_tokens']} after the prompt")
        first = f"first one after {language['first_token_ms']:.4g} ms"
        grid.add_row("prefill", f"{rate['prefill']:.4g} tokens/s, {language['prompt_tokens']} of prompt ({first})")
    elif record.items_per_second:
        grid.add_row("rate", f"{record.items_per_second:.4g} per second, one after another")
    total = f"{size(record.peak_rss_bytes)} with the interpreter's {size(record.baseline_bytes)}"
    grid.add_row("peak memory", f"{size(record.peak_memory_bytes)}  ({total})")
    grid.add_row("load", f"{record.load_ms:.4g} ms to import the runtime and open; first run {record.first_ms:.4g} ms")
    if len(record.runs) > 1:
        grid.add_row("processes", _processes(record.runs))
    return grid


def _latency(times: Mapping[str, Any]) -> str:
    low, high = times["interval"]
    return f"p50 {times['p50']:.4g} ms [{low:.4g}, {high:.4g}] (95 %)"


def _processes(runs: Sequence[Mapping[str, Any]]) -> str:
    """Run-to-run spread: what a fresh process changes."""
    medians = [run["p50"] for run in runs]
    apart = (max(medians) / min(medians) - 1) * 100
    return f"p50 of {len(runs)}: {', '.join(f'{value:.4g}' for value in medians)} ms; {apart:.2g} % apart"


def _table(record: BenchRecord) -> RenderableType:
    """One row per pair of threads and batch."""
    table = Table("threads", "batch", box=None, pad_edge=False)
    rates = ("decode/s", "prefill/s") if record.language else ("per second",)
    for name in ("p50 ms", "95 %", "p90", "p99", "n", *rates, "peak memory", "load ms"):
        table.add_column(name, justify="right")
    for row in record.configurations:
        times, rate = row["latency_ms"], row["tokens_per_second"]
        low, high = times["interval"]
        speeds = [f"{rate['decode']:.4g}", f"{rate['prefill']:.4g}"] if rate else [f"{row['items_per_second']:.4g}"]
        table.add_row(
            "all" if row["threads"] is None else str(row["threads"]), str(row["batch"] or 1), f"{times['p50']:.4g}",
            f"[{low:.4g}, {high:.4g}]", f"{times['p90']:.4g}", f"{times['p99']:.4g}", f"{times['n']:,}", *speeds,
            size(row["peak_memory_bytes"]), f"{row['load_ms']:.4g}",
        )  # fmt: skip
    return table


def _sustained(record: BenchRecord) -> list[RenderableType]:
    windows, judged = record.sustained, record.throttling or {}
    minutes = windows[-1]["end_s"]
    said = f"sustained: {minutes:.0f} s in {len(windows)} windows" + (", interrupted" if record.interrupted else "")
    lines: list[RenderableType] = [Text(said, style="bold")]
    lines.append(
        Text(f"{sparks([w['p50'] for w in windows])}  p50 of each, 0 to {max(w['p50'] for w in windows):.4g} ms")
    )
    word = Text(str(judged.get("word", "")), style=COLOURS.get(str(judged.get("word")), "yellow"))
    if judged.get("ratio") is not None:
        ends = f"{judged['ratio']:.3f} [{judged['low']:.3f}, {judged['high']:.3f}]"
        word += Text(f": last quarter over first {ends}", style="")
    lines.append(word + Text(f"; {judged['cause']}" if judged.get("cause") else "", style=""))
    seen = _seen(windows)
    lines += [Text(seen, style="dim")] if seen else []
    return lines + ([Text(f"plot: {record.plot}")] if record.plot else [])


def _seen(windows: Sequence[Mapping[str, Any]]) -> str:
    """Temperature, clock and others, first to last, where the machine shows them."""
    names = {
        "celsius": ("hottest zone", "{:.0f} °C"),
        "megahertz": ("clock", "{:.0f} MHz"),
        "others": ("others", "{:.0%}"),
    }
    said = []
    for key, (name, form) in names.items():
        values = [window[key] for window in windows if window.get(key) is not None]
        if values:
            said.append(
                f"{name} {form.format(values[0])} to {form.format(values[-1])}, at most {form.format(max(values))}"
            )
    return "; ".join(said)


def _operators(profile: Mapping[str, Any]) -> list[RenderableType]:
    table = Table("operator", "kind", "unit", box=None, pad_edge=False)
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    operators = profile["operators"]
    for item in operators[:OPERATORS_SHOWN]:
        table.add_row(item["op"], item["kind"], item["unit"], f"{item['ms']:.4g}", f"{item['share']:.1%}")
    rest = operators[OPERATORS_SHOWN:]
    if rest:
        share = sum(item["share"] for item in rest)
        table.add_row(f"{len(rest)} others", "", "", f"{sum(item['ms'] for item in rest):.4g}", f"{share:.1%}")
    said = f"operators: {profile['total_ms']:.4g} ms per run by the runtime's profiler, over {profile['runs']} runs"
    return [Text(said, style="bold"), table]


def sparks(values: Sequence[float]) -> str:
    """A line of bars from 0, so that a change looks its size; at most SPARKS, each the mean of its neighbours."""
    groups = min(SPARKS, len(values))
    cut = [values[i * len(values) // groups : (i + 1) * len(values) // groups] for i in range(groups)]
    means = [sum(group) / len(group) for group in cut]
    top = max(means) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in means)


def _units(units: Mapping[str, int]) -> str:
    if not units or "*" in units:
        return "placement unknown"
    return ", ".join(f"{count} operator{'' if count == 1 else 's'} on {unit}" for unit, count in units.items())
