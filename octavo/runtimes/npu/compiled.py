"""A file compiled for an NPU, the int8 form that it was compiled from, and the sidecar that says which is which.

The compiled file holds the NPU's program, which no reader here decodes. So its weights, outputs and accuracy are those
of the int8 form beside it, which is complete and runs on any CPU; that the one came from the other is proved by
compiling it again: the same compiler gives the same bytes.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.core.placement import Placement
from octavo.errors import BadInput
from octavo.runtimes.npu.report import NpuReport

FORMAT = "octavo.compiled/1"


@dataclass(frozen=True)
class Compiled:
    """What the sidecar of a compiled file says. `form`: the int8 form beside it."""

    path: Path
    form: Path
    target: str
    compiler: str
    digest: str
    weights: str
    placement: tuple[Placement, ...]
    report: dict[str, Any]


def form_of(path: Path) -> Path:
    """Where the int8 form of a compiled file lies."""
    return path.with_name(f"{path.stem}.int8{path.suffix}")


def operators_of(path: Path) -> Path:
    """Where the list of the NPU's operators lies."""
    return path.with_name(f"{path.stem}.operators.csv")


def sidecar_of(path: Path) -> Path:
    """Where the sidecar of a compiled file lies."""
    return path.with_name(f"{path.name}.octavo.json")


def write_sidecar(path: Path, compiled: Path, form: Path, report: NpuReport, *, digest: str, weights: str) -> None:
    """Write what `read_compiled` reads, to `path`. The two files are named without their directory."""
    body = {
        "format": FORMAT, "compiled": compiled.name, "int8_form": form.name, "target": report.target,
        "compiler": report.compiler, "digest": digest, "weights": weights,
        "placement": [item.row() for item in report.placement], "report": report.as_dict(),
    }  # fmt: skip
    path.write_text(json.dumps(body, indent=1), "utf-8")


def read_compiled(path: Path) -> Compiled | None:
    """The sidecar of `path`, None where there is none of ours. Raises BadInput when it is damaged, or the form gone."""
    side = sidecar_of(path)
    if not side.is_file():
        return None
    try:
        body = json.loads(side.read_text("utf-8"))
        if body.get("format") != FORMAT:
            return None
        fields = ("op", "unit", "reason", "asked", "share", "source")
        placement = tuple(Placement(**{key: row[key] for key in fields}) for row in body["placement"])
        found = Compiled(
            path, path.with_name(body["int8_form"]), body["target"], body["compiler"], body["digest"], body["weights"],
            placement, body["report"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{side}: damaged ({type(error).__name__}: {error}).", "Export it again.") from error
    if not found.form.is_file():
        raise BadInput(f"{path}: its int8 form {found.form.name} is not beside it.", "Keep the two together.")
    return found


def compiled_again(compiled: Compiled) -> tuple[str, NpuReport]:
    """Compile the int8 form again: "" if it gives the file byte for byte, else what does not hold; and the report.

    Raises Missing without the compiler.
    """
    from octavo.runtimes.npu.ethos_u import compile_for

    with tempfile.TemporaryDirectory(prefix="octavo-") as directory:
        again = Path(directory, compiled.path.name)
        report = compile_for(compiled.form, compiled.target, again)
        if again.read_bytes() == compiled.path.read_bytes():
            return "", report
    if report.compiler != compiled.compiler:
        return f"made by {compiled.compiler}; {report.compiler}, which is here, makes another file", report
    return f"{report.compiler} makes another file of {compiled.form.name}", report
