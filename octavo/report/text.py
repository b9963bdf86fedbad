"""Records as tables for a terminal. Pure functions: record in, renderable out; `write` prints it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.records import DoctorRecord, ExportRecord, FitRecord, ModelRecord, VerifyRecord
from octavo.report.diverges_text import diverges_text
from octavo.report.placement_text import fallback_table, npu_tables, units_line
from octavo.report.size import size as size

COLOURS = {"exact": "green", "unknown": "yellow", "by numerics only": "yellow"}
TENSORS_SHOWN = 40
WORST_LAYERS = 10
FIGURES = {"latency_ms": "latency, ms", "tokens_per_second": "tokens/s", "peak_memory_bytes": "peak memory"}
WIDTH_OF_FILES = 160  # where nobody folds lines


def write(renderable: RenderableType, *, error: bool = False) -> None:
    """Print on standard output (or error); plain text where that is no terminal."""
    console = Console(highlight=False, markup=False, stderr=error)  # names such as layers[0] are no markup
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OF_FILES)
    console.print(renderable)


def interval(value: float | None, ends: Sequence[float | None] | None = None, unit: str = "") -> str:
    """`0.231 ± 0.012`, two digits of the margin; `0.99 [0.95, 1]` where the interval leans to one side."""
    if value is None:
        return "–"
    low, high = ends or (None, None)
    if low is None or high is None:
        return f"{value:.4g}{unit}"
    margin = (high - low) / 2
    if margin and abs((high + low) / 2 - value) > 0.2 * margin:
        return f"{value:.4g} [{low:.4g}, {high:.4g}]{unit}"
    digits = _digits(margin)
    return f"{value:.{digits}f} ± {margin:.{digits}f}{unit}"


def verdict(weights: Any) -> Text:
    """exact | unknown | WRONG with the tensors named."""
    if isinstance(weights, Mapping):
        named = [str(item["name"]) for item in weights.get("wrong", ())]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        return Text(f"WRONG: {', '.join(named[:3])}{more}", style="bold red")
    return Text(str(weights), style=COLOURS.get(str(weights), "red"))


def model_summary(record: ModelRecord) -> RenderableType:
    """`inspect` and `compress`: totals, then a line per kind of tensor, what was skipped and why."""
    facts = _facts()
    facts.add_row("what", record.kind)
    facts.add_row("parameters", f"{record.parameters:,}")
    facts.add_row("size", f"{size(record.bytes)}  ({record.bits_per_weight:.3f} bits per weight, exact)")
    if record.digest:
        facts.add_row("digest", record.digest)
    table = Table("tensor", "shape", "scheme", "SQNR dB", box=None, pad_edge=False)
    for item in record.tensors[:TENSORS_SHOWN]:
        sqnr = "" if item.sqnr_db is None else f"{item.sqnr_db:.2f}"
        table.add_row(item.name, "×".join(map(str, item.shape)), item.scheme, sqnr)
    hidden = len(record.tensors) - TENSORS_SHOWN
    lines: list[RenderableType] = [Text(record.path, style="bold"), facts, table]
    if hidden > 0:
        lines.append(Text(f"… and {hidden} more (--json lists all)"))
    steps = [item for item in record.lineage if item.get("step") != "sensitivity"]
    lines += [Text(f"lineage: {_step(item)}", style="dim") for item in steps]
    lines += [_sensitivity(item) for item in record.lineage if item.get("step") == "sensitivity"]
    lines += [Text(f"left in float: {_named(item)}", style="yellow") for item in record.skipped]
    return Group(*lines, *_notes(record.notes))


def _decibels(value: float | None) -> str:
    """JSON has no infinity: what changed nothing is exact."""
    return "exact" if value is None else f"{value:.1f}"


def _sensitivity(step: Mapping[str, Any]) -> RenderableType:
    """The layers that cost most: SQNR at the outputs with only that one quantised, and with all up to it."""
    table = Table("layer", "alone, dB", "up to it, dB", box=None, pad_edge=False)
    costly = sorted((item for item in step["layers"] if item["alone"] is not None), key=lambda item: item["alone"])
    for item in costly[:WORST_LAYERS]:
        table.add_row(item["weight"], _decibels(item["alone"]), _decibels(item["upto"]))
    kept = " ".join(f"--keep {shlex.quote(name)}" for name in step["keep"])
    advice = f"These cost most; to leave them in float: {kept}" if kept else "No layer stands out."
    return Group(Text(f"all layers quantised: {_decibels(step['whole_db'])} dB", style="bold"), table, Text(advice))


def export_summary(record: ExportRecord) -> RenderableType:
    """`export`: the file, what reading it back proved, which unit runs what, and the line that runs it."""
    facts = _facts()
    facts.add_row("runtime", record.runtime)
    bits = "" if record.bits_per_weight is None else f"  ({record.bits_per_weight:.3f} bits per weight, the whole file)"
    facts.add_row("size", f"{size(record.bytes)}{bits}")
    facts.add_row("weights", verdict(record.weights))
    if record.digest:
        facts.add_row("digest", record.digest)
    facts.add_row(f"unit {record.unit}", units_line(record.placement))
    for item in record.widened:
        facts.add_row("widened", f"{item['tensors']} tensors: {item['scheme']} as {item['as']}: {item['why']}")
    for what, path in record.files.items():
        facts.add_row(what, path)
    if record.run_line:
        facts.add_row("run it", record.run_line)
    npu = npu_tables(record.npu, record.placement)
    ends = (*fallback_table(record.fallback), *_notes(record.notes), *_gates(record.gates))
    return Group(Text(record.path, style="bold"), facts, *npu, *ends)


def verify_summary(record: VerifyRecord) -> RenderableType:
    """`verify`: weights, outputs, accuracy, placement, gates."""
    facts = _facts()
    facts.add_row("weights", verdict(record.weights))
    if isinstance(record.weights, Mapping):
        for item in record.weights.get("wrong", ()):
            facts.add_row("", Text(f"{item['name']}: {item['reason']}", style="red"))
    for title, outputs in (("outputs", record.outputs), ("decoded weights", record.decoded)):
        if outputs:
            facts.add_row(title, _outputs(outputs))
    if record.accuracy:
        facts.add_row(record.accuracy.get("metric", "accuracy"), _accuracy(record.accuracy))
    end = Text("passed", style="bold green") if record.passed else Text("FAILED", style="bold red")
    lost = diverges_text(record.diverges) if record.diverges else []
    ends = (*fallback_table(record.fallback), *_notes(record.notes), *_gates(record.gates), *lost, end)
    return Group(Text(record.artifact, style="bold"), facts, *ends)


def fit_summary(record: FitRecord) -> RenderableType:
    """`fit`: one row per candidate, every figure measured unless its head says otherwise; then the verdict."""
    table = Table(
        "scheme", "runtime", "file", "bits", "weights", "runs on", "SQNR dB", "KL", "float", "artifact", "drop",
        "ms p50 / p99", "tokens/s", "peak memory", box=None, pad_edge=False,
        caption="file, bits: exact; the rest: measured here; memory: above the bare interpreter",
        caption_justify="left",
    )  # fmt: skip
    candidates = record.to_dict()["candidates"]
    for item in candidates:
        table.add_row(*_candidate(item))
    facts = _facts()
    facts.add_row("device", record.device)
    facts.add_row("chosen is", record.rule)
    if record.slice_bytes is not None:
        facts.add_row("slice", size(record.slice_bytes))
    if record.report:
        facts.add_row("report", record.report)
    chosen = Text(f"chosen: {record.chosen}", style="bold green") if record.chosen else Text("none", style="bold red")
    return Group(facts, table, *_beside(candidates), *_gates(record.gates), chosen)


def _beside(candidates: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Predicted beside measured, one row per figure; nothing where nothing was measured."""
    table = Table(
        "scheme", "runtime", "on this machine", "predicted", "", "measured", "measured / predicted",
        box=None, pad_edge=False,
    )  # fmt: skip
    for item in candidates:
        for row in item.get("beside", ()):
            show = size if row["unit"] == "B" else _figure
            table.add_row(
                item["scheme"], item["runtime"], FIGURES[row["figure"]], *_predicted(row["predicted"], show),
                show(row["measured"]), "–" if row["ratio"] is None else f"{row['ratio']:.2f}",
            )  # fmt: skip
    return [Text(), table] if table.row_count else []


def _predicted(figure: Mapping[str, Any], show: Callable[[float | None], str]) -> tuple[str, str]:
    """`30 MB [27 MB, 36 MB]` and its kind."""
    low, high = figure["low"], figure["high"]
    if figure["value"] is None:
        return "unknown", ""
    ends = "" if low is None or high is None else f" [{show(low)}, {show(high)}]"
    return show(figure["value"]) + ends, figure["kind"]


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def doctor_summary(record: DoctorRecord) -> RenderableType:
    """`doctor`: what works, and what to do about what does not."""
    table = Table("", "", "version", "units", "what to do", box=None, pad_edge=False)
    for item in record.runtimes:
        works = Text("works", style="green") if item["works"] else Text("missing", style="yellow")
        do = " ".join(str(item[key]) for key in ("reason", "remedy") if item.get(key))
        table.add_row(item["runtime"], works, item.get("version", ""), ", ".join(item.get("units", ())), do)
    for item in record.extras:
        installed = Text("installed", style="green") if item["installed"] else Text("missing", style="yellow")
        versions = ", ".join(f"{name} {number or '–'}" for name, number in item["packages"].items())
        table.add_row(f"extra {item['extra']}", installed, versions, "", item["remedy"])
    units = Table("runtime", "unit", "", "why", "what to do", box=None, pad_edge=False)
    for item in record.units:
        works = Text("works", style="green") if item["works"] else Text("not here", style="yellow")
        units.add_row(item["runtime"], item["unit"], works, item["reason"], item["remedy"])
    more: list[RenderableType] = [Text(), units] if record.units else []
    return Group(table, *more)


def _candidate(item: Mapping[str, Any]) -> list[RenderableType]:
    """Cells of one candidate; steps that did not happen are dashes, and the reason stands instead of the verdict."""
    export, bench, verify = ((item.get(step) or {}) for step in ("export", "bench", "verify"))
    outputs, accuracy = verify.get("outputs") or {}, verify.get("accuracy") or {}
    times, rate = bench.get("latency_ms") or {}, bench.get("tokens_per_second") or {}
    weights = verify.get("weights", export.get("weights"))
    reason = item.get("reason") or item.get("error")
    bits = export.get("bits_per_weight")
    ends = outputs.get("intervals", {})
    return [
        str(item.get("scheme", "")),
        str(item.get("runtime", "")),
        size(export.get("bytes")),
        "–" if bits is None else f"{bits:.2f}",
        Text(str(reason), style="red") if weights is None and reason else verdict(weights or "–"),
        _units(export.get("placement") or ()),
        interval(outputs.get("sqnr_db"), ends.get("sqnr_db")),
        interval(outputs.get("kl"), ends.get("kl")),
        interval(accuracy.get("float")),
        interval(accuracy.get("artifact")),
        interval(accuracy.get("drop"), accuracy.get("interval")),
        f"{times['p50']:.2f} / {times['p99']:.2f}" if times else "–",
        f"{rate['decode']:.0f}" if rate else "–",
        size(bench.get("peak_memory_bytes")),
    ]


def _units(placement: Sequence[Mapping[str, Any]]) -> str:
    """`26 cpu`, `25 npu, 1 cpu`: how many operators each unit runs."""
    counts = Counter(str(row["unit"]) for row in placement)
    return ", ".join(f"{count} {unit}" for unit, count in counts.most_common()) or "–"


def _outputs(outputs: Mapping[str, Any]) -> str:
    ends = outputs.get("intervals", {})
    if outputs.get("identical"):
        return "identical"
    if "weights_sqnr_db" in outputs:
        lowest = outputs["lowest"]
        worst = (
            "no quantised tensor" if lowest is None else f"lowest {outputs['weights_sqnr_db'][lowest]:.2f} dB, {lowest}"
        )
        return f"SQNR to the original's weights: {worst} (not run: no --data)"
    names = {
        "sqnr_db": ("SQNR", " dB"),
        "cosine": ("cosine", ""),
        "kl": ("KL", " nats"),
        "agreement": ("top-1 agreement", ""),
    }
    shown = [
        f"{title} {interval(outputs[key], ends.get(key), unit)}"
        for key, (title, unit) in names.items()
        if outputs.get(key) is not None
    ]
    if outputs.get("nonfinite"):
        shown.insert(0, f"{outputs['nonfinite']} NaN or infinite values")
    return ", ".join(shown) + (f" (n = {outputs['n']:,})" if "n" in outputs else "")


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    drop = interval(accuracy.get("drop"), accuracy.get("interval"))
    sides = ", ".join(
        f"{side} {interval(accuracy.get(side), accuracy.get(f'{side}_interval'))}" for side in ("float", "artifact")
    )
    windows = f", {accuracy['windows']} of {accuracy['available']} windows" if "available" in accuracy else ""
    return f"{sides}, drop {drop} (n = {accuracy.get('n', 0):,}, paired{windows})"


def _named(item: Mapping[str, str]) -> str:
    """A reason with the tensor's name in front, unless it begins with it."""
    return item["reason"] if item["reason"].startswith(item["name"]) else f"{item['name']}: {item['reason']}"


def _step(item: Mapping[str, Any]) -> str:
    """One entry of a lineage as `key value, …`."""
    return ", ".join(
        f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in item.items()
    )


def _facts() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _notes(notes: Sequence[str]) -> list[RenderableType]:
    return [Text(f"note: {note}", style="yellow") for note in notes]


def _gates(gates: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    shown = []
    for gate in gates:
        what = (
            gate.get("reason") or gate.get("message") or ", ".join(f"{k} {v}" for k, v in gate.items() if k != "code")
        )
        shown.append(Text(f"gate failed (exit {gate.get('code', '?')}): {what}", style="red"))
    return list(shown)


def _digits(margin: float) -> int:
    """Decimals that show two digits of the margin."""
    if margin <= 0:
        return 4
    digits = 1
    while margin * 10**digits < 9.5 and digits < 9:
        digits += 1
    return digits
