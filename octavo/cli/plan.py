"""`octavo plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import PlanRecord, exit_code

Names = list[str] | None


def plan(
    model: Annotated[
        str | None, typer.Argument(help="A Hugging Face directory or config.json, .onnx, .tflite, .gguf, .pt2, …")
    ] = None,
    params: Annotated[str | None, typer.Option("--params", help="A bare size instead of a model, such as 7B.")] = None,
    device: Annotated[
        Names, typer.Option("--device", help="A profile's name or .toml (default host); may be repeated.")
    ] = None,
    all_devices: Annotated[bool, typer.Option("--all-devices", help="Every device that has a profile.")] = False,
    scheme: Annotated[Names, typer.Option("--scheme", help="A grid to try (default: all); may be repeated.")] = None,
    runtime: Annotated[Names, typer.Option("--runtime", help="A runtime (default: all); may be repeated.")] = None,
    unit: Annotated[Names, typer.Option("--unit", help="cpu, gpu, npu or dsp (default: all); may be repeated.")] = None,
    context: Annotated[int | None, typer.Option("--context", help="Positions (default: 4096, and the curve).")] = None,
    prompt: Annotated[int | None, typer.Option("--prompt", help="Tokens of the prompt (default: 512).")] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="Type of the KV cache: f16, q8_0, q4_0, …")] = None,
    slice: Annotated[str | None, typer.Option("--slice", help="Memory granted to the model, e.g. 2GB.")] = None,
    reserve: Annotated[
        str | None,
        typer.Option("--reserve", help="Share of the slice set aside, e.g. 30% (the default of a bare size)."),
    ] = None,
    embedding: options.Embedding = None,
    head: options.Head = None,
    allow_skip: options.AllowSkip = False,
    trust: options.Trust = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say where each number comes from.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo.api.plan import plan as run

    record = run(
        model, params=params, device=device or ("host",), all_devices=all_devices, scheme=scheme or (),
        runtime=runtime or (), unit=unit or (), context=context, prompt=prompt, kv=kv, slice=slice, reserve=reserve,
        embedding=embedding, head=head, allow_skip=allow_skip, trust=trust,
    )  # fmt: skip
    show.emit(record, json, lambda: _prose(record, explain))
    raise typer.Exit(exit_code(record.gates))


def _prose(record: PlanRecord, explain: bool) -> None:
    import shutil
    import sys

    from octavo.report.plan_text import plan_text

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 160
    print(plan_text(record, explain=explain, width=width, colour=terminal))
