"""The float original, opened once, with the data that artifacts are compared with it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.api.load import Fixed, open_source
from octavo.api.network_data import NetworkData
from octavo.core.source import Source, floats
from octavo.errors import BadInput


@dataclass(frozen=True)
class Original:
    """The float original, opened once and run for as many artifacts as are compared with it. `notes`: what reading and
    dividing the data decided; `calibration`: samples that are none of `data`, where they were asked for."""

    source: Source
    run: Callable[[Any], Any]
    data: Any  # verify's Text, Samples or Stream
    batch: int = 1  # samples per run, which a captured graph fixes
    calibration: Any = None  # verify's Samples or Stream
    notes: tuple[str, ...] = ()

    @property
    def is_language(self) -> bool:
        return self.source.program.kind == "huggingface"

    @property
    def is_stream(self) -> bool:
        """Whether the data are frames in order of time, with a state carried from one to the next."""
        return hasattr(self.data, "carries")


def open_original(
    model: Any,
    data: Path,
    *,
    windows: int,
    context: int,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    fix: Fixed = None,
    seed: int = 0,
    x: str = "x",
    y: str = "y",
    preprocess: str | Path | None = None,
    calibration: str | Path | None = None,
    samples: int | None = None,
    divide: bool = False,
) -> Original:
    """Open the float original and the data it is compared on.

    With `divide` or `calibration`, a network's data are compared on without the samples that calibrate (at most
    `samples`): a seeded fifth, or those of `calibration` that the data do not have. Raises BadInput, Missing.
    """
    from octavo.sources.reference import GraphReference, LanguageReference, Remembered
    from octavo.sources.tokenizer import tokenizer_of
    from octavo.verify.data import read_text

    source = open_source(model, module=module, weights=weights, trust=trust, example_inputs=example_inputs, fix=fix)
    if source.program.kind == "graph":
        run = Remembered(GraphReference(source.program, {name: source.rows(name) for name in source.tensors}))
        reader = NetworkData(source, run, x, y, Path(preprocess) if preprocess is not None else None, seed)
        if not divide and calibration is None:
            found = reader.read(data)
            return Original(source, run, found, reader.batch, notes=found.notes)
        given = Path(calibration) if calibration is not None else None
        evaluation, calibrates, notes = reader.divided(data, given, samples)
        return Original(source, run, evaluation, reader.batch, calibrates, notes)
    if data.is_dir() or data.suffix.lower() in (".npz", ".npy", ".zip", ".wav"):
        raise BadInput(f"{data}: a language model is compared on text.", "Give a UTF-8 .txt file.")
    tokenizer = tokenizer_of(source.assets)
    text = read_text(
        data, tokenizer.encode, length=context, bos=tokenizer.bos, limit=windows, seed=seed, offsets=tokenizer.offsets
    )
    tensors = ((name, floats(source, name)) for name in source.tensors)
    return Original(source, Remembered(LanguageReference(source.program, tensors)), text)
