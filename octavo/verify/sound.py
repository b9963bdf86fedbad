"""Sound as a model's input: clips of class folders, and a recording as a stream of frames in order of time."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput
from octavo.verify.files import MOST_BYTES, Files, open_files
from octavo.verify.labels import Listing
from octavo.verify.lazy import Keep, Lazy, chosen
from octavo.verify.preprocess import Preprocess
from octavo.verify.shapes import only_input, shown

SUFFIXES = (".wav",)
EXAMPLE = "sample_rate = 16000, samples = 16000."
FULL_SCALE = {1: 128.0, 2: 32768.0, 3: 8388608.0, 4: 2147483648.0}  # by bytes per value


def read_clips(
    files: Files,
    listing: Listing,
    inputs: Mapping[str, tuple[int, ...]] | None,
    preprocess: Preprocess,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Lazy:
    """Waveforms float32 in [−1, 1) for a model's only input, each cut or zero-padded to `samples`; mono.

    Raises BadInput for a damaged file or another sample rate (by name), and for lengths that do not fit the input.
    """
    name, shape = only_input(inputs, "clips")
    listing = listing.pick(chosen(len(listing.names), limit, seed))
    length = preprocess.samples
    if preprocess.sample_rate is None or length is None:
        raise BadInput(f"{preprocess.origin}: sound needs sample_rate and samples.", f"For example: {EXAMPLE}")
    if preprocess.dtype not in ("float32", "float16") or len(preprocess.mean) > 1 or len(preprocess.std) > 1:
        raise BadInput(f"{preprocess.origin}: sound is one channel of floats.", "Give one mean and one std.")
    form = _form(files.path, shape, length)
    kept = Keep(lambda number: _clip(files, listing.names[number], preprocess, length))

    def decode(number: int) -> NDArray[Any]:
        values = (kept(number) * np.float32(preprocess.scale) - preprocess.mean[0]) / np.float32(preprocess.std[0])
        return values.reshape(form).astype(preprocess.dtype)

    return Lazy(
        name, decode, lambda number: files.read(listing.names[number]), np.arange(len(listing.names)), listing.labels,
        listing.notes,
    )  # fmt: skip


def read_stream(
    path: Path, frame: int, context: int = 0, *, sample_rate: int = 16000, dtype: str = "float32"
) -> NDArray[Any]:
    """Frames [n, context + frame] of a mono recording in order of time, values in [−1, 1); each is preceded by the
    `context` samples before it (zeros before the first), and the last is padded with zeros. A folder or zip of clips is
    one recording, the clips end to end in the order of their names.

    Raises BadInput for a recording that is damaged, of another rate, or empty.
    """
    sound = _recording(path, sample_rate)
    if not len(sound):
        raise BadInput(f"{path}: no samples.")
    count = -(-len(sound) // frame)
    padded = np.zeros(context + count * frame, np.float32)
    padded[context : context + len(sound)] = sound
    return np.lib.stride_tricks.sliding_window_view(padded, context + frame)[::frame].astype(dtype)


def decode_wav(raw: bytes, what: str, sample_rate: int) -> NDArray[np.float32]:
    """float32 [n] in [−1, 1) of a PCM .wav; several channels are averaged. Raises BadInput, which names `what`."""
    try:
        with wave.open(io.BytesIO(raw)) as file:
            rate, channels, width, count = (
                file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes(),
            )  # fmt: skip
            data = file.readframes(count)
    except (wave.Error, EOFError, ValueError, ZeroDivisionError) as error:
        raise BadInput(f"{what} is no PCM .wav that can be read ({error}).", "Convert it to 16-bit PCM.") from error
    if len(data) < count * channels * width:
        raise BadInput(f"{what} is cut short: {len(data)} of {count * channels * width} bytes of sound.")
    if rate != sample_rate:
        raise BadInput(f"{what} has {rate} Hz; expected {sample_rate}.", "Resample it; Octavo does not.")
    if width == 1:
        values = np.frombuffer(data, np.uint8).astype(np.float32) - 128
    elif width == 3:
        whole = np.zeros((len(data) // 3, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = (whole.view("<i4")[:, 0] >> 8).astype(np.float32)
    else:
        values = np.frombuffer(data, f"<i{width}").astype(np.float32)
    return np.asarray(values.reshape(-1, channels).mean(axis=1) / FULL_SCALE[width], np.float32)


def _recording(path: Path, sample_rate: int) -> NDArray[np.float32]:
    """float32 [n]: a .wav, or all of a folder or zip."""
    if path.suffix.lower() != ".wav" or path.is_dir():
        files = open_files(path)
        names = [name for name in files.names if name.lower().endswith(SUFFIXES)]
        parts = [decode_wav(files.read(name), f"{path}: {name}", sample_rate) for name in names]
        return np.concatenate([np.zeros(0, np.float32), *parts])
    try:
        size = path.stat().st_size
        if size > 16 * MOST_BYTES:
            raise BadInput(f"{path} has {size:,} bytes; at most {16 * MOST_BYTES:,} are read.")
        return decode_wav(path.read_bytes(), str(path), sample_rate)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}.") from error


def _clip(files: Files, name: str, preprocess: Preprocess, length: int) -> NDArray[np.float32]:
    sound = decode_wav(files.read(name), f"{files.path}: {name}", preprocess.sample_rate or 0)[:length]
    return np.pad(sound, (0, length - len(sound)))


def _form(path: Path, shape: tuple[int, ...] | None, length: int) -> tuple[int, ...]:
    """The shape of one clip: the model's own, in which `length` is the only size that is not one."""
    if shape is None:
        return (length,)
    sizes = [n for n in shape[1:] if n != 1]
    if len(sizes) != 1 or sizes[0] not in (-1, length):
        raise BadInput(
            f"{path}: clips are waveforms of {length} samples; the model's input is {shown(shape)}.",
            "Set samples, or give the features that it takes as an .npz.",
        )
    return tuple(1 if n == 1 else length for n in shape[1:])
