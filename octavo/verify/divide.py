"""Which samples calibrate and which evaluate: never the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput
from octavo.verify.lazy import Lazy, Samples, decoded_digests

SHARE = 0.2  # of the one data set there is, that calibrates


@dataclass(frozen=True)
class Divided:
    """Two sets without a sample in common; `notes` has both counts and how they came about."""

    calibration: Samples
    evaluation: Samples
    notes: tuple[str, ...]


def calibration_and_evaluation(
    data: Samples, calibration: Samples | None = None, *, seed: int = 0, samples: int | None = None, batch: int = 1
) -> Divided:
    """Calibrate on `calibration`, else on a seeded fifth of `data`, drawn evenly over the labels; evaluate on the rest.

    At most `samples` calibrate; which samples evaluate does not depend on that number. Equal samples count as one:
    those of `calibration` that `data` has too do not calibrate, with a note. Both counts are multiples of `batch`.
    Raises BadInput when nothing is left on either side.
    """
    notes: list[str] = []
    if calibration is None:
        calibrates, evaluates = _halves(data, seed)
        evaluation, rest = data.take(evaluates), data.take(calibrates)
        how = f"a fifth of the data, drawn by seed {seed}" + (" evenly over the labels" if _drawable(data) else "")
    else:
        evaluation, (rest, shared) = data, _apart(calibration, data)
        if shared:
            notes.append(f"{shared} of {len(calibration)} calibration samples are evaluation data too: left out.")
        how = "data of their own"
    found = drawn(rest, samples, seed + 1, batch)
    how += f", {len(rest)} of which {len(found)} were drawn" if len(found) < len(rest) else ""
    kept = _multiple(evaluation, batch)
    if len(kept) < len(evaluation):
        notes.append(f"{len(evaluation) - len(kept)} samples do not fill a batch of {batch}: left out.")
    notes.append(f"{len(found)} samples calibrate ({how}), {len(kept)} evaluate.")
    return Divided(found, kept, tuple(notes))


def drawn(data: Samples, samples: int | None, seed: int, batch: int = 1) -> Samples:
    """At most `samples` of `data`, drawn evenly over its labels, in order; a multiple of `batch`."""
    if samples is not None and samples < 1:
        raise BadInput(f"{samples} samples calibrate nothing.", "Use 1 or more; a hundred is a good start.")
    if samples is not None and samples < len(data):
        picks = even_draw(data.labels if _drawable(data) else None, len(data), samples, seed)
        data = data.take(np.sort(picks))
    return _multiple(data, batch)


def divided_stream(data: Any, calibration: Any = None, samples: int | None = None) -> tuple[Any, Any, tuple[str, ...]]:
    """(evaluation, calibration, notes) of recordings: the beginning of another recording calibrates (at most `samples`
    frames), else of the first fifth of this one; the rest, or the whole, evaluates.

    Raises BadInput when one side is no recording, or both are the same.
    """
    if calibration is None:
        cut = round(SHARE * len(data))
        if not 0 < cut < len(data):
            raise BadInput(f"{len(data)} frames cannot be split in two.", "Give calibration data of its own.")
        few = min(cut, samples or cut)
        note = f"The first {few} frames calibrate, the last {len(data) - cut} evaluate, from a fresh state."
        return data.part(cut), data.part(0, few), (*data.notes, note)
    if not (hasattr(data, "frames") and hasattr(calibration, "frames")):
        raise BadInput("A recording calibrates a model that is compared on a recording.", "Give two .wav files.")
    shared = {frame.tobytes() for frame in data.frames if frame.any()}
    both = sum(frame.tobytes() in shared for frame in calibration.frames)
    if both:
        raise BadInput(
            f"{both} of {len(calibration)} frames of the calibration recording are evaluation data too.",
            "Leave --calibration out (the first fifth of --data then calibrates), or give another recording.",
        )
    calibration = calibration.part(0, samples)
    note = f"{len(calibration)} frames calibrate, {len(data)} evaluate."
    return data, calibration, tuple(dict.fromkeys((*data.notes, *calibration.notes, note)))


def even_draw(labels: NDArray[np.int64] | None, total: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` of `total` numbers, so that every label's share is kept as nearly as whole numbers allow.

    Each label's samples, shuffled, are spread evenly over [0, 1) from a start drawn per label; the lowest `count`
    places win. Without labels: a plain draw.
    """
    random = np.random.default_rng(seed)
    places = np.empty(total)
    groups = np.zeros(total, np.int64) if labels is None else labels
    for label in np.unique(groups):
        mine = np.flatnonzero(groups == label)
        places[random.permutation(mine)] = (np.arange(len(mine)) + random.random()) / len(mine)
    return np.argsort(places, kind="stable")[:count].astype(np.int64)


def _halves(data: Samples, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers that calibrate and that evaluate; copies of one sample are all on one side."""
    firsts, group = _groups(data.digests())
    if len(firsts) < 2:
        raise BadInput(
            f"{len(firsts)} different samples cannot be split in two.", "Give --calibration data of its own."
        )
    labels = data.labels[firsts] if data.labels is not None and _drawable(data) else None
    drawn = even_draw(labels, len(firsts), max(1, round(SHARE * len(firsts))), seed)
    calibrates = np.isin(group, drawn)
    return np.flatnonzero(calibrates).astype(np.int64), np.flatnonzero(~calibrates).astype(np.int64)


def _groups(digests: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first sample of each distinct digest, and for each sample which of those it equals."""
    number: dict[bytes, int] = {}
    group = np.array([number.setdefault(digest, len(number)) for digest in digests], np.int64)
    return np.unique(group, return_index=True)[1].astype(np.int64), group


def _apart(calibration: Samples, data: Samples) -> tuple[Samples, int]:
    """The calibration samples that `data` does not have, and how many it has."""
    files = isinstance(calibration, Lazy) and isinstance(data, Lazy)
    mine, theirs = (side.digests() if files else decoded_digests(side) for side in (calibration, data))
    known = set(theirs)
    own = np.array([i for i, digest in enumerate(mine) if digest not in known], np.int64)
    if not len(own):
        raise BadInput(
            f"All {len(mine)} calibration samples are evaluation data too.",
            "Leave --calibration out (a fifth of --data then calibrates and the rest evaluates), or give other data.",
        )
    return (calibration if len(own) == len(mine) else calibration.take(own)), len(mine) - len(own)


def _multiple(data: Samples, batch: int) -> Samples:
    """Whole batches. Raises BadInput when there is none."""
    whole = len(data) // batch * batch
    if not whole:
        raise BadInput(f"{len(data)} samples do not fill one batch of {batch}.", "Give more data.")
    return data if whole == len(data) else data.take(np.arange(whole))


def _drawable(data: Samples) -> bool:
    """Whether there is one label per sample, and labels that several share, to draw evenly over."""
    return data.labels is not None and data.labels.ndim == 1 and len(np.unique(data.labels)) < len(data)
