"""`octavo decide`."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import DecideRecord, exit_code

Text = str | None


def decide(
    model: Annotated[Text, typer.Argument(help="The model whose plan gives the device's side.")] = None,
    rtt: Annotated[Text, typer.Option("--rtt", help="Round trip to the server, in ms.")] = None,
    server_ms: Annotated[Text, typer.Option("--server-ms", help="The server's own time per query, in ms.")] = None,
    price: Annotated[Text, typer.Option("--price", help="Dollars per query in the cloud.")] = None,
    queries: Annotated[Text, typer.Option("--queries", help="Queries per user and day.")] = None,
    users: Annotated[Text, typer.Option("--users", help="Users, e.g. 100M.")] = None,
    device_ms: Annotated[Text, typer.Option("--device-ms", help="Latency on the device, in ms.")] = None,
    device_j: Annotated[Text, typer.Option("--device-j", help="Energy on the device, in J per query.")] = None,
    params: Annotated[Text, typer.Option("--params", help="In place of a model its size, e.g. 3B.")] = None,
    device: Annotated[Text, typer.Option("--device", help="The device to plan for.")] = None,
    scheme: Annotated[Text, typer.Option("--scheme", help="The grid to plan with (default: the plan's best).")] = None,
    runtime: Annotated[Text, typer.Option("--runtime", help="The runtime to plan with.")] = None,
    unit: Annotated[Text, typer.Option("--unit", help="The unit to plan with: cpu, gpu, npu.")] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Tokens of context to plan for.")] = None,
    slice: Annotated[Text, typer.Option("--slice", help="Memory granted to the model, e.g. 2GB.")] = None,
    reserve: Annotated[Text, typer.Option("--reserve", help="Share of the slice set aside, e.g. 30%.")] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens read per query.")] = 128,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=1, help="Tokens written per query.")] = 64,
    up: Annotated[Text, typer.Option("--up", help="Bytes sent per query, e.g. 2kB.")] = None,
    down: Annotated[Text, typer.Option("--down", help="Bytes received per query.")] = None,
    uplink: Annotated[Text, typer.Option("--uplink", help="Rate to the network, e.g. 10Mbit.")] = None,
    downlink: Annotated[Text, typer.Option("--downlink", help="Rate from the network (default: the uplink's).")] = None,
    radio_j_per_byte: Annotated[
        Text, typer.Option("--radio-j-per-byte", help="J per byte, in place of a published LTE model.")
    ] = None,
    radio_j_per_query: Annotated[
        Text,
        typer.Option(
            "--radio-j-per-query", help="J to wake the radio per query (0 where --radio-j-per-byte is given)."
        ),
    ] = None,
    battery: Annotated[Text, typer.Option("--battery", help="Capacity of the battery, e.g. 15Wh.")] = None,
    device_cost: Annotated[
        str, typer.Option("--device-cost", help="Dollars a year to make and keep the on-device build.")
    ] = "0",
    private: Annotated[bool, typer.Option("--private", help="Data may not leave the device.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="It must work without a network.")] = False,
    max_latency: Annotated[Text, typer.Option("--max-latency", help="Latency a path must keep, in ms.")] = None,
    max_battery: Annotated[
        Text, typer.Option("--max-battery", help="Share of a charge a day a path may take, e.g. 1%.")
    ] = None,
    max_cost: Annotated[Text, typer.Option("--max-cost", help="Dollars a day a path may cost.")] = None,
    split: Annotated[bool, typer.Option("--split", help="Try every cut of the model's graph too.")] = False,
    crossing: Annotated[Text, typer.Option("--crossing", help="What activations cross as: fp32, fp16, int8.")] = None,
    trust: options.Trust = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    record = api.decide(
        model, rtt=rtt, server_ms=server_ms, price=price, queries=queries, users=users,
        device_ms=device_ms, device_j=device_j, params=params, device=device, scheme=scheme, runtime=runtime, unit=unit,
        context=context, slice=slice, reserve=reserve, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens,
        up=up, down=down, uplink=uplink, downlink=downlink,
        radio_j_per_byte=radio_j_per_byte, radio_j_per_query=radio_j_per_query, battery=battery,
        device_cost=device_cost,
        private=private, offline=offline, max_latency=max_latency, max_battery=max_battery, max_cost=max_cost,
        split=split, crossing=crossing, trust=trust,
    )  # fmt: skip
    show.emit(record, json, lambda: _prose(record))
    raise typer.Exit(exit_code(record.gates))


def _prose(record: DecideRecord) -> None:
    from octavo.report.decide_text import decide_summary
    from octavo.report.text import write

    write(decide_summary(record))
