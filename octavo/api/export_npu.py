"""Export for an NPU by name: the runtime's file is compiled by the NPU's own compiler, and both are kept."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.api.export import NOT_WRITTEN, Asked, Stopped, lowered, widened
from octavo.core.manifest import Manifest
from octavo.core.model import CompressedModel
from octavo.core.placement import asked_for, fallback_gates, fallbacks
from octavo.core.store import new_path
from octavo.errors import BadInput
from octavo.records import ExportRecord

if TYPE_CHECKING:
    from octavo.runtimes.base import Runtime
    from octavo.runtimes.npu.report import NpuReport

AS_IT_IS = "A finished file is compiled as it is; its weights were not compared with a compressed model's."


def export_ethos(given: Path, model: CompressedModel | None, target: Runtime, path: Path, asked: Asked) -> ExportRecord:
    """Lower to an int8 .tflite (or take a finished one), compile it with Vela, and write both: `path` is the NPU's
    program, `STEM.int8.tflite` the form whose weights were proved and whose accuracy is measured."""
    from octavo.runtimes.npu.compiled import form_of, operators_of, sidecar_of, write_sidecar
    from octavo.runtimes.npu.ethos_u import compile_for
    from octavo.runtimes.npu.report import write_operators

    names = {
        "compiled": path, "int8 form": form_of(path), "operators": operators_of(path), "manifest": sidecar_of(path)
    }  # fmt: skip
    keep = given.is_file() and given.resolve() == names["int8 form"].resolve()  # it lies where it would be copied to
    with ExitStack() as stack:
        made = {
            what: given if keep and what == "int8 form" else stack.enter_context(new_path(file, force=asked.force))
            for what, file in names.items()
        }
        form = made["int8 form"]
        facts = _int8_form(given, model, target, form, asked)
        report = compile_for(form, asked.units[0], made["compiled"])
        write_operators(report, made["operators"])
        write_sidecar(
            made["manifest"], path, names["int8 form"], report, digest=facts["digest"], weights=facts["weights"]
        )
        notes = [f"{names['int8 form'].name}: the int8 form; weights and accuracy are its own.", *report.notes]
        record = _record(path, target, made["compiled"].stat().st_size, report, asked, facts, notes)
        if record.gates:
            raise Stopped(record)
    return replace(record, files={what: str(file) for what, file in names.items()})


def export_hexagon(
    given: Path, model: CompressedModel | None, target: Runtime, path: Path, asked: Asked
) -> ExportRecord:
    """Lower to a static .onnx (or take a finished one), compile it with QNN, and write both: `path` runs anywhere,
    `STEM.hexagon.onnx` holds the context binary, which spares the device the compilation."""
    from octavo.runtimes.npu.qnn import compile_onnx

    names = {"model": path, "context": path.with_name(f"{path.stem}.hexagon{path.suffix}")}
    keep = given.is_file() and given.resolve() == path.resolve()
    with ExitStack() as stack:
        made = {
            what: given if keep and what == "model" else stack.enter_context(new_path(file, force=asked.force))
            for what, file in names.items()
        }
        facts = _int8_form(given, model, target, made["model"], asked)
        try:
            report = compile_onnx(made["model"], made["context"])
            record = _record(path, target, _size(target, made["model"]), report, asked, facts, list(report.notes))
            if record.gates:
                raise Stopped(record)
        except BaseException:
            target.discard(made["model"])
            raise
        if not made["context"].is_file():  # the NPU takes nothing: there is nothing to keep
            names.pop("context")
            made["context"].write_bytes(b"")
            stack.callback(path.with_name(f"{path.stem}.hexagon{path.suffix}").unlink, missing_ok=True)
    line = f"octavo run {path} --input X.npz --unit hexagon"
    return replace(record, run_line=line, files={what: str(file) for what, file in names.items()})


def _int8_form(given: Path, model: CompressedModel | None, target: Runtime, form: Path, asked: Asked) -> dict[str, Any]:
    """Put the runtime's file at `form`: lowered from a compressed model and proved, or a finished one as it is."""
    if model is None:
        if form != given:
            shutil.copyfile(given, form)
        manifest, parameters = _manifest_of(target, form), None
        return {
            "digest": manifest.digest if manifest else "", "weights": "unknown", "widened": (), "notes": (AS_IT_IS,),
            "parameters": parameters,
        }  # fmt: skip
    if not model.edges:
        raise BadInput(
            f"{given}: its activations are not quantised, and {asked.units[0]} computes in integers.",
            "Compress with --scheme w8a8 and --calibration DATA.",
        )
    manifest = lowered(model, given, target, form, asked)
    return {
        "digest": model.digest, "weights": "exact", "widened": widened(manifest), "notes": manifest.notes,
        "parameters": model.parameters,
    }  # fmt: skip


def _manifest_of(target: Runtime, path: Path) -> Manifest | None:
    """The manifest of a finished file, if it has one of ours. Raises BadInput where it contradicts itself."""
    read_back = target.read_back(path)
    try:
        return read_back.manifest
    finally:
        read_back.close()


def _record(
    path: Path, target: Runtime, size: int, report: NpuReport, asked: Asked, facts: dict[str, Any], notes: list[str]
) -> ExportRecord:
    rows = tuple(item.row() for item in asked_for(report.placement, report.target, ""))
    gates = fallback_gates(rows, asked.no_fallback)
    parameters = facts["parameters"]
    return ExportRecord(
        path=str(path),
        runtime=target.name,
        bytes=size,
        digest=facts["digest"],
        weights=facts["weights"],
        placement=rows,
        widened=facts["widened"],
        notes=(*facts["notes"], *notes, *((NOT_WRITTEN,) if gates else ())),
        run_line="",
        bits_per_weight=8 * size / max(parameters, 1) if parameters else None,
        unit=report.target,
        fallback=fallbacks(rows),
        npu=report.as_dict(),
        gates=gates,
    )


def _size(target: Runtime, path: Path) -> int:
    return sum(file.stat().st_size for file in target.files(path))
