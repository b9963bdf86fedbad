"""Small data sets made on the spot: zips and folders of images and clips."""

from __future__ import annotations

import io
import wave
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def picture(colour: tuple[int, ...] | int = (10, 20, 30), size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """An image of one colour, `size` (height, width)."""
    from PIL import Image

    mode = "L" if isinstance(colour, int) else "RGB"
    file = io.BytesIO()
    Image.new(mode, (size[1], size[0]), colour).save(file, kind)
    return file.getvalue()


def noise(seed: int, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """An image of random pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def clip(values: np.ndarray, rate: int = 16000, channels: int = 1, width: int = 2) -> bytes:
    """A PCM .wav of whole numbers [n · channels]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        if width == 3:
            data = np.asarray(values, "<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        else:
            data = np.asarray(values, {1: np.uint8, 2: "<i2", 4: "<i4"}[width]).tobytes()
        out.writeframes(data)
    return file.getvalue()


def zipped(path: Path, files: Mapping[str, bytes | str], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def unpacked(path: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def how(path: Path, text: str = "") -> Path:
    """A preprocess.toml in the folder `path`."""
    place = path / "preprocess.toml"
    place.write_text(text, "utf-8")
    return place
