"""The README's commands, typed as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks, run_python, run_shell

from octavo.core.scheme import SCHEMES

README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, stories3m: Path, shared: Path) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(stories3m, folder / "model")
    text = (shared / "data/text/tinystories/stories_a.txt").read_text("utf-8")
    (folder / "text.txt").write_text(text[:60_000], "utf-8")
    return folder


@pytest.mark.parametrize(
    "block", [b for b in blocks(README, "sh") if "octavo " in b.text], ids=lambda b: " ".join(b.text.split()[:2])
)
def test_shell_blocks_run(block: Block, folder: Path) -> None:
    result = run_shell(block.text, folder)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("block", blocks(README, "python"), ids=lambda b: b.text.split("\n")[0])
def test_python_blocks_run(block: Block, folder: Path) -> None:
    result = run_python(block.text, folder)
    assert result.returncode == 0, result.stderr[-2000:]


def test_every_scheme_is_listed_and_exists() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed == set(SCHEMES)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
