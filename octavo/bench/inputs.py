"""What to measure a session on: what it says it takes, and arrays drawn by a seed within those shapes and types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from octavo.bench.fresh import Arrays, open_asked
from octavo.errors import BadInput, nearest
from octavo.workers.local import Worker

SMALL = 10  # 32- and 64-bit integers are drawn below this: they are mostly indices into tables of unknown length
NUMBERS: dict[str, Any] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(int16)": np.int16, "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32, "tensor(uint32)": np.uint32, "tensor(int64)": np.int64, "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}  # fmt: skip
UNNAMED = "?"
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Taken:
    """What an artifact takes. `inputs`: {name: (shape, type word)}, a free length by its name. `language`: ids and a
    cache; then `vocabulary` is known, and `context`, the positions it was made for, where the file says so.
    `units`: how many operators each unit was given."""

    inputs: dict[str, tuple[Shape, str]]
    language: bool
    vocabulary: int | None
    context: int | None
    units: dict[str, int]


def taken(opener: str, path: Path, *, threads: int | None = None, timeout: float | None = 600.0) -> Taken:
    """Open the file in a worker and ask it. Raises what the opener raises, WorkerDied, WorkerTimeout."""
    params = {"opener": opener, "path": str(path), "threads": threads}
    with Worker(threads=threads) as worker:
        found = worker.call("octavo.bench.inputs:ask", params, timeout=timeout).result
    inputs = {name: (tuple(shape), kind) for name, (shape, kind) in found.pop("inputs").items()}
    return Taken(inputs, **found)


def ask(params: dict[str, Any], arrays: Arrays, emit: Callable[[Any], None]) -> tuple[dict[str, Any], Arrays]:
    """The worker's end of `taken`. A language model decodes one token, whose logits tell the vocabulary."""
    session = open_asked(params)
    try:
        inputs = dict(session.inputs) if hasattr(session, "inputs") else {"ids": ((1, "n"), "tensor(int64)")}
        language = set(inputs) == {"ids"}
        vocabulary = context = None
        if language:
            outputs, state = session.step({"ids": np.zeros((1, 1), np.int64)}, None)
            language = state is not None and "logits" in outputs
            vocabulary = int(outputs["logits"].shape[-1]) if language else None
            manifest = getattr(session, "manifest", None)
            context = getattr(session, "trained_context", None) or (manifest.extra.get("context") if manifest else None)
        units: dict[str, int] = {}
        for item in session.placement():
            units[item.unit] = units.get(item.unit, 0) + 1
    finally:
        session.close()
    listed = {name: [[_length(n) for n in shape], kind] for name, (shape, kind) in inputs.items()}
    result = {"inputs": listed, "language": language, "vocabulary": vocabulary, "context": context, "units": units}
    return result, {}


def sized(
    inputs: Mapping[str, tuple[Shape, str]], batch: int | None = None, fix: Mapping[str, Any] | None = None
) -> dict[str, tuple[int, ...]]:
    """Every shape with its free lengths settled: first the batch (1 unless asked for), others by `fix`, which has
    {dimension: size} or {input: shape}; a number for an input is its value and settles nothing.

    Raises BadInput for a batch that the file fixes, and for a free length that nobody settled: it is not guessed.
    """
    fix = dict(fix or {})
    _check_names(inputs, fix)
    free = [name for name, (shape, _) in inputs.items() if shape and _is_free(shape[0]) and shape[0] not in fix]
    if batch is not None and not free:
        _check_batch(inputs, batch)
    return {name: _sized(name, shape, batch or 1, fix) for name, (shape, _) in inputs.items()}


def _sized(name: str, shape: Shape, batch: int, fix: Mapping[str, Any]) -> tuple[int, ...]:
    given = fix.get(name)
    if isinstance(given, tuple | list):
        fits = len(given) == len(shape) and all(_is_free(n) or n == m for n, m in zip(shape, given, strict=True))
        if not fits:
            raise BadInput(f"--fix {name}={_text(given)}: the model takes {_text(shape)}.")
        return tuple(int(size) for size in given)
    lengths: list[int] = []
    for axis, size in enumerate(shape):
        if not _is_free(size):
            lengths.append(int(size))
        elif str(size) in fix:
            lengths.append(int(fix[str(size)]))
        elif axis == 0:
            lengths.append(batch)
        else:
            named = "" if size == UNNAMED else f"--fix {size}=SIZE or "
            raise BadInput(
                f"Input {name} is {_text(shape)}: how long is axis {axis}?",
                f"Say {named}--fix {name}={_text(shape, 'SIZE')}, or give --input X.npz.",
            )
    return tuple(lengths)


def _check_names(inputs: Mapping[str, tuple[Shape, str]], fix: Mapping[str, Any]) -> None:
    known = {str(size) for shape, _ in inputs.values() for size in shape if _is_free(size)} | set(inputs)
    for name in fix:
        if name not in known:
            raise BadInput(f"--fix {name}: no input and no free length has that name.", nearest(name, known))


def _check_batch(inputs: Mapping[str, tuple[Shape, str]], batch: int) -> None:
    """Raise BadInput where the file's own batch is another."""
    first = {name: shape for name, (shape, _) in inputs.items() if shape}
    if not first or any(shape[0] != batch for shape in first.values()):
        shapes = ", ".join(f"{name} {_text(shape)}" for name, shape in first.items()) or "no array"
        raise BadInput(
            f"A batch of {batch}: the file's batch is fixed ({shapes}).",
            "Leave --batch out, or export the model with a free first dimension.",
        )


def drawn(
    inputs: Mapping[str, tuple[Shape, str]],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int = 0,
    fix: Mapping[str, Any] | None = None,
) -> Arrays:
    """Arrays by seed: standard normal floats, small types over their whole range, other integers below SMALL. A number
    in `fix` fills its input. Raises BadInput for a type that numpy has not."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for name, (_, kind) in inputs.items():
        if kind not in NUMBERS:
            raise BadInput(f"Input {name} is {kind}: no such array can be made up.", "Give --input X.npz.")
        dtype, shape = np.dtype(NUMBERS[kind]), shapes[name]
        value = (fix or {}).get(name)
        if isinstance(value, int | float):
            found[name] = np.full(shape, value, dtype)
        elif dtype.kind == "f":
            found[name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
        elif dtype.kind == "b":
            found[name] = np.asarray(rng.integers(0, 2, shape)).astype(dtype)
        else:
            ends = np.iinfo(dtype) if dtype.itemsize <= 2 else None
            low, high = (ends.min, ends.max + 1) if ends else (0, SMALL)
            found[name] = np.asarray(rng.integers(low, high, shape)).astype(dtype)
    return found


def read(path: Path, inputs: Mapping[str, tuple[Shape, str]], batch: int | None = None) -> Arrays:
    """The arrays of an .npz under the inputs' names (one array alone may have any), cut to the first rows of a batch:
    what the file fixes, else `batch`, else 1. Raises BadInput for what is absent or does not fit."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise BadInput(f"{path}: no .npz of arrays ({error}).") from error
    listing = ", ".join(f"{name} {_text(array.shape)}" for name, array in held.items()) or "nothing"
    found: Arrays = {}
    for name, (shape, kind) in inputs.items():
        key = next(iter(held), name) if len(inputs) == len(held) == 1 else name
        if len(inputs) == 1 and name not in held and "x" in held:
            key = "x"
        if key not in held:
            raise BadInput(f"{path}: no array '{name}'; it has {listing}.", "Name the arrays as the model's inputs.")
        array = held[key]
        if shape and array.ndim == len(shape):
            array = array[: (batch or 1) if _is_free(shape[0]) else int(shape[0])]
        fits = array.ndim == len(shape) and all(_is_free(n) or n == m for n, m in zip(shape, array.shape, strict=True))
        if not fits or 0 in array.shape:
            raise BadInput(f"{path}: array '{key}' is {_text(held[key].shape)}; the model takes {_text(shape)}.")
        if array.dtype.kind not in "fiub":
            raise BadInput(f"{path}: array '{key}' holds no numbers ({array.dtype}).")
        found[name] = array.astype(NUMBERS[kind]) if kind in NUMBERS else array
    if batch is not None and not any(shape and _is_free(shape[0]) for shape, _ in inputs.values()):
        _check_batch(inputs, batch)
    short = [
        name for name, array in found.items() if _is_free(next(iter(inputs[name][0]), 0)) and len(array) < (batch or 1)
    ]
    if short:
        raise BadInput(f"{path}: {short[0]} has {len(found[short[0]])} rows, fewer than a batch of {batch}.")
    return found


def prompt(vocabulary: int, length: int, seed: int = 0) -> Arrays:
    """{"ids": int64 [1, length]}, drawn from the vocabulary by seed."""
    return {"ids": np.random.default_rng(seed).integers(0, vocabulary, (1, length), np.int64)}


def _length(size: Any) -> int | str:
    """A fixed length, or the name of a free one: runtimes say a name, −1, or nothing."""
    return size if isinstance(size, int) and size >= 0 else size if isinstance(size, str) and size else UNNAMED


def _is_free(size: int | str) -> bool:
    return not isinstance(size, int)


def _text(shape: Any, free: str = "") -> str:
    return "x".join(free if free and _is_free(size) else str(size) for size in shape) or "a single number"
