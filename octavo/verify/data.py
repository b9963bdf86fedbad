"""Reading --data: arrays out of an .npz, images and clips, windows of tokens out of a .txt; and splitting in two."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, nearest
from octavo.verify.shapes import fits, turned

if TYPE_CHECKING:
    from octavo.verify.lazy import Samples

KINDS = (".npz", ".zip", ".txt")
SEPARATORS = ("<|eos|>", "<|endoftext|>")
MIN_DOCUMENT_CLUSTERS = 10  # with fewer documents an interval over them says little: then windows are the clusters


@dataclass(frozen=True)
class Labelled:
    """Samples: one array per model input, batch on axis 0; `labels` int64 with the same axis 0, if there are any.
    `notes`: what reading them decided."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: NDArray[np.int64]) -> Labelled:
        """The samples at `index`, in that order."""
        labels = None if self.labels is None else self.labels[index]
        return Labelled({name: array[index] for name, array in self.inputs.items()}, labels, self.notes)

    def batches(self, size: int = 1) -> Iterator[Labelled]:
        """Consecutive batches of at most `size` samples."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def digests(self) -> list[bytes]:
        """A digest of each sample: equal for equal samples."""
        from octavo.verify.lazy import decoded_digests

        return decoded_digests(self)


@dataclass(frozen=True)
class Window:
    """A piece of one document: `ids` int64 [n], of which ids[1:] are scored; `bytes` of UTF-8 that those stand for."""

    ids: NDArray[np.int64]
    bytes: float
    document: int
    cluster: int


@dataclass(frozen=True)
class Text:
    """Windows of a text file. `clustered_by`: what counts as independent for the intervals. `exact_bytes` is False
    where a document's bytes were shared out over its windows by tokens (no token offsets were to be had)."""

    windows: tuple[Window, ...]
    documents: int
    available: int
    clustered_by: str
    exact_bytes: bool

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return sum(len(window.ids) - 1 for window in self.windows)


def read_arrays(
    path: Path, inputs: Mapping[str, tuple[int, ...]] | None = None, *, x: str = "x", y: str = "y", labels: bool = False
) -> Labelled:
    """Read an .npz: array `x` for a model's only input, or one array per input name; integer labels under `y`.

    `inputs`: the model's input shapes, batch first, −1 where free; None accepts what is there. float64 is read as
    float32, the models' type. Raises BadInput, with the names found, for wrong names, shapes, lengths, NaN or infinity.
    """
    found = _load(path)
    listing = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in found.items()) or "nothing"
    if labels and y not in found:
        raise BadInput(f"{path}: no labels '{y}'; it has {listing}.", "Name them with --y.")
    wanted = list(inputs) if inputs else [x] if x in found else [name for name in found if name != y]
    chosen: dict[str, NDArray[Any]] = {}
    for name in wanted:
        key = name if name in found else x if len(wanted) == 1 else name
        if key not in found:
            raise BadInput(f"{path}: no array '{key}' for the model's input '{name}'; it has {listing}.", _hint(inputs))
        chosen[name] = _samples(path, key, found[key], None if inputs is None else inputs[name])
    if not chosen:
        raise BadInput(f"{path}: no inputs; it has {listing}.", "Name them with --x.")
    marks = _labels(path, y, found[y]) if y in found and y not in wanted else None
    lengths = {name: len(array) for name, array in chosen.items()} | ({} if marks is None else {y: len(marks)})
    if len(set(lengths.values())) > 1:
        raise BadInput(f"{path}: arrays of different lengths: {lengths}.")
    if 0 in lengths.values():
        raise BadInput(f"{path}: no samples; it has {listing}.")
    return Labelled(chosen, marks)


def read_data(
    path: Path,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    *,
    x: str = "x",
    y: str = "y",
    preprocess: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Samples:
    """Read a network's data: an .npz (`read_arrays`), or a folder or zip of images or of .wav clips in class folders or
    with a labels.csv, which a preprocess.toml beside them or `preprocess` makes into inputs.

    At most `limit` samples, drawn by `seed`. Raises BadInput for what cannot be read or does not fit `inputs`.
    """
    from octavo.verify import images, sound
    from octavo.verify.files import open_files
    from octavo.verify.labels import list_samples
    from octavo.verify.lazy import chosen
    from octavo.verify.preprocess import require_preprocess

    suffix = path.suffix.lower()
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder.")
    if suffix == ".npz":
        arrays = read_arrays(path, inputs, x=x, y=y)
        if preprocess is not None:
            note = f"{preprocess.name} is for images and sound: the arrays of {path.name} are taken as they are."
            arrays = Labelled(arrays.inputs, arrays.labels, (note,))
        return arrays if limit is None else arrays.take(chosen(len(arrays), limit, seed))
    if suffix != ".zip" and not path.is_dir():
        kinds = ", ".join(KINDS)
        raise BadInput(f"{path}: data is {kinds}, or a folder of images or clips. {nearest(suffix, KINDS)}")
    files = open_files(path)
    clips = not any(name.lower().endswith(images.SUFFIXES) for name in files.names) and any(
        name.lower().endswith(sound.SUFFIXES) for name in files.names
    )
    kind = sound if clips else images
    how = require_preprocess(path, preprocess, kind.EXAMPLE)
    listing = list_samples(files, kind.SUFFIXES, how.classes)
    read = sound.read_clips if clips else images.read_images
    return read(files, listing, inputs, how, limit=limit, seed=seed)


def read_text(
    path: Path,
    encode: Callable[[str], Sequence[int]],
    *,
    length: int,
    bos: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    offsets: Callable[[str], Sequence[tuple[int, int]]] | None = None,
) -> Text:
    """Cut a text into windows for a language model.

    Documents are separated by a line `<|eos|>` or `<|endoftext|>`; each is tokenised alone, without special tokens, and
    cut into pieces of at most `length` − 1 tokens, each preceded by `bos` if there is one (if not, a piece's first
    token is context only). `limit` windows are chosen by `seed`, in the order of the text. `offsets` gives each token's
    (start, end) characters, for byte counts per window; without it a document's bytes are shared out by tokens.
    Raises BadInput for a text that is binary, empty or too short to score one token.
    """
    if length < 2 or (limit is not None and limit < 1):
        raise BadInput(
            f"{limit} windows of {length} tokens score nothing.", "Use 1 or more windows of 2 or more tokens."
        )
    pieces: list[Window] = []
    exact = offsets is not None
    documents = _documents(path)
    for number, text in enumerate(documents):
        ids = np.asarray(encode(text), np.int64)
        spans = offsets(text) if offsets is not None else None
        exact &= spans is not None and len(spans) == len(ids)
        if bos is not None and len(ids) and ids[0] == bos:  # a tokenizer that adds it itself
            ids, spans = ids[1:], spans and spans[1:]
        ends = _ends(text, len(ids), spans)
        pieces.extend(_pieces(ids, ends, length - 1, bos, number))
    if not pieces:
        raise BadInput(f"{path}: its {len(documents)} documents have no token to score.", "Give a longer text.")
    chosen = pieces
    if limit is not None and limit < len(pieces):
        picks = np.random.default_rng(seed).choice(len(pieces), limit, replace=False)
        chosen = [pieces[i] for i in np.sort(picks)]
    used = len({window.document for window in chosen})
    by_document = used >= MIN_DOCUMENT_CLUSTERS
    windows = tuple(Window(w.ids, w.bytes, w.document, w.document if by_document else i) for i, w in enumerate(chosen))
    kind = "document" if by_document else "window"
    return Text(windows, len(documents), len(pieces), kind, exact)


def split(
    groups: int | Sequence[int], seed: int = 0, share: float = 0.2
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that calibrate (a seeded fifth) and indices that evaluate: sorted, disjoint, together everything.

    `groups`: how many samples there are, or the group of each (the document of each window): none is on both sides.
    Raises BadInput when there are fewer than two groups.
    """
    member = np.arange(groups) if isinstance(groups, int) else np.asarray(groups)
    names = np.unique(member)
    if len(names) < 2:
        raise BadInput(f"{len(names)} samples cannot be split in two.", "Give calibration data of its own.")
    order = np.random.default_rng(seed).permutation(names)
    calibrates = np.isin(member, order[: max(1, round(share * len(names)))])
    return np.flatnonzero(calibrates).astype(np.int64), np.flatnonzero(~calibrates).astype(np.int64)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: cannot be read as .npz ({error}).", "Write it with numpy.savez.") from error


def _hint(inputs: Mapping[str, tuple[int, ...]] | None) -> str:
    return f"The model's inputs are {', '.join(inputs)}; name the array with --x." if inputs else "Name it with --x."


def _samples(path: Path, name: str, array: NDArray[Any], shape: tuple[int, ...] | None) -> NDArray[Any]:
    """One input, checked: numeric, finite, of the model's shape behind the batch axis."""
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise BadInput(f"{path}: array '{name}' {list(array.shape)} {array.dtype} is no batch of numbers.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise BadInput(f"{path}: array '{name}' holds {count} NaN or infinite values of {array.size}.")
    if shape is not None and not fits(array.shape, shape):
        raise BadInput(
            f"{path}: array '{name}' is {list(array.shape)}; the model's input is {['batch', *shape[1:]]}.",
            turned(array.shape, shape) or "Reshape it, or name another array with --x.",
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _labels(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """Class numbers; a trailing axis of one is dropped, whole floats are taken, anything else is refused."""
    if array.ndim > 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype.kind not in "iubf" or array.ndim < 1:
        raise BadInput(f"{path}: labels '{name}' {list(array.shape)} {array.dtype} are no class numbers.")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise BadInput(f"{path}: labels '{name}' are floats that are no whole numbers.", "Give integer class numbers.")
    if array.size and array.min() < 0:
        raise BadInput(f"{path}: labels '{name}' go down to {array.min()}.", "Class numbers start at 0.")
    return array.astype(np.int64)


def _documents(path: Path) -> list[str]:
    """The documents of a text file, without blank lines at their ends; empty ones are left out."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: no UTF-8 text (byte {error.start}).", "Give a plain text file.") from error
    if "\0" in text:
        raise BadInput(f"{path}: binary (a zero byte at {raw.index(0)}).", "Give a plain text file.")
    documents: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip() in SEPARATORS:
            documents.append([])
        else:
            documents[-1].append(line)
    found = [text for lines in documents if (text := "\n".join(lines).strip("\r\n"))]
    if not any(text.strip() for text in found):
        raise BadInput(f"{path}: empty.", "Give a text with at least a few words.")
    return found


def _ends(text: str, count: int, spans: Sequence[tuple[int, int]] | None) -> NDArray[np.float64]:
    """Bytes of `text` up to the end of each token, with 0 in front: float64 [count + 1]."""
    whole = len(text.encode())
    if spans is None or len(spans) != count:
        return np.linspace(0.0, whole, count + 1)
    lengths = np.cumsum([0] + [len(character.encode()) for character in text])
    ends = np.maximum.accumulate([0] + [min(end, len(text)) for _, end in spans])
    ends[-1] = len(text)
    return np.asarray(lengths[ends], np.float64)


def _pieces(
    ids: NDArray[np.int64], ends: NDArray[np.float64], size: int, bos: int | None, document: int
) -> Iterator[Window]:
    """Pieces with at least one scored token."""
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        stop, first = start + len(piece), start if bos is not None else start + 1
        if stop > first:
            window = piece if bos is None else np.concatenate([[bos], piece])
            yield Window(window.astype(np.int64), float(ends[stop] - ends[first]), document, document)
