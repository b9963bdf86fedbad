"""Which class each file of a data set belongs to: class folders, or a labels.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, nearest
from octavo.verify.files import Files

TABLE = "labels.csv"
FILE_COLUMNS = ("file", "filename", "path", "image", "name", "wav")
LABEL_COLUMNS = ("label", "class", "class_id", "label_id", "y", "target")


@dataclass(frozen=True)
class Listing:
    """File names and, beside each, its class number int64 [n] (None: no labels are there). `notes`: how it was read."""

    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    notes: tuple[str, ...]

    def pick(self, index: NDArray[np.int64]) -> Listing:
        labels = None if self.labels is None else self.labels[index]
        return Listing(tuple(self.names[i] for i in index), labels, self.notes)


def list_samples(files: Files, suffixes: Sequence[str], classes: tuple[str, ...] | None) -> Listing:
    """The files with one of `suffixes` and their classes: from a labels.csv if there is one, else from the folders that
    they lie in; files in no folder have no labels.

    Class numbers: a name's place in `classes`, where those are given; else names that are all whole numbers are the
    class numbers; else the place among the sorted names. Raises BadInput for what does not fit together.
    """
    tables = [name for name in files.names if PurePosixPath(name).name == TABLE]
    names = [name for name in files.names if PurePosixPath(name).suffix.lower() in suffixes]
    if not names:
        raise BadInput(f"{files.path}: no file with one of {', '.join(suffixes)} among {len(files.names)} files.")
    others = len(files.names) - len(names) - len(tables)
    notes = [f"{others} files of other kinds in {files.path.name} were left out."] if others else []
    if len(tables) > 1:
        raise BadInput(f"{files.path}: several tables: {', '.join(tables[:3])}.", "Give the folder of one of them.")
    found = _of_table(files, tables[0], names, classes) if tables else _of_folders(files, names, classes)
    return Listing(found.names, found.labels, (*notes, *found.notes))


def _of_folders(files: Files, names: Sequence[str], classes: tuple[str, ...] | None) -> Listing:
    parents = [PurePosixPath(name).parent for name in names]
    above = sorted({parent.parent.as_posix() for parent in parents})
    if len(set(parents)) == 1 and len(parents[0].parts) < 2 and (classes is None or parents[0].name not in classes):
        note = f"{files.path.name}: no class folders and no {TABLE}: compared without labels."
        return Listing(tuple(names), None, (note,))
    if len(above) > 1:
        shown = ", ".join(f"'{folder}/…'" for folder in above[:3])
        raise BadInput(
            f"{files.path}: class folders at several places: {shown}.",
            f"Give the one folder that holds the class folders, or a {TABLE}.",
        )
    order = sorted(range(len(names)), key=lambda i: (parents[i].name, names[i]))
    numbered, note = _numbers([parents[i].name for i in order], classes, f"{files.path}: folder", lambda at: "")
    return Listing(tuple(names[i] for i in order), numbered, (note,))


def _of_table(files: Files, table: str, names: Sequence[str], classes: tuple[str, ...] | None) -> Listing:
    where = f"{files.path}: {table}"
    rows = _rows(where, files.read(table))
    folder = PurePosixPath(table).parent
    known = set(names)

    def place(text: str) -> str:
        return (folder / text.strip().replace("\\", "/")).as_posix()

    file, label, header = _columns(where, rows, lambda text: place(text) in known)
    listed: dict[str, str] = {}
    for number, row in enumerate(rows[1:] if header else rows, start=2 if header else 1):
        if len(row) <= max(file, label):
            raise BadInput(f"{where}: row {number} has {len(row)} columns; expected {max(file, label) + 1} or more.")
        name = place(row[file])
        if name not in known:
            raise BadInput(f"{where}: row {number} lists '{row[file]}', which is not there.", nearest(row[file], names))
        if listed.setdefault(name, row[label].strip()) != row[label].strip():
            raise BadInput(f"{where}: row {number} labels '{row[file]}' a second time, otherwise.")
    if not listed:
        raise BadInput(f"{where}: no rows.", "Write one row per file: file,label.")
    numbered, note = _numbers(list(listed.values()), classes, f"{where}: label", lambda at: f" of {list(listed)[at]}")
    notes = [f"Labels from column {label + 1} ({rows[0][label]}) of {table}." if header else f"Labels from {table}."]
    left = len(known) - len(listed)
    notes += [f"{left} files that {table} does not list were left out."] if left else []
    return Listing(tuple(listed), numbered, (*notes, note))


def _rows(where: str, raw: bytes) -> list[list[str]]:
    try:
        text = raw.decode("utf-8-sig")
        first = text.split("\n", 1)[0]
        delimiter = next((mark for mark in ",;\t" if mark in first), ",")
        return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{where}: no table ({error}).", "Write it as UTF-8 CSV: file,label.") from error


def _columns(where: str, rows: Sequence[Sequence[str]], is_file: Callable[[str], bool]) -> tuple[int, int, bool]:
    """Which column names the file and which the label, and whether the first row is a header.

    A header is a first row in which nothing names a file; without a column of a known name: the first and the second.
    """
    if not rows or len(rows[0]) < 2:
        raise BadInput(f"{where}: expected two columns, file and label.")
    if any(is_file(cell) for cell in rows[0]):
        file = next(i for i, cell in enumerate(rows[0]) if is_file(cell))
        return file, 1 if file == 0 else 0, False
    head = [cell.strip().lower() for cell in rows[0]]
    file = next((head.index(name) for name in FILE_COLUMNS if name in head), 0)
    label = next((head.index(name) for name in LABEL_COLUMNS if name in head), 1 if file == 0 else 0)
    return file, label, True


def _numbers(
    names: Sequence[str], classes: tuple[str, ...] | None, where: str, of: Callable[[int], str]
) -> tuple[NDArray[np.int64], str]:
    """Class numbers of class names, and the note that says by which rule."""
    found = set(names)
    whole = all(name.isascii() and name.isdigit() and len(name) < 10 for name in found)
    if classes is not None and not (whole and not found <= set(classes)):
        wrong = next((i for i, name in enumerate(names) if name not in classes), None)
        if wrong is not None:
            raise BadInput(f"{where} '{names[wrong]}'{of(wrong)} is none of `classes`.", nearest(names[wrong], classes))
        number = {name: i for i, name in enumerate(classes)}
        return np.array([number[name] for name in names], np.int64), _order(classes, "as `classes` says")
    if whole:
        numbers = np.array([int(name) for name in names], np.int64)
        if classes is not None and numbers.max() >= len(classes):
            at = int(numbers.argmax())
            raise BadInput(f"{where} {names[at]}{of(at)}: `classes` has {len(classes)} names, from 0.")
        return numbers, f"Class numbers {numbers.min()} to {numbers.max()}, as given."
    order = sorted(found)
    number = {name: i for i, name in enumerate(order)}
    return np.array([number[name] for name in names], np.int64), _order(order, "sorted by name")


def _order(names: Sequence[str], rule: str) -> str:
    shown = [f"{i} {name}" for i, name in enumerate(names)]
    shown = shown if len(shown) <= 12 else [*shown[:5], "…", *shown[-2:]]
    return f"{len(names)} classes, {rule}: {', '.join(shown)}."
