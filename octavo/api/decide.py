"""Should this run on the device, in the cloud, or be split? The device's side is given, or comes from a plan."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from octavo.api.device_side import planned, stated
from octavo.core.amount import (
    BITS_PER_SECOND,
    BYTES,
    COUNT,
    DOLLARS,
    JOULES,
    MILLISECONDS,
    SHARE,
    Measure,
    amount,
)  # fmt: skip
from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan import flip
from octavo.plan.decide import DAYS, RULE, Limits, Question, Verdict
from octavo.plan.decide import Path as Way
from octavo.plan.decide import decide as weigh
from octavo.plan.radio import SOURCE, Radio, published
from octavo.plan.reckon import GIVEN, ends, given
from octavo.plan.split import Cut, Link, cuts, roofline
from octavo.records import DecideRecord

Amount = float | int | str | Decimal
DOES_NOT_FIT = 3
SERVER_BALANCE = 100.0  # operations per byte of memory traffic: our judgement of a server's accelerator


def decide(
    model: str | Path | None = None,
    *,
    rtt: Amount | None = None,
    server_ms: Amount | None = None,
    price: Amount | None = None,
    queries: Amount | None = None,
    users: Amount | None = None,
    device_ms: Amount | None = None,
    device_j: Amount | None = None,
    params: str | None = None,
    device: str | None = None,
    scheme: str | None = None,
    runtime: str | None = None,
    unit: str | None = None,
    context: int | None = None,
    slice: int | str | None = None,
    reserve: float | str | None = None,
    prompt_tokens: int = 128,
    answer_tokens: int = 64,
    up: Amount | None = None,
    down: Amount | None = None,
    uplink: Amount | None = None,
    downlink: Amount | None = None,
    radio_j_per_byte: Amount | None = None,
    radio_j_per_query: Amount | None = None,
    battery: Amount | None = None,
    device_cost: Amount = 0,
    private: bool = False,
    offline: bool = False,
    max_latency: Amount | None = None,
    max_battery: Amount | None = None,
    max_cost: Amount | None = None,
    split: bool = False,
    crossing: str | None = None,
    trust: bool = False,
) -> DecideRecord:
    """Weigh the paths. `rtt`, `server_ms`, `device_ms`, `max_latency` in ms, `device_j` in J per query, `price` and
    `max_cost` in dollars per query and per day, `device_cost` in dollars a year, `queries` per user and day, `up` and
    `down` in bytes per query, `uplink` and `downlink` as "10Mbit", `battery` in Wh; strings may carry a unit.

    Without `device_ms` the device's side is the best candidate of `plan` for `model` (or `params`) on `device`; a
    language model's query is `prompt_tokens` read and `answer_tokens` written. `split`: also every cut of the graph.
    Raises BadInput for what is missing, negative or in an unknown unit.
    """
    _require({"rtt": rtt, "server_ms": server_ms, "price": price, "queries": queries, "users": users})
    if device_ms is None and model is None and params is None:
        raise BadInput(
            "Nothing says how fast the device is.",
            "Give --device-ms (and --device-j), or a model and --device, and the plan says it.",
        )
    _check_split(split, model, uplink)
    unplanned = None if split else model or params
    side = stated(device_ms, device_j, battery, device, unplanned) if device_ms is not None else planned(
        model, device, device_j, battery, prompt_tokens, answer_tokens,
        params=params, scheme=scheme or (), runtime=runtime or (), unit=unit or (), context=context, slice=slice,
        reserve=reserve, trust=trust,
    )  # fmt: skip
    sent, received = (None if b is None else amount(b, BYTES, f"--{n}") for n, b in (("up", up), ("down", down)))
    rates = [None if r is None else amount(r, BITS_PER_SECOND, f"--{n}", positive=True)
             for n, r in (("uplink", uplink), ("downlink", downlink))]  # fmt: skip
    found = _cuts(model, side.balance, sent, received, crossing, trust) if split else ()
    question = Question(
        device_ms=side.latency_ms, device_j=side.joules, battery=side.battery, device_out=side.out, cuts=found,
        round_trip_ms=_stated(rtt, MILLISECONDS, "--rtt"), server_ms=_stated(server_ms, MILLISECONDS, "--server-ms"),
        price=amount(price, DOLLARS, "--price"), queries=amount(queries, COUNT, "--queries", positive=True),
        users=amount(users, COUNT, "--users", positive=True),
        up_bytes=_or_whole(sent, found and found[0].up_bytes),
        down_bytes=_or_whole(received, found and found[0].down_bytes),
        uplink=rates[0], downlink=rates[1], radio=_radio(radio_j_per_byte, radio_j_per_query, rates),
        device_cost=amount(device_cost, DOLLARS, "--device-cost"),
        limits=Limits(
            _limit(max_latency, MILLISECONDS, "--max-latency"), _limit(max_battery, SHARE, "--max-battery"),
            _limit(max_cost, DOLLARS, "--max-cost"), private, offline,
        ),
    )  # fmt: skip
    return _record(question, side.notes + _notes(question, side.balance))


def _check_split(split: bool, model: Any, uplink: Amount | None) -> None:
    if split and model is None:
        raise BadInput("--split needs a model's graph.", "Give a model, such as an .onnx.")
    if split and uplink is None:
        raise BadInput("--split needs --uplink: what crosses must be sent.", "Give the rate, such as --uplink 10Mbit.")


def _or_whole(given_bytes: Decimal | None, graph: Any) -> Decimal:
    """What was given, else what the graph reads or writes as a whole, else none."""
    return Decimal(graph or 0) if given_bytes is None else given_bytes


def _require(options: dict[str, Amount | None]) -> None:
    missing = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is None]
    if missing:
        raise BadInput(
            f"Missing: {', '.join(missing)}.",
            "Round trip and server time in ms, price in $ per query, queries per user and day, users; such as "
            "--rtt 40 --server-ms 25 --price 0.0002 --queries 50 --users 100M.",
        )


def _stated(value: Amount | None, measure: Measure, option: str) -> Quantity:
    return given(amount(value, measure, option), measure.unit)


def _limit(value: Amount | None, measure: Measure, option: str) -> Decimal | None:
    return None if value is None else amount(value, measure, option, positive=True)


def _radio(per_byte: Amount | None, per_query: Amount | None, rates: list[Decimal | None]) -> Radio:
    """Given figures replace the published model; a given figure per byte also does away with the default wake-up."""
    up, down = (None if rate is None else float(rate) for rate in (rates[0], rates[1] or rates[0]))
    default = published(up, down)
    if per_byte is None and per_query is None:
        return default
    sent, received = default.per_byte_up, default.per_byte_down
    if per_byte is not None:
        sent = received = given(amount(per_byte, JOULES, "--radio-j-per-byte"), "J/B")
    return Radio(sent, received, given(amount(per_query or 0, JOULES, "--radio-j-per-query"), "J"))


def _cuts(
    model: Any, balance: float, sent: Decimal | None, received: Decimal | None, crossing: str | None, trust: bool
) -> tuple[Cut, ...]:
    """Every cut of the model's graph, time shared out by a roofline on either side."""
    from octavo.sources.facts.open import read_facts

    facts = read_facts(model, trust=trust)
    own, away = (roofline(facts, rate=rate, bandwidth=1.0) for rate in (balance, SERVER_BALANCE))
    ends_bytes = (None if count is None else int(count) for count in (sent, received))
    return cuts(facts, own, away, crossing, *ends_bytes)


def _notes(question: Question, balance: float) -> tuple[str, ...]:
    notes = []
    if not question.up_bytes and not question.down_bytes:
        notes.append("No --up or --down: the time and energy of the bytes themselves are not counted.")
    elif question.uplink is None:
        notes.append("No --uplink: sending takes no time here beyond the round trip.")
    if question.battery.value is None:
        notes.append("No battery capacity: give --battery 15Wh (or a --device) for shares of a charge.")
    waking = question.radio.per_query
    if waking.source != GIVEN:
        low, _, high = ends(waking)
        notes.append(
            f"The radio's energy is a published model ({SOURCE}): {low:.3g} to {high:.3g} J to wake it per query, and "
            "the bytes. Measured your own? --radio-j-per-byte and --radio-j-per-query."
        )
    if question.cuts and question.device_ms.value is None:
        notes.append("No split: the device's latency is unknown.")
    elif question.cuts:
        notes.append(
            "Split: time is shared out over the operators by rooflines (estimated): "
            f"{balance:.3g} operations per byte on the device, {SERVER_BALANCE:g} on the server; the price by the "
            "server's share of the time."
        )
    return tuple(notes)


def _record(question: Question, notes: tuple[str, ...]) -> DecideRecord:
    verdict = weigh(question)
    found = flip.flips(question, verdict)
    told = flip.headline(found)
    gates = () if verdict.chosen else ({"gate": "requirements", "code": DOES_NOT_FIT, "reason": _all_out(verdict)},)
    return DecideRecord(
        inputs=_inputs(question),
        paths=tuple(_path(path, question) for path in verdict.paths),
        chosen=verdict.chosen,
        certain=verdict.chosen is not None and not verdict.doubts,
        doubts=verdict.doubts,
        rule=RULE,
        break_even=asdict(flip.break_even(question, verdict)),
        flip=asdict(told) if told else None,
        flips=tuple(asdict(item) for item in found),
        cuts=tuple(_cut(cut, question) for cut in question.cuts if question.device_ms.value is not None),
        notes=notes,
        gates=gates,
    )


def _all_out(verdict: Verdict) -> str:
    reasons = [f"{way.name}: {check.text}" for way in verdict.paths for check in way.checks if not check.kept]
    return f"no path keeps the requirements ({'; '.join(reasons)})"


def _path(path: Way, question: Question) -> dict[str, Any]:
    return {
        "path": path.name,
        "latency_ms": path.latency_ms.as_dict(),
        "cost_per_day": path.cost.quantity(1, "USD").as_dict(),
        "cost_per_year": path.cost.quantity(DAYS, "USD").as_dict(),
        "battery_j_per_user_day": path.battery_j.as_dict(),
        "battery_share_per_day": path.battery.as_dict(),
        "keeps": not path.out,
        "reasons": [check.text for check in path.checks if not check.kept],
        "cut": None if path.cut is None else _cut(path.cut, question),
    }


def _cut(cut: Cut, question: Question) -> dict[str, Any]:
    device, server = question.device_ms.value or 0.0, question.server_ms.value or 0.0
    rates = (None if rate is None else float(rate) for rate in (question.uplink, question.downlink or question.uplink))
    link = Link(question.round_trip_ms.value or 0.0, *rates)
    return {
        "index": cut.index,
        "after": cut.after,
        "up_bytes": cut.up_bytes,
        "down_bytes": cut.down_bytes,
        "crossing": list(cut.crossing),
        "device_ms": cut.device_share * device,
        "server_ms": cut.server_share * server,
        "latency_ms": Quantity(cut.latency_ms(device, server, link), "ms", Kind.ESTIMATED).as_dict(),
    }


def _inputs(question: Question) -> dict[str, Any]:
    """Every input as a quantity, defaults with their source."""
    plain = {
        "price": (question.price, "USD"), "queries": (question.queries, "1/day"), "users": (question.users, ""),
        "up": (question.up_bytes, "B"), "down": (question.down_bytes, "B"),
        "uplink": (question.uplink, "bit/s"), "downlink": (question.downlink, "bit/s"),
        "device_cost": (question.device_cost, "USD/year"), "max_latency": (question.limits.latency_ms, "ms"),
        "max_battery": (question.limits.battery, "1/day"), "max_cost": (question.limits.cost, "USD/day"),
    }  # fmt: skip
    quantities = {
        "device_ms": question.device_ms, "device_j": question.device_j, "rtt": question.round_trip_ms,
        "server_ms": question.server_ms, "battery": question.battery,
        "radio_j_per_byte_up": question.radio.per_byte_up, "radio_j_per_byte_down": question.radio.per_byte_down,
        "radio_j_per_query": question.radio.per_query,
    }  # fmt: skip
    found: dict[str, Any] = {name: quantity.as_dict() for name, quantity in quantities.items()}
    found |= {name: given(value, unit).as_dict() for name, (value, unit) in plain.items() if value is not None}
    return found | {"private": question.limits.private, "offline": question.limits.offline}
