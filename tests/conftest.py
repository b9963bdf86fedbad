"""Fixtures that many tests share. Every trained or converted model is made once per session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data; its absence skips the test, except where it is required."""
    path = Path(os.environ.get("OCTAVO_SHARED", ROOT.parent / "shared"))
    path = path if path.is_absolute() else (ROOT / path).resolve()
    if not (path / "data").is_dir():
        message = f"no real models and data at {path} (set OCTAVO_SHARED)"
        pytest.fail(message) if os.environ.get("OCTAVO_REQUIRE_SHARED") else pytest.skip(message)
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
        pytest.skip("octavo-tiny-8m is absent")
    return path
