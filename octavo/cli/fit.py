"""`octavo fit`."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import FitRecord, exit_code


def fit(
    out: options.Out,
    model: options.Model = None,
    scheme: Annotated[list[str], typer.Option("--scheme", help="A grid to try; may be repeated.")] = ["w8", "w4g32"],  # noqa: B006
    runtime: Annotated[list[str], typer.Option("--runtime", help="A runtime to try; may be repeated.")] = ["llamacpp"],  # noqa: B006
    device: Annotated[str, typer.Option("--device", help="The device to fit: a profile's name or .toml.")] = "host",
    slice: Annotated[str | None, typer.Option("--slice", help="Memory granted to the model, e.g. 2GB.")] = None,
    data: options.Data = None,
    calibration: options.Calibration = None,
    preprocess: options.Preprocess = None,
    samples: options.Samples = 128,
    target: options.Target = "common",
    observer: options.Observer = "mse",
    keep: options.Keep = None,
    x: options.X = "x",
    y: options.Y = "y",
    max_drop: options.MaxDrop = None,
    confidence: options.Confidence = None,
    windows: options.Windows = 16,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens per window of text.")] = 256,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Positions of a language model's KV cache (default: 4096).")
    ] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="Type of the KV cache: f16, q8_0, q4_0, …")] = None,
    embedding: options.Embedding = None,
    head: options.Head = None,
    allow_skip: options.AllowSkip = False,
    module: options.Module = None,
    weights: options.Weights = None,
    trust: options.Trust = False,
    fix: options.Fix = None,
    unit: options.Unit = None,
    no_fallback: options.NoFallback = False,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    with show.progress(quiet) as report:
        record = api.fit(
            model, out=out, scheme=scheme, runtime=runtime, device=device, slice=slice, data=data,
            calibration=calibration, preprocess=preprocess, samples=samples, target=target, observer=observer,
            keep=keep or (), x=x, y=y, max_drop=max_drop, confidence=confidence,
            windows=windows, window=window, context=context, kv=kv, embedding=embedding, head=head,
            allow_skip=allow_skip, module=module, weights=weights, trust=trust, fix=fix, threads=threads,
            unit=unit, no_fallback=no_fallback, seed=seed, force=force, progress=report,
        )  # fmt: skip
    show.emit(record, json, lambda: _prose(record))
    raise typer.Exit(exit_code(record.gates))


def _prose(record: FitRecord) -> None:
    from octavo.report.text import fit_summary, write

    write(fit_summary(record))
