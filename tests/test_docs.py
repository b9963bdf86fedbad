"""The documentation's commands and programs, run as they stand there; what they show is what is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks, check_shown, commands, run_python, run_shell

DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.name: path.read_text("utf-8") for path in DOCS}
CONSOLE = [
    (name, *entry) for name, text in TEXTS.items() for b in blocks(text, "console") for entry in commands(b.text)
]
PYTHON = [(name, block) for name, text in TEXTS.items() for block in blocks(text, "python")]


@pytest.mark.parametrize(("name", "command", "code", "shown"), CONSOLE, ids=[f"{c[0]}: {c[1][:60]}" for c in CONSOLE])
def test_commands_print_what_is_shown(name: str, command: str, code: int, shown: list[str], tmp_path: Path) -> None:
    result = run_shell(command, tmp_path)
    assert result.returncode == code, result.stderr[-2000:]
    check_shown(shown, result.stdout)


@pytest.mark.parametrize("block", [b for text in TEXTS.values() for b in blocks(text, "sh") if "octavo " in b.text])
def test_shell_blocks_run_on_the_shared_models(block: Block, shared: Path, tmp_path: Path) -> None:
    model = shared / "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx"
    if not model.is_file():
        pytest.skip(f"{model} is absent")
    (tmp_path / "squeezenet.onnx").symlink_to(model)
    result = run_shell(block.text, tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "behind" in result.stdout


@pytest.mark.parametrize(("name", "block"), PYTHON, ids=[f"{n}: {b.text.splitlines()[0]}" for n, b in PYTHON])
def test_programs_print_what_is_shown(name: str, block: Block, tmp_path: Path) -> None:
    result = run_python(block.text, tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    check_shown((block.shown or "").splitlines(), result.stdout)


def test_the_three_worked_answers_are_commands_and_programs_of_the_docs() -> None:
    shown = TEXTS["does-it-fit.md"]
    for answer in (
        "1.4 GB",
        "0.03726",
        "0.00934",
        "1.0793 %",
        "0.262",
        "$1,000,000 a day",
        "65 ms",
        "25 J a day",
        "120 ms",
    ):
        assert any(answer in part for part in re.findall(r"```(?:console|text)\n(.*?)```", shown, re.DOTALL)), answer


def test_links_between_documents_lead_somewhere() -> None:
    for path in (*DOCS, ROOT / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
