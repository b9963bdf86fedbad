"""The rooms: who may import whom, and what `import octavo` may load. Read from the sources, not from habit."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "octavo"
MIDDLE = {"sources", "compress", "plan", "runtimes", "verify", "bench", "report"}
BELOW = {
    "cli": {"api", "report", "records", "errors", "core", "cli"},
    "api": MIDDLE | {"workers", "core", "records", "errors", "api"},
    **{room: {room, "workers", "core", "errors"} for room in MIDDLE},
    "report": {"report", "core", "records", "errors"},
    "workers": {"workers", "core", "errors"},
    "core": {"core", "errors"},
    "errors": set(),
    "records": {"errors"},
}
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "gguf", "xllamacpp", "numba", "tokenizers", "onnxscript"}
CORE_MAY_USE = {"numpy", "octavo", *sys.stdlib_module_names}


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room(path) not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("octavo.")}
    used -= {"__version__"}
    assert used <= BELOW[room(path)], f"{room(path)} must not import {sorted(used - BELOW[room(path)])}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "core"], ids=lambda p: p.name)
def test_core_needs_only_numpy(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} <= CORE_MAY_USE


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split("\n")[-2].split())


def test_import_octavo_is_light() -> None:
    assert not loaded_by("import octavo") & (HEAVY | {"numpy"})


def test_the_api_is_light_until_a_verb_runs() -> None:
    assert not loaded_by("import octavo.api") & HEAVY


def test_folding_a_hugging_face_model_loads_no_torch(stories260k: Path, tmp_path: Path) -> None:
    statement = f"import octavo; octavo.compress({str(stories260k)!r}, scheme='w8', out={str(tmp_path / 'x')!r})"
    assert not loaded_by(statement) & {"torch", "transformers", "onnx", "onnxruntime", "xllamacpp"}
