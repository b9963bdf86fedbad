"""Fixtures that many tests share. Every trained or converted model is made once per session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def absent(message: str) -> None:
    """Skip for absent data; where it is required, that is a failure."""
    pytest.fail(message) if os.environ.get("OCTAVO_REQUIRE_SHARED") else pytest.skip(message)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data; its absence skips the test, except where it is required."""
    path = Path(os.environ.get("OCTAVO_SHARED", ROOT.parent / "shared"))
    path = path if path.is_absolute() else (ROOT / path).resolve()
    if not (path / "data").is_dir():
        absent(f"no real models and data at {path} (set OCTAVO_SHARED)")
    return path


@pytest.fixture(scope="session")
def stories3m(shared: Path) -> Path:
    return shared / "data/lm/stories3M/hf"


@pytest.fixture(scope="session")
def stories260k(shared: Path) -> Path:
    return shared / "data/lm/stories260K/hf"


@pytest.fixture(scope="session")
def tiny8m(shared: Path) -> Path:
    path = shared / "data/lm/octavo-tiny-8m"
    if not path.is_dir():
        absent(f"{path} is absent")
    return path


@dataclass(frozen=True)
class Built:
    """A real model folded once, its copy of the source deleted, and then exported to both runtimes."""

    source: Path
    directory: Path
    artifacts: dict[str, Path]
    exports: dict[str, Any]


@pytest.fixture(scope="session")
def built(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """built("stories260K"): w4g32 on both runtimes, made from a source that was gone before the exports began."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    import octavo

    made: dict[str, Built] = {}

    def of(name: str) -> Built:
        if name not in made:
            source, home = shared / f"data/lm/{name}/hf", tmp_path_factory.mktemp(name)
            moved = Path(shutil.copytree(source, home / "source"))
            octavo.compress(moved, scheme="w4g32", out=home / "folded", allow_skip=name == "stories260K")
            shutil.rmtree(moved)
            suffixes = {"llamacpp": ".gguf", "onnxruntime": ".onnx"}
            files = {runtime: home / f"m{suffix}" for runtime, suffix in suffixes.items()}
            exports = {key: octavo.export(home / "folded", runtime=key, out=path) for key, path in files.items()}
            made[name] = Built(source, home / "folded", files, exports)
        return made[name]

    return of
