"""The files of an .mlpackage: a directory with Manifest.json, the program and its weights. No coremltools is needed.

Core ML's own writer names the two items by fresh UUIDs; ours are derived from the compressed model's digest, so that
the same model gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from octavo.errors import BadInput

MANIFEST, DATA = "Manifest.json", "Data"
MODEL, WEIGHTS = "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"
WEIGHT_FILE = "weight.bin"
AGAIN = "The package is incomplete or damaged; export it again."


def write_package(path: Path, model: Path, weights: Path, digest: str) -> None:
    """Make the package in the directory `path` of a model file and a folder of weights, and sync it."""
    names = {
        MODEL: ("model.mlmodel", "CoreML Model Specification"),
        WEIGHTS: ("weights", "CoreML Model Weights"),
    }
    ids = {place: str(uuid.uuid5(uuid.NAMESPACE_OID, f"octavo:{digest}:{place}")) for place in names}
    entries = {
        ids[place]: {"author": "com.apple.CoreML", "description": what, "name": name, "path": place}
        for place, (name, what) in names.items()
    }
    body = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": ids[MODEL]}
    for source, place in ((model, MODEL), (weights / WEIGHT_FILE, f"{WEIGHTS}/{WEIGHT_FILE}")):
        target = path / DATA / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():  # a program whose every constant is small has no file of weights
            shutil.copyfile(source, target)
    (path / MANIFEST).write_text(json.dumps(body, indent=4, sort_keys=True), "utf-8")
    for file in sorted(path.rglob("*")):
        if file.is_file():
            _sync(file)


def model_file(path: Path) -> Path:
    """The program's file, as Manifest.json names it. Raises BadInput for what is no package or lacks it."""
    if not path.is_dir():
        raise BadInput(f"{path}: an ML package is a directory, and this is none.", AGAIN)
    try:
        body = json.loads((path / MANIFEST).read_text("utf-8"))
        place = body["itemInfoEntries"][body["rootModelIdentifier"]]["path"]
        if not isinstance(place, str) or Path(place).is_absolute() or ".." in Path(place).parts:
            raise ValueError(f"its model lies at {place!r}")
    except OSError as error:
        raise BadInput(f"{path}: {MANIFEST}: {error.strerror}.", AGAIN) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: {MANIFEST} is damaged ({type(error).__name__}: {error}).", AGAIN) from error
    file = path / DATA / place
    if not file.is_file():
        raise BadInput(f"{path}: its program should be {file}, and no such file is there.", AGAIN)
    return file


def package_files(path: Path) -> list[Path]:
    """Every file of the package, Manifest.json first. Raises BadInput like `model_file`."""
    model_file(path)
    rest = sorted(file for file in path.rglob("*") if file.is_file() and file != path / MANIFEST)
    return [path / MANIFEST, *rest]


def _sync(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
