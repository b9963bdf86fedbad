"""`octavo devices`: list, show, probe, fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli import options, show

if TYPE_CHECKING:
    from octavo.records import DeviceFitRecord, DeviceRecord, DevicesRecord

HELP = "Profiles of devices: list them, show one, measure this machine, fit coefficients to measurements."
devices = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)


@devices.command("list", help="One line per profile: memory, bandwidth, units, runtimes, what was fitted.")
def list_profiles(json: options.Json = False, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    from octavo.api.devices import devices_list

    record = devices_list()
    show.emit(record, json, lambda: _list(record))


@devices.command(
    "show", help="Every figure of a profile: measured, estimated, datasheet or unknown, with source and date."
)
def show_profile(
    device: Annotated[str, typer.Argument(help="A profile's name, an alias, a .toml file, or host.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo.api.devices import devices_show

    record = devices_show(device)
    show.emit(record, json, lambda: _show(record))


@devices.command("probe", help="Measure this machine and write its profile.")
def probe(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .toml file (default: your own host profile).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of a minute: wider intervals, no language model.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of everything measured (default: all cores).")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo.api.devices import devices_probe

    with show.progress(quiet) as progress:
        record = devices_probe(out, quick=quick, force=force, threads=threads, progress=progress)
    show.emit(record, json, lambda: _show(record))


@devices.command("fit", help="Fit coefficients to measurements; prints the error on models left out of the fit.")
def fit(
    rows: Annotated[Path, typer.Argument(help="CSV: model, device, runtime, precision, latency_ms, and facts.")],
    facts: Annotated[Path | None, typer.Option("--facts", help="CSV with the models' facts, by model.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory: a file per device; or one .toml.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="What the rows are called (default: the file).")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo.api.devices_fit import devices_fit

    record = devices_fit(rows, facts=facts, out=out, source=source, force=force)
    show.emit(record, json, lambda: _fit(record))


def _list(record: DevicesRecord) -> None:
    from octavo.report.devices_text import devices_table
    from octavo.report.text import write

    write(devices_table(record))


def _show(record: DeviceRecord) -> None:
    from octavo.report.devices_text import device_summary
    from octavo.report.text import write

    write(device_summary(record))


def _fit(record: DeviceFitRecord) -> None:
    from octavo.report.devices_text import fit_summary
    from octavo.report.text import write

    write(fit_summary(record))
