"""`octavo verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import VerifyRecord, exit_code


def verify(
    artifact: Annotated[Path, typer.Argument(help="A .gguf or .onnx file.")],
    against: Annotated[Path | None, typer.Option("--against", help="The float original.")] = None,
    compressed: Annotated[Path | None, typer.Option("--compressed", help="The compressed model it came from.")] = None,
    data: options.Data = None,
    x: options.X = "x",
    y: options.Y = "y",
    preprocess: options.Preprocess = None,
    max_drop: options.MaxDrop = None,
    confidence: options.Confidence = None,
    min_sqnr: Annotated[float | None, typer.Option("--min-sqnr", help="Least SQNR of the outputs in dB.")] = None,
    windows: options.Windows = 16,
    context: options.Context = 256,
    module: options.Module = None,
    weights: options.Weights = None,
    trust: options.Trust = False,
    fix: options.Fix = None,
    threads: options.Threads = None,
    unit: options.Unit = None,
    no_fallback: options.NoFallback = False,
    bisect: Annotated[
        bool | None,
        typer.Option(
            "--bisect/--no-bisect",
            help="Name the first operator that diverges. Default: after a failure, where there is --data.",
        ),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    with show.progress(quiet) as report:
        record = api.verify(
            artifact, against=against, compressed=compressed, data=data,
            x=x, y=y, preprocess=preprocess, max_drop=max_drop, confidence=confidence,
            min_sqnr=min_sqnr,
            windows=windows, context=context, module=module, weights=weights, trust=trust, fix=fix,
            threads=threads, unit=unit, no_fallback=no_fallback, bisect=bisect, seed=seed,
            progress=report,
        )  # fmt: skip
    show.emit(record, json, lambda: _prose(record))
    sys.stdout.flush()
    raise typer.Exit(exit_code(record.gates))


def _prose(record: VerifyRecord) -> None:
    from octavo.report.text import verify_summary, write

    write(verify_summary(record))
