"""`octavo bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.errors import BadInput
from octavo.records import BenchRecord

INTERRUPTED = 130


def bench(
    artifact: Annotated[Path, typer.Argument(help="A file that a runtime here opens; Octavo need not have made it.")],
    input: Annotated[
        Path | None, typer.Option("--input", help="Inputs by name, .npz (default: drawn by seed).")
    ] = None,
    repeat: Annotated[
        int | None, typer.Option("--repeat", min=1, help="Time so many calls, whatever they say.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Else: until the median is known this well (95 % interval).")
    ] = "2%",
    limit: Annotated[str, typer.Option("--limit", help="Or this much time has been measured.")] = "20s",
    threads: Annotated[
        str | None, typer.Option("--threads", help="Threads, or several to compare: 1,2,4 (default: all cores).")
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Batch, or several, where the file leaves it free (default: 1).")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Fresh processes to measure in: what differs from run to run.")
    ] = 1,
    sustained: Annotated[
        str | None, typer.Option("--sustained", help="Run on without a pause, such as 5m: does it slow down?")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Latency over that time, .svg.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time per operator, where the runtime tells.")] = False,
    prompt: Annotated[int | None, typer.Option("--prompt", min=1, help="Tokens of a language model's prompt.")] = None,
    decode: Annotated[int | None, typer.Option("--decode", min=1, help="Tokens to decode after it.")] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="Type of the KV cache: f16, q8_0, q4_0, …")] = None,
    fix: options.Fix = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    with show.progress(quiet) as report:
        record = api.bench(
            artifact, input=input, repeat=repeat, precision=precision, limit=limit,
            threads=_counts(threads, "--threads"), batch=_counts(batch, "--batch"), processes=processes,
            sustained=sustained, plot=plot, profile=profile, prompt_tokens=prompt, decode_tokens=decode, kv=kv, fix=fix,
            seed=seed, force=force, progress=report,
        )  # fmt: skip
    show.emit(record, json, lambda: _prose(record))
    raise typer.Exit(INTERRUPTED if record.interrupted else 0)


def _counts(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise BadInput(f"{option} {text!r}: expected numbers separated by commas.") from error


def _prose(record: BenchRecord) -> None:
    from octavo.report.bench_text import bench_summary
    from octavo.report.text import write

    write(bench_summary(record))
