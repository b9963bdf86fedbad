"""Does it fit, how fast, how many joules, for how long: from shapes alone, before anything is converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo.api.size import parse_size
from octavo.core.facts import ModelFacts
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan import profiles
from octavo.plan.cost import Costs, Setting
from octavo.plan.device import Device
from octavo.plan.memory import check_context, curve, default_context, default_prompt
from octavo.plan.planner import RULE, Candidate, DevicePlan
from octavo.plan.planner import plan as search
from octavo.plan.reckon import GIVEN
from octavo.plan.remedy import remedies
from octavo.plan.sentence import answer, name
from octavo.plan.weights import scale_of
from octavo.records import PlanRecord

DEFAULT_RESERVE = 0.3  # of a bare size, of which neither cache nor activations can be computed
FILES = {".gguf": "llamacpp"}  # finished files of one runtime; .onnx and .tflite may be float models
DOES_NOT_FIT = 3
NO_CACHE = "--context changes nothing: of a bare size no KV cache can be computed, the share set aside stands for it."
KEPT = 8  # models whose facts stay in memory
_read: dict[tuple[Any, ...], ModelFacts] = {}
Names = str | Sequence[str]


def plan(
    model: str | Path | ModelFacts | None = None,
    *,
    params: str | None = None,
    device: str | Path | Device | Sequence[str | Path | Device] = ("host",),
    scheme: Names = (),
    runtime: Names = (),
    unit: Names = (),
    context: int | None = None,
    slice: int | str | None = None,
    reserve: float | str | None = None,
    kv: str | None = None,
    prompt: int | None = None,
    embedding: str | None = None,
    head: str | None = None,
    allow_skip: bool = False,
    shapes: Mapping[str, tuple[int, ...] | int] | None = None,
    trust: bool = False,
    all_devices: bool = False,
) -> PlanRecord:
    """Plan `model` (or a bare size, `params` = "7B") on one device or several; nothing is converted.

    `scheme`, `runtime`, `unit`: those to try (default: all that make sense on the device). `context`: positions of a
    language model (default: 4,096 or its limit, and then the curve over context comes too); `prompt`: tokens (default
    512, or half a shorter context). `slice`: memory granted (default: the profile's); `reserve`: the share of it set
    aside (default 30 % of a bare size, else none). `kv`: type of the KV cache (default: the runtime's own).
    Raises BadInput for a model, device, name or number that makes no sense, with the nearest name or the limit.
    """
    facts = model if isinstance(model, ModelFacts) else _facts(model, params, trust, shapes)
    check_context(facts, context)
    _check_kv(kv)
    _check_language(facts, context=context, kv=kv, prompt=prompt)
    devices = _devices(device, all_devices)
    settings = [_setting(facts, item, context, slice, reserve, kv, prompt) for item in devices]
    suffix = "" if isinstance(model, ModelFacts) or model is None else Path(model).suffix.lower()
    owner = FILES.get(suffix) or _finished(facts, suffix)
    scale = scale_of(facts, embedding=embedding, head=head, allow_skip=allow_skip, file_runtime=owner)
    found = search(
        facts, devices, settings,
        schemes=_listed(scheme), runtimes=_listed(runtime), units=_listed(unit), scale=scale,
    )  # fmt: skip
    records = [_record(item, context) for item in found]
    return records[0] if len(records) == 1 else _together(facts, found, records)


def _facts(
    model: str | Path | None, params: str | None, trust: bool, shapes: Mapping[str, tuple[int, ...] | int] | None
) -> ModelFacts:
    """The model's facts; those of a file or directory that has not changed since are kept, as plans share what they
    count."""
    from octavo.sources.facts.open import read_facts

    if model is None or params is not None or shapes or not Path(model).exists():
        return read_facts(model, params, trust, shapes)
    path = Path(model)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file, file.lstat()) for file in files]
    stamp = tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in stats)
    key = (str(path.absolute()), trust, stamp)
    if key not in _read:
        found = read_facts(model, params, trust, shapes)
        while len(_read) >= KEPT:
            _read.pop(next(iter(_read)))
        _read[key] = found
    return _read[key]


def _finished(facts: ModelFacts, suffix: str) -> str | None:
    """The runtime whose finished file this is: an .onnx or .tflite that is quantised already."""
    owner = {".onnx": "onnxruntime", ".tflite": "litert"}.get(suffix)
    whole = {"fp32", "fp16", "bf16", "fp64", "unknown"}
    return owner if any(len(w.shape) > 1 and w.stored not in whole for w in facts.weights) else None


def _devices(given: str | Path | Device | Sequence[str | Path | Device], every: bool) -> list[Device]:
    if every:
        return list(profiles.load_all())
    items = [given] if isinstance(given, str | Path | Device) else list(given)
    if not items:
        raise BadInput("No device given.", "Name one with --device (`octavo devices list`), or --all-devices.")
    found = [item if isinstance(item, Device) else profiles.load(item) for item in items]
    return list({item.name: item for item in found}.values())


def _setting(
    facts: ModelFacts, device: Device, context: int | None, slice: int | str | None, reserve: float | str | None,
    kv: str | None, prompt: int | None,
) -> Setting:  # fmt: skip
    language = facts.language is not None
    at = (context or default_context(facts)) if language else None
    if prompt is not None and (prompt < 1 or (at is not None and prompt > at)):
        raise BadInput(f"--prompt {prompt}: a prompt has 1 to {at or 'the context in'} tokens.")
    return Setting(
        slice_bytes=_slice(slice) or device.slice_bytes,
        reserve=_reserve(reserve, facts),
        context=at,
        prompt=prompt or (default_prompt(at) if at else None),
        kv_type=kv,
    )


def _slice(value: int | str | None) -> Quantity | None:
    count = parse_size(value)
    if count is None:
        return None
    if count < 1:
        raise BadInput(f"--slice {value}: a slice has at least 1 byte.", "Write it like 2GB, 1.5GiB or 500MB.")
    return Quantity(float(count), "B", Kind.EXACT, source=GIVEN)


def _reserve(value: float | str | None, facts: ModelFacts) -> float:
    from octavo.core.amount import SHARE, amount

    if value is None:
        return DEFAULT_RESERVE if facts.kind == "size" else 0.0
    share = float(amount(value, SHARE, "--reserve"))
    if share >= 1:
        raise BadInput(f"--reserve {value}: nothing of the slice is left.", "Set less than 100 % aside, such as 30%.")
    return share


def _check_kv(kv: str | None) -> None:
    from octavo.core.decoder_facts import KV_TYPES
    from octavo.errors import nearest

    if kv is not None and kv not in KV_TYPES:
        raise BadInput(f"Unknown KV cache type '{kv}'.", nearest(kv, KV_TYPES))


def _check_language(facts: ModelFacts, **given: int | str | None) -> None:
    """Refuse what only a language model has, of a network: it would be passed over in silence."""
    named = [f"--{name} {value}" for name, value in given.items() if value is not None]
    if named and facts.kind == "network":
        raise BadInput(f"{named[0]}: {facts.name} is no language model.", "Leave it out: a network keeps no cache.")


def _listed(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _record(plan: DevicePlan, context: int | None) -> PlanRecord:
    """One device's plan as a record, with the curve where no `context` was asked for."""
    setting, best = plan.setting, plan.best
    shown = best or plan.closest
    words = answer(plan)
    gates: tuple[dict[str, Any], ...] = ()
    if best is None and not any(c.fits is None for c in plan.candidates):
        gates = ({"gate": "slice" if shown else "runtime", "code": DOES_NOT_FIT, "reason": words},)
    held = setting.slice_bytes.value
    return PlanRecord(
        model=plan.facts.name,
        device=plan.device.name,
        context=setting.context,
        slice_bytes=None if held is None else int(held),
        candidates=tuple(_candidate(item) for item in plan.candidates),
        best=None if best is None else {"scheme": best.scheme, "runtime": best.runtime, "unit": best.unit},
        answer=words,
        rule=RULE,
        facts=_summary(plan.facts),
        setting=_setting_summary(setting),
        curve=_curve(plan, shown) if context is None and shown is not None and plan.facts.language else None,
        would_fit=tuple(asdict(item) for item in remedies(plan, shown)) if best is None and shown else (),
        notes=plan.facts.missing + ((NO_CACHE,) if context is not None and plan.facts.kind == "size" else ()),
        gates=gates,
    )


def _summary(facts: ModelFacts) -> dict[str, Any]:
    language = facts.language
    found = {
        "kind": facts.kind,
        "parameters": facts.parameters,
        "active_parameters": facts.active_parameters,
        "macs": facts.macs if facts.operators else None,
        "origin": facts.origin,
    }
    return found if language is None else found | {"context_limit": language.context or None, "tied": language.tied}


def _setting_summary(setting: Setting) -> dict[str, Any]:
    return {
        "slice": setting.slice_bytes.as_dict(),
        "granted": setting.granted.as_dict(),
        "reserve": setting.reserve,
        "context": setting.context,
        "prompt": setting.prompt,
        "kv": setting.kv_type,
    }


def _candidate(item: Candidate) -> dict[str, Any]:
    """The contract's keys, and beside them what explains them."""
    memory, found = item.memory, item.costs
    row: dict[str, Any] = {
        "scheme": item.scheme,
        "runtime": item.runtime,
        "unit": item.unit,
        "delegate": item.way.delegate,
        "fits": item.fits,
        "tight": item.tight,
        "reason": item.reason,
        "exported_today": item.made,
        "bits_per_weight": item.weighed.bits if item.weighed else None,
        "memory": None,
        "largest_context": item.largest_context,
    }
    if memory is not None:
        row["memory"] = {
            "weights": memory.weights,
            "kv_cache": memory.kv_cache,
            "activations": memory.activations,
            "runtime": memory.runtime,
            "total": memory.total,
            "low": memory.low,
            "high": memory.high,
        }
        row["memory_source"] = memory.source
    return row | (_costs(found) if found is not None else {}) | {"notes": item.notes}


def _costs(found: Costs) -> dict[str, Any]:
    spent, kept = found.energy, found.sustained
    speeds = {"latency_ms": found.latency, "tokens_per_second": found.rate, "time_to_first_token_ms": found.first}
    return {key: figure(value) for key, value in speeds.items() if value is not None} | {
        "energy_j": figure(spent.joules)
        | {
            "per": found.per,
            "bottom_up": figure(spent.bottom_up),
            "top_down": figure(spent.top_down),
            "battery_share_per_hour": figure(spent.battery_per_hour),
            "battery_share_per_thousand": figure(spent.battery_per_thousand),
            "flag": spent.flag,
        },
        "sustained": {
            "per": found.per,
            "burst_per_second": figure(kept.burst),
            "seconds_to_throttle": figure(kept.seconds),
            "sustained_per_second": figure(kept.sustained),
            "endless": kept.endless,
            "reason": kept.reason,
        },
    }


def figure(quantity: Quantity) -> dict[str, Any]:
    """A quantity with all of value, low, high and kind, whatever is known of them."""
    found = {"value": quantity.value, "low": quantity.low, "high": quantity.high, "kind": quantity.kind.value}
    found |= {"unit": quantity.unit}
    if quantity.source:
        found["source"] = quantity.source
    if quantity.date:
        found["date"] = quantity.date
    return found if quantity.n is None else found | {"n": quantity.n}


def _curve(plan: DevicePlan, candidate: Candidate) -> dict[str, Any]:
    """Memory over context of one candidate: the best, or the closest."""
    points = [
        {
            "context": context,
            "kv_cache": memory.kv_cache,
            "activations": memory.activations,
            "total": memory.total,
            "fits": plan.holds(memory) if plan.setting.granted.value is not None else None,
        }
        for context, memory in curve(plan.facts, lambda n: plan.memory(candidate, n))
    ]
    of = {"scheme": candidate.scheme, "runtime": candidate.runtime, "unit": candidate.unit, "name": name(candidate)}
    return {"of": of, "points": points, "largest_context": candidate.largest_context}


def _together(facts: ModelFacts, plans: list[DevicePlan], records: list[PlanRecord]) -> PlanRecord:
    """Several devices in one record: their candidates device by device, and the plan of each."""
    slices = {record.slice_bytes for record in records}
    first = next((record for record in records if record.best is not None), None)
    fitting = sum(record.best is not None for record in records)
    return PlanRecord(
        model=facts.name,
        device=tuple(record.device for record in records if isinstance(record.device, str)),
        context=records[0].context,
        slice_bytes=slices.pop() if len(slices) == 1 else None,
        candidates=tuple({"device": record.device} | row for record in records for row in record.candidates),
        best=None if first is None or first.best is None else {"device": str(first.device)} | first.best,
        answer=f"It fits {fitting} of {len(records)} devices{_unsure(records)}.",
        rule=RULE,
        facts=records[0].facts,
        setting={key: records[0].setting[key] for key in ("reserve", "context", "prompt", "kv")},
        curve=None,
        would_fit=(),
        notes=records[0].notes,
        gates=() if any(not record.gates for record in records) else records[0].gates,
        devices=tuple(records),
    )


def _unsure(records: list[PlanRecord]) -> str:
    """What is to be added about devices whose slice nobody knows."""
    count = sum(record.best is None and not record.gates for record in records)
    return f"; of {count} nobody knows what they grant an app" if count else ""
