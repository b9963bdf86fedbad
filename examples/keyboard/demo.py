"""The story in one command: train a keyboard's predictor, fold it, export it, prove it, compare it, let it suggest.

    python -m examples.keyboard.demo --out demo [--corpus FILE] [--steps N] [--seed 0]

Every number in the table is measured in this run, on text that no model here was trained on.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.keyboard import measure
from examples.keyboard.measure import Judged, Latency, Predict, Quality
from examples.keyboard.ngram import KneserNey
from examples.keyboard.vocabulary import Ids, Pairs, Vocabulary
from octavo import OctavoError, api
from octavo.records import ExportRecord

PHRASES = ("the value of", "return a list of", "if the file", "this method is", "an exception is", "the number of")
SCHEMES = ("fp32", "w8", "w4g32")
THREADS = 1  # a keyboard does not get the whole phone


@dataclass(frozen=True)
class Row:
    """One line of the table. `weights` is what reading the file back proved; None where there is no such file."""

    name: str
    bytes: int
    bits_per_weight: float | None
    weights: str | None
    judged: Judged
    quality: Quality
    latency: Latency


def fold(folder: Path, scheme: str) -> Path:
    """The trained network -> a compressed model. The embedding is most of the file and takes the same scheme."""
    out = folder / scheme
    api.compress(
        module="examples.keyboard.model:create", weights=folder / "model.safetensors",
        scheme=scheme, embedding=scheme, head=scheme, out=out, force=True,
    )  # fmt: skip
    return out


def export(compressed: Path) -> tuple[Path, ExportRecord]:
    """The compressed model -> ONNX Runtime's file, read back and compared code for code."""
    out = compressed.with_suffix(".onnx")
    return out, api.export(compressed, runtime="onnxruntime", out=out, force=True)


def open_onnx(path: Path) -> Predict:
    """Plain ONNX Runtime, as in the app: the file needs nothing of Octavo."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(ids: Ids) -> measure.Logits:
        logits: measure.Logits = session.run(None, {name: ids})[0]
        return logits

    return measure.one_by_one(predict)  # the file's batch is fixed at one


def measured(
    name: str,
    predict: Predict,
    words: Vocabulary,
    heldout: Pairs,
    *,
    size: int,
    bits: float | None,
    weights: str | None,
) -> Row:
    prefixes = measure.Prefixes(words)
    latency = measure.latency(predict, heldout, words, prefixes)
    judged = measure.judge(predict, heldout, prefixes)
    return Row(name, size, bits, weights, judged, measure.quality(judged, heldout), latency)


def table(rows: list[Row]) -> Table:
    result = Table(
        title="Next word on held-out text (95 % intervals by sentence; ms per keystroke on this CPU, one thread)"
    )
    for heading in (
        "",
        "size",
        "bits/weight",
        "weights",
        "top-1",
        "top-3",
        "keystrokes saved",
        "ms p50 / p99",
    ):
        result.add_column(heading, justify="left" if heading in ("", "weights") else "right", no_wrap=True)
    for row in rows:
        result.add_row(
            row.name,
            f"{row.bytes / 2**20:.2f} MiB",
            "–" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
            row.weights or "–",
            str(row.quality.top1),
            str(row.quality.top3),
            str(row.quality.saved),
            f"{row.latency.p50:.2f} / {row.latency.p99:.2f}",
        )
    return result


def verdict(rows: list[Row], heldout: Pairs) -> tuple[bool, str]:
    """Whether every folded file carries exactly its weights, and a sentence about the smallest."""
    by_name = {row.name: row for row in rows}
    full, best, baseline = by_name["fp32"], by_name[SCHEMES[-1]], rows[-1]
    lost = measure.top1_lost(full.judged, best.judged, heldout)
    exact = all(row.weights == "exact" for row in rows if row.weights is not None)
    points = f"{100 * lost.value:+.2f} points of top-1 lost [{100 * lost.low:+.2f}, {100 * lost.high:+.2f}], paired"
    ahead = 100 * (best.quality.saved.value - baseline.quality.saved.value)
    return exact, (
        f"{best.name}: {full.bytes / best.bytes:.1f} times smaller than fp32, {points}; "
        f"{ahead:+.1f} points of keystrokes saved against {baseline.name}, which is {baseline.bytes / best.bytes:.1f} "
        f"times its size; {best.latency.p99:.1f} ms per keystroke at p99; weights of every file: "
        f"{'exact' if exact else 'NOT EXACT'}."
    )


def main(arguments: list[str] | None = None) -> int:
    from examples.keyboard import train

    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    started = time.monotonic()
    given = {"--corpus": options.corpus, "--steps": options.steps, "--seed": options.seed, "--out": options.out}
    console.rule("1  train")
    if code := train.main([str(part) for pair in given.items() if pair[1] is not None for part in pair]):
        return code
    passed = compare(console, options.out)
    console.print(f"{time.monotonic() - started:.0f} s in all; everything is in {options.out}/")
    return 0 if passed else 6


def compare(console: Console, folder: Path) -> bool:
    """Folds and measures what `train` left in `folder`; whether every file carries exactly its weights."""
    words, heldout = Vocabulary.load(folder / "vocabulary.json"), Pairs.load(folder, "heldout")
    console.rule("2  fold, export, read back")
    rows, predictors = [], {}
    for scheme in SCHEMES:
        path, record = export(fold(folder, scheme))
        console.print(f"{scheme:6} {path}  {record.bytes:,} bytes  weights: {record.weights}")
        predictors[scheme] = open_onnx(path)
        size, bits, proved = record.bytes, record.bits_per_weight, str(record.weights)
        rows.append(measured(scheme, predictors[scheme], words, heldout, size=size, bits=bits, weights=proved))
    baseline = KneserNey.fit(Pairs.load(folder, "training"), len(words.words))
    rows.append(measured("KN 5-gram", baseline.predict, words, heldout, size=baseline.bytes, bits=None, weights=None))

    console.rule("3  compare")
    console.print(table(rows))
    unknown = f"{heldout.out_of_vocabulary:.1%} of them not in the vocabulary (misses)"
    console.print(f"{len(heldout):,} held-out words, {unknown}")

    console.rule(f"4  suggest ({SCHEMES[-1]}, ONNX Runtime)")
    _suggest(console, predictors[SCHEMES[-1]], words, heldout.x.shape[1])
    passed, sentence = verdict(rows, heldout)
    console.rule()
    console.print(("[green]PASSED[/green]  " if passed else "[red]FAILED[/red]  ") + sentence)
    return passed


def _suggest(console: Console, predict: Predict, words: Vocabulary, context: int) -> None:
    prefixes = measure.Prefixes(words)
    for phrase in PHRASES:
        shown = measure.suggest(predict(measure.context_of(phrase, words, context))[0], prefixes, words)
        console.print(f"{phrase:>20}  [bold]{'   '.join(shown)}[/bold]")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples.keyboard.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where everything is written")
    parser.add_argument("--corpus", type=Path, help="any plain text instead of Python's own documentation")
    parser.add_argument("--steps", type=int, help="training steps (fewer: faster and worse)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OctavoError as error:
        sys.exit(f"error: {error}")
