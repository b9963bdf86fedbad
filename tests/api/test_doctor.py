"""`doctor`: "works" means that it worked just now, and no extra of the package is forgotten."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from octavo.api.doctor import LEFT_OUT, doctor, extras
from octavo.runtimes.onnx import selfcheck

ROOT = Path(__file__).resolve().parents[2]


def by_name(items: tuple[dict[str, Any], ...], key: str) -> dict[str, dict[str, Any]]:
    return {item[key]: item for item in items}


def test_what_is_installed_works_and_what_nobody_uses_yet_is_said() -> None:
    pytest.importorskip("xllamacpp")
    record = doctor()
    runtimes, listed = by_name(record.runtimes, "runtime"), by_name(record.extras, "extra")
    assert all(item["works"] and item["units"] == ("cpu",) for item in runtimes.values()), runtimes
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(listed) == set(declared) - set(LEFT_OUT)
    assert {name for name, item in listed.items() if item["used"]} == {"compress", "llama"}
    assert all("Not used yet" in item["remedy"] for item in listed.values() if not item["used"])


def test_a_package_that_is_there_but_broken_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child imports from the parent's path: a package there that dies on import stands for a broken build."""
    for name in ("onnxruntime", "xllamacpp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "xllamacpp" / "xllamacpp.so").write_bytes(b"no library")
    found = by_name(doctor().runtimes, "runtime")
    assert not found["onnxruntime"]["works"]
    assert "SIGABRT" in found["onnxruntime"]["reason"]
    assert found["onnxruntime"]["remedy"]
    assert not found["llamacpp"]["works"]
    assert "xllamacpp.so cannot be loaded" in found["llamacpp"]["reason"]


def test_wrong_numbers_are_no_working_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selfcheck.check() == ""
    monkeypatch.setattr(selfcheck, "SCALE", 0.25)  # here alone, not in the worker: they disagree
    assert "[[16.0]], not [[8.0]]" in selfcheck.check()


def test_extras_come_from_requirement_lines() -> None:
    lines = [
        "numpy>=2",
        "torch>=2; extra == 'compress'",
        'a-b.c[x]>=1; python_version > "3" and extra == "q"',
        "pytest; extra == 'dev'",
    ]
    assert extras(lines) == {"compress": ("torch",), "q": ("a-b.c",)}
