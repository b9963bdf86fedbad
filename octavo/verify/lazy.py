"""Samples that are decoded when they are asked for, so that a large set never lies in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput
from octavo.verify.data import Labelled

MOST_WHOLE = 1 << 31  # bytes that `inputs` decodes at once
KEPT = 1 << 26  # bytes of decoded but not yet scaled samples that are kept for the next pass


class Samples(Protocol):
    """What every data set for networks offers, whether its arrays are in memory (Labelled) or not (Lazy)."""

    @property
    def inputs(self) -> dict[str, NDArray[Any]]: ...
    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def take(self, index: NDArray[np.int64]) -> Samples: ...
    def batches(self, size: int = 1) -> Iterator[Labelled]: ...
    def digests(self) -> list[bytes]: ...


@dataclass(frozen=True, eq=False)
class Lazy:
    """One array per sample for the model's input `name`. `decode` and `content` take a sample's number in the whole
    set, of which `numbers` int64 [n] are the ones here; `content` is the file that stands behind it."""

    name: str
    decode: Callable[[int], NDArray[Any]]
    content: Callable[[int], bytes]
    numbers: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """Every sample decoded, {name: [n, …]}. Raises BadInput where that would take more than 2 GiB: use batches."""
        first = self.decode(int(self.numbers[0]))
        if first.nbytes * len(self) > MOST_WHOLE:
            raise BadInput(f"{len(self)} samples of {first.nbytes:,} bytes are too many to hold at once.")
        return {self.name: self._stack(self.numbers)}

    def take(self, index: NDArray[np.int64]) -> Lazy:
        """The samples at `index`, in that order; nothing is decoded."""
        labels = None if self.labels is None else self.labels[index]
        return Lazy(self.name, self.decode, self.content, self.numbers[index], labels, self.notes)

    def batches(self, size: int = 1) -> Iterator[Labelled]:
        """Consecutive batches of at most `size` samples, decoded as they are taken."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            labels = None if self.labels is None else self.labels[part]
            yield Labelled({self.name: self._stack(self.numbers[part])}, labels)

    def digests(self) -> list[bytes]:
        """A digest of each sample's file: equal for equal files."""
        return [blake2b(self.content(int(number)), digest_size=16).digest() for number in self.numbers]

    def _stack(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        return np.stack([self.decode(int(number)) for number in numbers])


@dataclass
class Keep:
    """Keeps what was made first, up to `limit` bytes: what is read over and over in the same order is then not made
    again, where the most recent would always be gone before its turn comes."""

    make: Callable[[int], NDArray[Any]]
    limit: int = KEPT
    kept: dict[int, NDArray[Any]] = field(default_factory=dict)

    def __call__(self, number: int) -> NDArray[Any]:
        if number in self.kept:
            return self.kept[number]
        made = self.make(number)
        if made.nbytes <= self.limit:
            self.limit -= made.nbytes
            self.kept[number] = made
        return made


def decoded_digests(data: Samples) -> list[bytes]:
    """A digest of each sample's arrays as the model sees them: equal across kinds of files."""
    found = []
    for part in data.batches(1):
        digest = blake2b(digest_size=16)
        for array in part.inputs.values():
            digest.update(np.ascontiguousarray(array).tobytes())
        found.append(digest.digest())
    return found


def chosen(total: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """The numbers of at most `limit` of `total` samples, drawn by `seed`, in order."""
    if limit is None or limit >= total:
        return np.arange(total)
    if limit < 1:
        raise BadInput(f"{limit} samples compare nothing.", "Use 1 or more.")
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))
