"""The options that several verbs share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(help="A Hugging Face directory, an .onnx or a float .tflite; or leave it out and give --module."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON on standard output, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that draws.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output; it stays until the new one is done.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to use (default: all cores).")]
Unit = Annotated[
    str | None,
    typer.Option(
        "--unit",
        help="cpu, gpu, npu, or a target by name (ethos-u55-128, hexagon): the one asked for, then where operators may "
        "fall back to, separated by commas (default: cpu).",
    ),
]
NoFallback = Annotated[
    bool, typer.Option("--no-fallback", help="Exit 5 when an operator runs elsewhere than on the unit asked for.")
]
Module = Annotated[
    str | None,
    typer.Option("--module", help="pkg.file:factory returning (module, example_inputs); imports and runs that file."),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="The module's weights, .safetensors.")]
Trust = Annotated[bool, typer.Option("--trust", help="Open .pt/.pt2 files, which can run code, in a worker process.")]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        "--fix", help="Of an .onnx file's inputs: NAME=VALUE, DIMENSION=SIZE or NAME=1x3x224x224; repeatable."
    ),
]
Embedding = Annotated[str | None, typer.Option("--embedding", help="Scheme of the embedding (default w8).")]
Head = Annotated[str | None, typer.Option("--head", help="Scheme of the output head (default w8).")]
AllowSkip = Annotated[bool, typer.Option("--allow-skip", help="Leave what a scheme cannot hold in float; record it.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Text (.txt), arrays (.npz with x and y), a folder or .zip of images or clips, or a recording (.wav).",
    ),
]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", help="Data that calibrate (default: a fifth of --data, left out of it).")
]
Preprocess = Annotated[
    Path | None,
    typer.Option("--preprocess", help="How images and sound become inputs (default: preprocess.toml beside the data)."),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="At most this many samples calibrate.")]
Target = Annotated[
    str, typer.Option("--target", help="Whose operators are quantised: common (all runtimes'), litert, ethos-u, …")
]
Observer = Annotated[
    str, typer.Option("--observer", help="How activation ranges are found: mse, minmax, percentile, entropy.")
]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", help="Pattern of layers that stay in float; may be repeated.")
]
X = Annotated[str, typer.Option("--x", help="Name of the input array in an .npz.")]
Y = Annotated[str, typer.Option("--y", help="Name of the labels in an .npz.")]
Confidence = Annotated[
    str | None, typer.Option("--confidence", help="Gate on this bound of the interval, e.g. 95% (else the estimate).")
]
MaxDrop = Annotated[
    str | None, typer.Option("--max-drop", help="Accuracy that may be lost, e.g. 1% (else exit code 4).")
]
Windows = Annotated[int, typer.Option("--windows", min=1, help="At most this many windows of text are scored.")]
Context = Annotated[int, typer.Option("--context", min=2, help="Tokens per window of text.")]
