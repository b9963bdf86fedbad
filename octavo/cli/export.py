"""`octavo export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import ExportRecord, exit_code


def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A compressed model; for an NPU by name also a finished file.")
    ],
    runtime: Annotated[str, typer.Option("--runtime", help="onnxruntime, litert, executorch, coreml or llamacpp.")],
    out: options.Out,
    unit: options.Unit = None,
    io: Annotated[str | None, typer.Option("--io", help="Inputs and outputs: int8 (codes) or float.")] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", help="Images with channels last or first: nhwc, nchw.")
    ] = None,
    no_fallback: options.NoFallback = False,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    with show.progress(quiet) as report:
        record = api.export(
            directory, runtime=runtime, out=out, unit=unit, io=io, layout=layout, no_fallback=no_fallback, force=force,
            progress=report,
        )  # fmt: skip
    show.emit(record, json, lambda: _prose(record))
    raise typer.Exit(exit_code(record.gates))


def _prose(record: ExportRecord) -> None:
    from octavo.report.text import export_summary, write

    write(export_summary(record))
