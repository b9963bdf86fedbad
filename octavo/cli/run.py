"""`octavo run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.errors import BadInput
from octavo.records import RunRecord, exit_code


def run(
    artifact: Annotated[Path, typer.Argument(help="A runtime's file: .onnx, .tflite, .pte, .mlpackage or .gguf.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Text to go on from.")] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Token ids instead, separated by commas.")] = None,
    input: Annotated[Path | None, typer.Option("--input", help="Inputs by name, .npz.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Where to write the outputs, .npz.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to generate at most.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.0,
    threads: options.Threads = None,
    unit: options.Unit = None,
    no_fallback: options.NoFallback = False,
    seed: options.Seed = 0,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    stream = not json and (prompt is not None or ids is not None)
    record = api.run(
        artifact, prompt=prompt, ids=_ids(ids), input=input, output=output, max_tokens=max_tokens,
        temperature=temperature, threads=threads, unit=unit, no_fallback=no_fallback, seed=seed, force=force,
        on_token=_write if stream else None,
    )  # fmt: skip
    show.emit(record, json, lambda: _prose(record, quiet))
    sys.stdout.flush()
    raise typer.Exit(exit_code(record.gates))


def _ids(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise BadInput(f"--ids {text!r}: expected numbers separated by commas.") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _prose(record: RunRecord, quiet: bool) -> None:
    print()
    if record.text is None:
        for name, value in record.outputs.items():
            print(f"{name}: {value['dtype']} {value['shape']}")
    if not quiet:
        rate = record.tokens_per_second
        speed = f"decode {rate['decode']:.0f}, prefill {rate['prefill']:.0f} tokens/s" if rate else ""
        whose = "" if record.timing_is_native else ", and not the runtime's own time: see below"
        print(speed or f"{record.latency_ms:.2f} ms (one run{whose})", file=sys.stderr)
    if record.fallback or record.gates or record.notes:
        from octavo.report.placement_text import placed
        from octavo.report.text import write

        write(placed(record), error=True)
