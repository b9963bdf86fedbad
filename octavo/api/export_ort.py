"""Export to ONNX Runtime Mobile: FILE.ort, and beside it the operators that a reduced build needs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.api.export import NOT_WRITTEN, Asked, Stopped, lowered, opened, widened
from octavo.core.model import CompressedModel
from octavo.core.placement import fallback_gates, fallbacks
from octavo.core.store import new_path
from octavo.errors import Refused
from octavo.records import ExportRecord

if TYPE_CHECKING:
    from octavo.runtimes.base import Runtime

NUMERICS = "by numerics only"
SUFFIX = ".ort"


def export_ort(model: CompressedModel, directory: Path, target: Runtime, path: Path, asked: Asked) -> ExportRecord:
    """Lower to .onnx, prove its weights, convert it, and compare the outputs of both.

    Raises Refused for a model whose weights lie in a second file, which the format cannot have.
    """
    from octavo.runtimes.onnx.ort_format import RUNS, config_of, write_ort

    config = config_of(path)
    with (
        tempfile.TemporaryDirectory(prefix="octavo-") as home,
        new_path(config, force=asked.force) as listed,
        new_path(path, force=asked.force) as made,
    ):
        source = Path(home, "model.onnx")
        manifest = lowered(model, directory, target, source, asked)
        if len(target.files(source)) > 1:
            raise Refused(f"{directory}: too large for the .ort format, which is one file.", "Export to .onnx.")
        rows, unopened = opened(target, source, asked.units)
        found = write_ort(source, made, listed)
        gates = fallback_gates(rows, asked.no_fallback)
        size = made.stat().st_size
        notes = [
            "The .ort format has no public reader: its weights are exact in the .onnx it was converted from, and the "
            f"outputs of both differ by at most {found.difference:.2g} of the largest (n = {RUNS} random inputs).",
            f"Placement is that of the .onnx; optimisation style of the .ort: {found.style}.",
        ]
        record = ExportRecord(
            path=str(path),
            runtime=target.name,
            bytes=size,
            digest=model.digest,
            weights=NUMERICS,
            placement=rows,
            widened=widened(manifest),
            notes=(*manifest.notes, *unopened, *notes, *((NOT_WRITTEN,) if gates else ())),
            run_line="",
            bits_per_weight=8 * size / max(model.parameters, 1),
            unit=asked.units[0],
            fallback=fallbacks(rows),
            files={"model": str(path), "required operators": str(config)},
            gates=gates,
        )
        if gates:
            raise Stopped(record)
    return record
