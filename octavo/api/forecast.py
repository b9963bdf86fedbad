"""What the planner says of the candidates of `fit` before any is built: their order, which are out, what to expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.api.load import open_source
from octavo.api.plan import DOES_NOT_FIT, plan
from octavo.core.carriage import possible
from octavo.core.facts import ModelFacts
from octavo.plan.memory import kv_of
from octavo.records import PlanRecord

HOST = "host"
PROMPT_TOKENS, DECODE_TOKENS = 64, 32  # what is timed of a language model
FIGURES = {"latency_ms": "ms", "tokens_per_second": "tokens/s", "peak_memory_bytes": "B"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Forecast:
    """What is planned: for the device (`target`), for this machine at the same context (`full`), and for this machine
    as the candidates are measured on it (`here`): `positions` of a language model, None for a network."""

    target: PlanRecord
    full: PlanRecord
    here: PlanRecord
    positions: int | None

    def order(self, schemes: Sequence[str], runtimes: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Schemes by their best candidate, and of each the runtimes, as the planner ranks them."""
        rank = {name: self._rank(name, runtimes) for name in schemes}
        ordered = sorted(schemes, key=lambda name: min(rank[name].values()))
        return [(name, sorted(runtimes, key=lambda runtime: rank[name][runtime])) for name in ordered]

    def rejection(self, scheme: str, runtime: str) -> Row | None:
        """The row of a candidate that is out before it is built: refused, or certainly larger than the slice."""
        rows = _rows(self.target, scheme, runtime)
        if not rows or any(row["fits"] or row["tight"] for row in rows):
            return None  # nothing is known against it, or it may fit: it is measured
        first = rows[0]
        if first["memory"] is None and self.target.device == HOST and _carried(runtime, scheme):
            return None  # a runtime that has no unit here: its file is written and proved all the same
        row: Row = {"scheme": scheme, "runtime": runtime, "plan": first, "rejected": "by the plan"}
        row["reason"] = first["reason"]
        if first["memory"] is None:
            return row
        reason = f"{scheme} on {runtime}: {first['reason']}"
        return row | {"gates": [{"gate": "slice", "code": DOES_NOT_FIT, "reason": reason}]}

    def expected(self, scheme: str, runtime: str) -> Row:
        """The candidate as planned on the device (its best unit), and on this machine as it is measured."""
        found = {"plan": self.target, "plan_here": self.here}
        return {key: next(iter(_rows(record, scheme, runtime)), None) for key, record in found.items()}

    def growth(self, scheme: str, runtime: str) -> int:
        """Bytes that the planned context takes on this machine beyond what is measured at `positions`."""
        whole, part = (next(iter(_rows(record, scheme, runtime)), None) for record in (self.full, self.here))
        if whole is None or part is None or not whole["memory"] or not part["memory"]:
            return 0
        return max(0, int(whole["memory"]["total"]) - int(part["memory"]["total"]))

    def kv(self, runtime: str) -> str:
        """The type of KV cache that was planned for."""
        return kv_of(runtime, self.here.setting["kv"])

    def _rank(self, scheme: str, runtimes: Sequence[str]) -> dict[str, int]:
        found = {name: len(self.target.candidates) for name in runtimes}
        for place, row in reversed(list(enumerate(self.target.candidates))):
            if row["scheme"] == scheme and row["runtime"] in found:
                found[row["runtime"]] = place
        return found


def forecast(model: Any, device: str, given: dict[str, Any], **options: Any) -> Forecast:
    """Plan `model` on `device` and on this machine. `given`: of `open_source`; `options`: of `plan`."""
    facts = _facts(model, given)
    on_cpu = options | {"device": HOST, "unit": "cpu"}
    full = plan(facts, **on_cpu)
    target = full if device == HOST else plan(facts, device=device, **options)
    if full.context is None:
        return Forecast(target, full, full, None)
    positions = min(PROMPT_TOKENS + DECODE_TOKENS, full.context)
    here = plan(facts, **(on_cpu | {"context": positions, "prompt": max(1, positions - DECODE_TOKENS)}))
    return Forecast(target, full, here, positions)


def beside(row: Row, bench: Row) -> list[Row]:
    """Predicted (on this machine) beside measured: one entry for each figure of `bench` that the plan has too."""
    planned = row["plan_here"]
    if planned is None:
        return []
    memory = planned["memory"]
    rate = bench["tokens_per_second"]
    predicted = {"latency_ms": planned.get("latency_ms"), "tokens_per_second": planned.get("tokens_per_second")}
    if memory is not None:
        total, low, high = (memory[key] for key in ("total", "low", "high"))
        predicted["peak_memory_bytes"] = {"value": total, "low": low, "high": high, "kind": "estimated"}
    measured = {
        "latency_ms": bench["latency_ms"]["p50"],
        "tokens_per_second": rate["decode"] if rate else None,
        "peak_memory_bytes": bench["peak_memory_bytes"],
    }
    return [
        {"figure": name, "unit": unit, "predicted": guess, "measured": seen, "ratio": _ratio(seen, guess["value"])}
        for name, unit in FIGURES.items()
        if (guess := predicted.get(name)) is not None and (seen := measured[name]) is not None
    ]


def _facts(model: Any, given: dict[str, Any]) -> ModelFacts:
    from octavo.sources.facts.compressed import source_facts

    source = open_source(model, **given)
    name = type(model).__name__ if hasattr(model, "forward") else str(model or given["module"])
    try:
        return source_facts(source, name)
    finally:
        source.close()


def _rows(record: PlanRecord, scheme: str, runtime: str) -> list[Row]:
    return [row for row in record.candidates if (row["scheme"], row["runtime"]) == (scheme, runtime)]


def _ratio(measured: float, predicted: float | None) -> float | None:
    return measured / predicted if predicted else None


def _carried(runtime: str, scheme: str) -> bool:
    """Whether the runtime's files hold this scheme at all."""
    return any(scheme in possible(runtime, operator) for operator in ("matmul", "conv"))
