"""preprocess.toml: how images and sound become a model's input. Flat, every key checked, unknown ones refused."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from octavo.errors import BadInput, nearest

NAME = "preprocess.toml"
COLORS = {"rgb": 3, "bgr": 3, "gray": 1}
LAYOUTS = ("nchw", "nhwc")
TYPES = ("float32", "float16", "uint8", "int8")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box")
MOST_PIXELS = 1 << 26  # of an image as the model sees it


@dataclass(frozen=True)
class Preprocess:
    """pixel → (pixel · scale − mean) / std per channel, after resizing and then cropping; sizes are [height, width].

    `layout` None: as the model takes it. `classes`: the names in the order of the model's outputs. `sample_rate` in Hz
    and `samples` (a clip is cut or padded with zeros to so many) are for sound, whose values lie in [−1, 1) before
    `scale`, `mean` and `std`. `state`: input → output of what a model carries from step to step; `frame` and `context`
    in samples: of a recording given frame by frame.
    """

    color: str = "rgb"
    resize_shorter: int | None = None
    resize: tuple[int, int] | None = None
    center_crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    dtype: str = "float32"
    classes: tuple[str, ...] | None = None
    sample_rate: int | None = None
    samples: int | None = None
    frame: int | None = None
    context: int | None = None
    state: Mapping[str, str] = field(default_factory=dict)
    origin: str = NAME

    def __post_init__(self) -> None:
        for name, known in (
            ("color", tuple(COLORS)), ("interpolation", INTERPOLATIONS), ("dtype", TYPES), ("layout", LAYOUTS),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value not in known:
                raise self.wrong(name, f"'{value}' is not known. {nearest(str(value), known)}")
        if self.resize and self.resize_shorter:
            raise self.wrong("resize", "and resize_shorter are both given.", "Keep one of them.")
        if self.frame is None and self.context is not None:
            raise self.wrong("stream.context", "is given without stream.frame.", "Give both, in samples.")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) not in (1, self.channels):
                wanted = f"{self.channels}, one per channel of '{self.color}'" if self.channels > 1 else "1"
                raise self.wrong(name, f"has {len(value)} numbers; give {wanted}.")
        if 0.0 in self.std:
            raise self.wrong("std", f"{list(self.std)} divides by zero.")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise self.wrong("classes", f"names '{twice}' twice.")

    @property
    def channels(self) -> int:
        return COLORS[self.color]

    def wrong(self, key: str, what: str, remedy: str = "") -> BadInput:
        """The error that names this file and a key of it."""
        return BadInput(f"{self.origin}: {key} {what}", remedy)


def read_preprocess(path: Path) -> Preprocess:
    """Read a preprocess.toml. Raises BadInput for one that cannot be read, an unknown key or a wrong value."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}.", "Check --preprocess.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: no TOML ({error}).") from error
    stream = found.pop("stream", {})
    given = _converted(path, found, KEYS, "")
    if not isinstance(stream, dict):
        raise BadInput(f"{path}: stream is {stream!r}; expected a table.", "[stream] frame = 512")
    return Preprocess(**given, **_converted(path, stream, STREAM_KEYS, "stream."), origin=str(path))


def find_preprocess(data: Path, given: Path | None) -> Preprocess | None:
    """The file given, else the preprocess.toml in the data's folder or beside it, else None."""
    if given is not None:
        return read_preprocess(given)
    places = ([data / NAME] if data.is_dir() else []) + [data.absolute().parent / NAME]
    return next((read_preprocess(place) for place in places if place.is_file()), None)


def require_preprocess(data: Path, given: Path | None, example: str) -> Preprocess:
    """The same; raises BadInput with an example when there is none."""
    found = find_preprocess(data, given)
    if found is None:
        raise BadInput(
            f"{data}: no {NAME} beside it says how it becomes the model's input.",
            f"Write one, or give --preprocess F; for example: {example}",
        )
    return found


def _converted(
    path: Path, found: Mapping[str, Any], keys: Mapping[str, Callable[[Any], Any]], prefix: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key not in keys:
            raise BadInput(
                f"{path}: unknown key '{prefix}{key}'.", nearest(key, [*keys, *([] if prefix else ["stream"])])
            )
        try:
            values[key] = keys[key](value)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path}: {prefix}{key} = {value!r}: expected {error}.") from None
    return values


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a word in quotes")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_PIXELS:
        raise TypeError(f"a whole number from 1 to {MOST_PIXELS}")
    return value


def _context(value: Any) -> int:
    return 0 if value == 0 and isinstance(value, int) else _count(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError("a finite number")
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        return (_number(value),)
    if not value:
        raise ValueError("a number, or one per channel")
    return tuple(_number(item) for item in value)


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (_count(value),) * 2
    if not isinstance(value, list) or len(value) != 2:
        raise TypeError("[height, width]")
    height, width = (_count(item) for item in value)
    if height * width > MOST_PIXELS:
        raise ValueError(f"at most {MOST_PIXELS} pixels")
    return height, width


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise TypeError('a list of names, ["cat", "dog"]')
    return tuple(value)


def _pairs(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise TypeError('a table of input = "output"')
    return dict(value)


KEYS: dict[str, Callable[[Any], Any]] = {
    "color": _word, "resize_shorter": _count, "resize": _size, "center_crop": _size, "interpolation": _word,
    "scale": _number, "mean": _numbers, "std": _numbers, "layout": _word, "dtype": _word, "classes": _words,
    "sample_rate": _count, "samples": _count,
}  # fmt: skip
STREAM_KEYS: dict[str, Callable[[Any], Any]] = {"frame": _count, "context": _context, "state": _pairs}
