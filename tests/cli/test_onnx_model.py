"""An .onnx file as MODEL, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")


def octavo(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "octavo", *map(str, words)], capture_output=True, text=True)


def test_compress_export_verify_and_fit(shared: Path, tmp_path: Path) -> None:
    """The silero speech detector: its If is decided on the command line; every command takes the same --fix."""
    model = shared / "data/audio/silero_vad/silero_vad.onnx"
    fix = ["--fix", "sr=16000", "--fix", "input=1x576", "--fix", "state=2x1x128"]
    folded, file = tmp_path / "x", tmp_path / "x.onnx"
    made = octavo("compress", model, "--scheme", "w8", "-o", folded, "--json", *fix)
    assert made.returncode == 0, made.stderr
    record = json.loads(made.stdout)
    assert sum(tensor["scheme"] == "w8" for tensor in record["tensors"]) == 8
    assert octavo("export", folded, "--runtime", "onnxruntime", "-o", file).returncode == 0
    checked = octavo("verify", file, "--against", model, "--json", *fix)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["weights"] == "exact"
    fitted = octavo("fit", model, "--scheme", "w8", "--runtime", "onnxruntime", "-o", tmp_path / "f", "--json", *fix)
    assert fitted.returncode == 0, fitted.stderr
    assert json.loads(fitted.stdout)["chosen"] == "w8.onnx"


def test_what_is_missing_is_asked_for(shared: Path, tmp_path: Path) -> None:
    model = shared / "data/audio/silero_vad/silero_vad.onnx"
    found = octavo("compress", model, "--scheme", "w8", "-o", tmp_path / "x")
    assert found.returncode == 1
    assert "--fix input=1x" in found.stderr
    assert "Traceback" not in found.stderr


def test_outputs_are_compared_on_the_data(shared: Path, tmp_path: Path) -> None:
    model = shared / "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx"
    folded, file, data = tmp_path / "x", tmp_path / "x.onnx", tmp_path / "d.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float32))
    assert octavo("compress", model, "--scheme", "w8", "-o", folded).returncode == 0
    assert octavo("export", folded, "--runtime", "onnxruntime", "-o", file).returncode == 0
    checked = octavo("verify", file, "--against", model, "--data", data, "--min-sqnr", "25", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads(checked.stdout)["outputs"]["sqnr_db"] > 25
