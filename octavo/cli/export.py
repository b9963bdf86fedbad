"""`octavo export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import ExportRecord


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A compressed model.")],
    runtime: Annotated[str, typer.Option("--runtime", help="llamacpp or onnxruntime.")],
    out: options.Out,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    with show.progress(quiet) as report:
        record = api.export(directory, runtime=runtime, out=out, force=force, progress=report)
    show.emit(record, json, lambda: _prose(record))


def _prose(record: ExportRecord) -> None:
    from octavo.report.text import export_summary, write

    write(export_summary(record))
