"""The float original, opened once, with the data that artifacts are compared with it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.api.load import Fixed, open_source
from octavo.core.source import Source, floats
from octavo.errors import BadInput


@dataclass(frozen=True)
class Original:
    """The float original, opened once and run for as many artifacts as are compared with it."""

    source: Source
    run: Callable[[Any], Any]
    data: Any  # verify.data.Text or Labelled
    batch: int = 1  # samples per run, which a captured graph fixes

    @property
    def is_language(self) -> bool:
        return self.source.program.kind == "huggingface"


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
) -> Original:
    """Open the float original and the data it is compared on. Raises BadInput, Missing."""
    from octavo.sources.reference import GraphReference, LanguageReference, Remembered
    from octavo.sources.tokenizer import tokenizer_of
    from octavo.verify.data import read_text

    source = open_source(model, module=module, weights=weights, trust=trust, example_inputs=example_inputs, fix=fix)
    if source.program.kind == "graph":
        arrays = {name: source.rows(name) for name in source.tensors}
        samples, batch = _samples(source, data, x, y)
        return Original(source, Remembered(GraphReference(source.program, arrays)), samples, batch)
    if data.suffix in (".npz", ".npy", ".zip"):
        raise BadInput(f"{data}: a language model is compared on text.", "Give a UTF-8 .txt file.")
    tokenizer = tokenizer_of(source.assets)
    text = read_text(
        data, tokenizer.encode, length=context, bos=tokenizer.bos, limit=windows, seed=seed, offsets=tokenizer.offsets
    )
    tensors = ((name, floats(source, name)) for name in source.tensors)
    return Original(source, Remembered(LanguageReference(source.program, tensors)), text)


def _samples(source: Source, path: Path, x: str, y: str) -> tuple[Any, int]:
    """The arrays of an .npz under the graph's input names and in their order, and how many samples it takes at once."""
    from octavo.sources.torch import inputs_of
    from octavo.verify.data import read_arrays

    shapes = inputs_of(source.program)
    data = read_arrays(path, shapes, x=x, y=y)
    batch = max(1, *(shape[0] for shape in shapes.values()))
    if len(data) % batch:
        raise BadInput(
            f"{path}: {len(data)} samples, and the model was captured for {batch} at a time.",
            f"Give a multiple of {batch}, or example inputs of one sample.",
        )
    return data, batch
