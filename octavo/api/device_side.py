"""What the device does with one query: as the user states it, or as the plan of a model on a device says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.core.amount import JOULES, MILLISECONDS, WATT_HOURS, amount
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan.reckon import given, scaled, total, unknown

OPERATIONS_PER_BYTE = 20.0  # of memory traffic, where no device says it: our judgement of a phone's CPU and NPU


@dataclass(frozen=True)
class DeviceSide:
    """One query on the device: ms, J, the battery in Wh; `out`: why it cannot run there, if so. `balance`: operations
    per byte at which the unit's arithmetic and its memory take equally long."""

    latency_ms: Quantity
    joules: Quantity
    battery: Quantity
    out: str = ""
    balance: float = OPERATIONS_PER_BYTE
    notes: tuple[str, ...] = ()


def stated(device_ms: Any, device_j: Any, battery: Any, device: str | None, model: Any = None) -> DeviceSide:
    """From --device-ms and --device-j; the battery may be that of a named device. A `model` is not planned then."""
    latency = given(amount(device_ms, MILLISECONDS, "--device-ms", positive=True), "ms")
    notes = [] if model is None else [f"--device-ms is given: {model} is not planned for the device's side."]
    if device_j is None:
        notes.append("No --device-j: what the device path takes from the battery is unknown.")
    return DeviceSide(latency, _joules(device_j), _battery(battery, device), notes=tuple(notes))


def planned(
    model: str | Path | None,
    device: str | None,
    device_j: Any,
    battery: Any,
    prompt_tokens: int,
    answer_tokens: int,
    **options: Any,
) -> DeviceSide:
    """From `plan`: its best candidate, or the reason that none fits. `options`: of `plan`.

    A language model's query is `prompt_tokens` read and `answer_tokens` written. Raises BadInput without a device.
    """
    from octavo.api.plan import plan

    if device is None:
        raise BadInput("No device to plan for.", "Name one with --device, or give --device-ms and --device-j.")
    record = plan(model, device=device, **options)
    if record.context is not None:
        if prompt_tokens + answer_tokens > record.context:
            raise BadInput(
                f"--prompt-tokens {prompt_tokens} and --answer-tokens {answer_tokens} are more than the context of "
                f"{record.context:,}.",
                "Ask for fewer, or give a longer --context.",
            )
        record = plan(model, device=device, prompt=prompt_tokens, **options)
    row = next((row for row in record.candidates if "energy_j" in row), None)
    capacity = _battery(battery, device)
    if row is None or (record.best is None and row["fits"] is False):
        out = record.candidates[0]["reason"] if record.candidates else "nothing runs there"
        joules = _joules(device_j)
        return DeviceSide(unknown("ms", "does not fit"), joules, capacity, out=f"{record.model}: {out}")
    latency, joules = _one_query(row, prompt_tokens, answer_tokens)
    notes = [f"The device's side is planned: {row['scheme']} on {row['runtime']}, {row['unit']}, of {record.device}."]
    if "tokens_per_second" in row:
        notes.append(
            f"A query is {prompt_tokens} tokens read and {answer_tokens} written (--prompt-tokens, --answer-tokens); "
            "reading is taken at the power of writing (estimated)."
        )
    if latency.value is None:
        notes.append(f"The device's latency is unknown: {latency.source or 'the plan has none'}.")
    notes += [text for text in (row["energy_j"]["flag"], _fit(row)) if text]
    joules = _joules(device_j) if device_j is not None else joules
    balance = _balance(device, row["unit"], row["scheme"])
    return DeviceSide(latency, joules, capacity, balance=balance, notes=tuple(notes))


def _fit(row: Mapping[str, Any]) -> str:
    if row["fits"] is None:
        return "Whether it fits is not known: nobody says what the device grants an app."
    return "It fits only just: the intervals of memory and slice overlap." if row["tight"] else ""


def _one_query(row: Mapping[str, Any], prompt: int, answer: int) -> tuple[Quantity, Quantity]:
    """(ms, J) of one query by a candidate's figures."""
    energy = quantity(row["energy_j"])
    if "latency_ms" in row:
        return quantity(row["latency_ms"]), energy
    rate = quantity(row["tokens_per_second"])
    first = quantity(row["time_to_first_token_ms"]) if "time_to_first_token_ms" in row else unknown("ms")
    if not rate.value or first.value is None:
        return unknown("ms", first.source if rate.value else rate.source), unknown("J", energy.source)
    low, high = rate.low or rate.value, rate.high or rate.value
    token = Quantity(1e3 / rate.value, "ms", rate.kind, 1e3 / high, 1e3 / low, source=rate.source, date=rate.date)
    latency = total("ms", [first, scaled(token, answer - 1)], source=rate.source)
    tokens = answer + first.value / (1e3 / rate.value)  # reading lasts as long as so many tokens
    return latency, scaled(energy, tokens)


def quantity(figure: Mapping[str, Any]) -> Quantity:
    """A plan's figure as the quantity it was."""
    return Quantity(
        figure["value"], figure["unit"], Kind(figure["kind"]), figure.get("low"), figure.get("high"), figure.get("n"),
        figure.get("source", ""), figure.get("date", ""),
    )  # fmt: skip


def _joules(device_j: Any) -> Quantity:
    return unknown("J") if device_j is None else given(amount(device_j, JOULES, "--device-j"), "J")


def _battery(battery: Any, device: str | None) -> Quantity:
    """--battery, else the named device's, else unknown; in Wh."""
    from octavo.plan import profiles

    if battery is not None:
        return given(amount(battery, WATT_HOURS, "--battery", positive=True), "Wh")
    return unknown("Wh") if device is None else profiles.load(device).battery


def _balance(device: str, unit_kind: str, scheme: str) -> float:
    """The unit's peak rate over the memory's bandwidth, in operations per byte; the default where one is unknown."""
    from octavo.plan import profiles
    from octavo.plan.reach import compute_type
    from octavo.plan.schemes import KNOWN

    profile = profiles.load(device)
    unit = next((unit for unit in profile.units if unit.kind == unit_kind), None)
    rate = unit.rates.get(compute_type(unit, scheme, KNOWN.get(scheme))) if unit else None
    if rate is None or not rate.value or not profile.bandwidth.value:
        return OPERATIONS_PER_BYTE
    return rate.value / profile.bandwidth.value
