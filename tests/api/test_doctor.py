"""`doctor`: "works" means that it worked just now, and no extra of the package is forgotten."""

from __future__ import annotations

import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from octavo.api.doctor import LEFT_OUT, doctor, extras
from octavo.api.doctor_units import unit_rows
from octavo.runtimes.base import Availability
from octavo.runtimes.onnx import selfcheck

ROOT = Path(__file__).resolve().parents[2]


def by_name(items: tuple[dict[str, Any], ...], key: str) -> dict[str, dict[str, Any]]:
    return {item[key]: item for item in items}


def test_what_is_installed_works_and_every_unit_has_an_answer() -> None:
    pytest.importorskip("xllamacpp")
    record = doctor()
    runtimes, listed = by_name(record.runtimes, "runtime"), by_name(record.extras, "extra")
    assert all(item["works"] and "cpu" in item["units"] for item in runtimes.values()), runtimes
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(listed) == set(declared) - set(LEFT_OUT)
    units = {(item["runtime"], item["unit"]): item for item in record.units}
    assert {(name, unit) for name in runtimes for unit in ("cpu", "gpu", "npu")} <= set(units)
    assert all(units[name, "cpu"]["works"] for name in runtimes)
    assert all(item["works"] or (item["reason"] and item["remedy"]) for item in units.values())
    if find_spec("ethosu"):
        assert "ethos-u-vela" in units["litert", "ethos-u"]["reason"]
    if find_spec("onnxruntime_qnn"):
        assert "licence" in units["onnxruntime", "hexagon"]["reason"]


def test_a_compiler_that_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows = {item["unit"]: item for item in unit_rows({"litert": Availability(True), "onnxruntime": Availability(True)})}
    assert not rows["ethos-u"]["works"]
    assert "octavo[ethos]" in rows["ethos-u"]["remedy"]
    assert "octavo[qnn]" in rows["hexagon"]["remedy"]


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
