"""Documents whose commands and programs are run as they stand, and whose shown output is held to.

In a Markdown file
- a ```sh block is run by `sh -e` and must succeed;
- a ```console block holds `$ command` lines, each followed by lines of its output: all must appear, in that order. `…`
  stands for any text; where a line ends and how many blanks stand in a row is the terminal's. `# exit 3` behind a
  command says which exit code it must have;
- a ```python block is run; a ```text block right behind it is what it must print.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
_EXIT = re.compile(r"\s+# exit (\d+)$")


@dataclass(frozen=True)
class Block:
    """One fenced block, and the ```text block right behind it, if any."""

    language: str
    text: str
    shown: str | None


def blocks(document: str, language: str) -> list[Block]:
    """The blocks of one language, in order."""
    found = (Block(*match.groups()) for match in _BLOCK.finditer(document))
    return [block for block in found if block.language == language]


def commands(console: str) -> Iterator[tuple[str, int, list[str]]]:
    """(command, exit code, lines shown) of each `$` line of a ```console block."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, *rest = re.sub(r"\\\n\s*", "", part).rstrip().split("\n")
        code = _EXIT.search(command)
        yield _EXIT.sub("", command), int(code[1]) if code else 0, rest


def run_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it with this interpreter's scripts first on the path."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True)


def run_python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)


def check_shown(shown: list[str], output: str) -> None:
    """Fail with the first shown line that does not follow the one before it in the output (lines may be folded)."""
    rest = " ".join(output.split())
    for line in (" ".join(line.split()) for line in shown):
        found = re.search(".*?".join(re.escape(part) for part in line.split("…")), rest)
        assert found, f"not printed: {line!r}\n--- what was printed from there on:\n{rest}"
        rest = rest[found.end() :]
