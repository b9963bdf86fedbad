"""Which reader a path goes to, what is refused with which remedy, and bare sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from octavo.errors import BadInput
from octavo.sources.facts.open import read_facts
from octavo.sources.facts.params import bare_size


@pytest.mark.parametrize(
    ("text", "count"),
    [("7B", 7_000_000_000), ("1.5B", 1_500_000_000), ("350M", 350_000_000), ("0.1k", 100), ("1.8t", 1_800_000_000_000),
     ("1235814400", 1_235_814_400), (" 3 b ", 3_000_000_000), ("1.1B", 1_100_000_000)],
)  # fmt: skip
def test_bare_sizes_are_exact(text: str, count: int) -> None:
    facts = bare_size(text)
    assert (facts.kind, facts.parameters, facts.active_parameters) == ("size", count, count)
    assert facts.missing


@pytest.mark.parametrize("text", ["", "B", "7G", "-7B", "7B7", "1e9", "0", "0.5", "1.0000000001B", "٧B", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not a count of parameters"):
        bare_size(text)


def test_one_of_the_two_is_given() -> None:
    for model, params in ((None, None), ("x", "7B")):
        with pytest.raises(BadInput, match="one of the two"):
            read_facts(model, params)


def test_tensorflow_is_refused_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / "model.h5").touch()
    with pytest.raises(BadInput, match="from_saved_model"):
        read_facts(tmp_path)
    with pytest.raises(BadInput, match="from_keras_model"):
        read_facts(tmp_path / "model.h5")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2"])
def test_code_needs_trust(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"m{suffix}").touch()
    with pytest.raises(BadInput, match=r"can run code.*--trust"):
        read_facts(tmp_path / f"m{suffix}")


def test_what_is_not_there_or_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_facts(tmp_path / "nothing.onnx")
    with pytest.raises(Exception, match="hub name"):
        read_facts("org/name")
    with pytest.raises(BadInput, match="neither"):
        read_facts(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(BadInput, match=r"\.txt.*no format"):
        read_facts(tmp_path / "a.txt")


def test_a_config_is_read_without_anything_heavy(stories260k: Path) -> None:
    code = f"""
import sys
from octavo.sources.facts.open import read_facts
read_facts({str(stories260k)!r}); read_facts(None, "7B")
print(" ".join(sys.modules))"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "onnx", "gguf", "onnxruntime", "xllamacpp", "numba"} & set(loaded)
