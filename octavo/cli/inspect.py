"""`octavo inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import ModelRecord


def inspect(
    path: Annotated[Path, typer.Argument(help="A model, a compressed model or an artifact.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    record = api.inspect(path)
    show.emit(record, json, lambda: _prose(record))


def _prose(record: ModelRecord) -> None:
    from octavo.report.text import model_summary, write

    write(model_summary(record))
