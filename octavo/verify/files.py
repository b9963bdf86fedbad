"""The files of a data set: a folder or a zip, listed and read by name. Nothing is ever unpacked to disk."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from octavo.errors import BadInput

MOST_BYTES = 1 << 26  # of one file: a photograph or a minute of sound is far below
MOST_FILES = 2_000_000
MOST_RATIO = 500  # unpacked over packed, above a megabyte: no picture or sound packs so well
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}


class Files(Protocol):
    """Files by their names, relative and with forward slashes."""

    path: Path
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The bytes of one. Raises BadInput, which names it, when it is damaged or too large."""
        ...


def open_files(path: Path) -> Files:
    """A folder or a .zip. Raises BadInput for anything else, and for what cannot be read."""
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder.")
    files: Files = Folder(path) if path.is_dir() else Archive(path)
    if len(files.names) > MOST_FILES:
        raise BadInput(f"{path}: {len(files.names):,} files; at most {MOST_FILES:,} are read.")
    return files


class Folder:
    """The files below a folder, sorted by name; hidden ones are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = (item.relative_to(path) for item in path.rglob("*") if item.is_file())
        self.names = tuple(sorted(item.as_posix() for item in found if not _is_junk(item.parts)))

    def read(self, name: str) -> bytes:
        place = self.path / name
        try:
            _check_size(f"{place}", place.stat().st_size)
            return place.read_bytes()
        except OSError as error:
            raise BadInput(f"{place}: {error.strerror}.") from error


class Archive:
    """The members of a zip, sorted by name, read one at a time from the open file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise BadInput(f"{path}: cannot be read as .zip ({error}).", "Is the download complete?") from error
        members = {item.filename: item for item in self._zip.infolist() if not item.is_dir()}
        for name in members:
            place = PurePosixPath(name.replace("\\", "/"))
            if ".." in place.parts or place.is_absolute() or ":" in place.parts[0]:
                raise BadInput(f"{path}: holds '{name}', a path outside of itself.", "Do not trust this file.")
        self._members = {name: item for name, item in members.items() if not _is_junk(PurePosixPath(name).parts)}
        self.names = tuple(sorted(self._members))

    def read(self, name: str) -> bytes:
        member = self._members[name]
        what = f"{self.path}: {name}"
        _check_size(what, member.file_size)
        if member.file_size > max(1 << 20, MOST_RATIO * member.compress_size):
            raise BadInput(f"{what} unpacks from {member.compress_size:,} to {member.file_size:,} bytes.")
        if member.flag_bits & 1:
            raise BadInput(f"{what} is encrypted.", "Pack it without a password.")
        try:
            return self._zip.read(member)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise BadInput(f"{what} is damaged ({error}).", "Pack or download it again.") from error


def _check_size(what: str, size: int) -> None:
    if size > MOST_BYTES:
        raise BadInput(f"{what} has {size:,} bytes; at most {MOST_BYTES:,} are read.")


def _is_junk(parts: tuple[str, ...]) -> bool:
    """What file managers leave behind: resource forks, thumbnails, hidden files."""
    return any(part in JUNK or part.startswith(".") for part in parts)
