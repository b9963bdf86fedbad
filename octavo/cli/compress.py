"""`octavo compress`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from octavo.cli import options, show
from octavo.records import ModelRecord


def compress(
    out: options.Out,
    scheme: Annotated[str, typer.Option("--scheme", help="The grid: w8, w8a8, w4g32, ternary, q4_0, …")],
    model: options.Model = None,
    solver: Annotated[str, typer.Option("--solver", help="How codes are chosen: rtn.")] = "rtn",
    scale: Annotated[
        str, typer.Option("--scale", help="search (least squared error), or absmax (from the largest weight).")
    ] = "search",
    embedding: options.Embedding = None,
    head: options.Head = None,
    allow_skip: options.AllowSkip = False,
    module: options.Module = None,
    weights: options.Weights = None,
    trust: options.Trust = False,
    fix: options.Fix = None,
    calibration: options.Calibration = None,
    preprocess: options.Preprocess = None,
    samples: options.Samples = 128,
    target: options.Target = "common",
    observer: options.Observer = "mse",
    equalise: Annotated[
        str, typer.Option("--equalise", help="Even out channels first: best (tried), none, weights, activations.")
    ] = "best",
    adjust: Annotated[
        str, typer.Option("--adjust", help="Rounding and biases of a static scheme: learned, bias, none.")
    ] = "learned",
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what each layer's quantisation costs, and what to keep.")
    ] = False,
    keep: options.Keep = None,
    x: options.X = "x",
    seed: options.Seed = 0,
    force: options.Force = False,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    from octavo import api

    with show.progress(quiet) as report:
        record = api.compress(
            model, out=out, scheme=scheme, solver=solver, scale=scale, embedding=embedding, head=head,
            allow_skip=allow_skip, module=module, weights=weights, trust=trust, fix=fix, calibration=calibration,
            preprocess=preprocess, samples=samples, target=target, observer=observer, equalise=equalise, adjust=adjust,
            sensitivity=sensitivity, keep=keep or (), x=x, seed=seed, force=force, threads=threads, progress=report,
        )  # fmt: skip
    show.emit(record, json, lambda: _prose(record))


def _prose(record: ModelRecord) -> None:
    from octavo.report.text import model_summary, write

    write(model_summary(record))
    graph = any(step.get("kind") == "graph" for step in record.lineage)
    target = "onnxruntime -o model.onnx" if graph else "llamacpp -o model.gguf"
    print(f"Next: octavo export {shlex.quote(record.path)} --runtime {target}")
