"""Stage two: a compressed model in, a runtime's file out, read back before it is called done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.api.load import load
from octavo.api.placing import open_on
from octavo.api.programs import ModelPrograms
from octavo.core.manifest import Manifest
from octavo.core.model import CompressedModel
from octavo.core.placement import asked_for, fallback_gates, fallbacks
from octavo.core.store import new_path
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.core.units import ETHOS_U, HEXAGON, TARGETS, parse_units
from octavo.errors import BadInput, Missing, OctavoError
from octavo.records import ExportRecord

if TYPE_CHECKING:
    from octavo.runtimes.base import Runtime

Progress = Callable[[str, int, int], None]
IO, LAYOUTS = ("float", "int8"), ("nchw", "nhwc")
BY_TABLE = "No phone was asked: placement is by ONNX Runtime's tables for NNAPI and Core ML, without their caveats."
NOT_WRITTEN = "No file was written: --no-fallback."


@dataclass(frozen=True)
class Asked:
    """What an export was asked for beside the model. `ends`: io and layout, where they were given."""

    units: tuple[str, ...]
    ends: dict[str, str]
    no_fallback: bool
    force: bool
    progress: Progress


class Stopped(Exception):
    """A gate does not hold and nothing is to be left behind: ends the blocks that would put files in place."""

    def __init__(self, record: ExportRecord) -> None:
        super().__init__()
        self.record = record


def export(
    directory: str | Path,
    *,
    runtime: str,
    out: str | Path,
    unit: str | Sequence[str] | None = None,
    io: str | None = None,
    layout: str | None = None,
    no_fallback: bool = False,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> ExportRecord:
    """Lower the compressed model in `directory` to `runtime`, and read the file back with the vendor's reader.

    `unit`: the one asked for, then those that operators may fall back to; a target by name (`ethos-u55-128`,
    `hexagon`) is compiled for, and takes a finished file of the runtime (`.tflite`, `.onnx`) as `directory` as well.
    `io`, `layout`: integer or float inputs and outputs, channels first or last, where the runtime has a choice.
    With `no_fallback` an operator on another unit than asked for is a gate that does not hold, and nothing is written.

    Raises Refused when the runtime has no exact form of a tensor; OctavoError when what was read back differs (then no
    file is left). Only the compressed model is looked at: the source may be gone.
    """
    from octavo.runtimes.base import runtime as find

    path, given, target = Path(out), Path(directory), find(runtime)
    units = parse_units(unit)
    target = target.for_units(units) if hasattr(target, "for_units") else target
    asked = Asked(units, _ends(units[0], io, layout), no_fallback, force, progress)
    wanted = TARGETS.get(units[0], runtime)
    if wanted != runtime:
        raise BadInput(f"{units[0]} is compiled from {wanted}'s file, not from {runtime}'s.", f"--runtime {wanted}.")
    if given.is_file() and (given.suffix != target.suffix or units[0] not in TARGETS):
        raise BadInput(
            f"{given} is a file, not a compressed model.",
            f"A finished {target.suffix} is only compiled: --unit {' or '.join(sorted(TARGETS)[:2])}, …",
        )
    model = None if given.is_file() else load(given)
    mobile = runtime == "onnxruntime" and path.suffix == ".ort" and units[0] not in TARGETS
    if path.suffix != target.suffix and not mobile:
        raise BadInput(f"{path}: {runtime} files end in {target.suffix}.", f"Use -o {path.stem}{target.suffix}.")
    try:
        if units[0] in ETHOS_U:
            from octavo.api.export_npu import export_ethos

            return export_ethos(given, model, target, path, asked)
        if units[0] == HEXAGON:
            from octavo.api.export_npu import export_hexagon

            return export_hexagon(given, model, target, path, asked)
        assert model is not None
        if mobile:
            from octavo.api.export_ort import export_ort

            return export_ort(model, given, target, path, asked)
        return _export(model, given, target, path, asked)
    except Stopped as stopped:
        return stopped.record


def _export(model: CompressedModel, directory: Path, target: Runtime, path: Path, asked: Asked) -> ExportRecord:
    with new_path(path, force=asked.force, directory=getattr(target, "directory", False)) as temporary:
        manifest = lowered(model, directory, target, temporary, asked)
        try:
            rows, unopened = opened(target, temporary, asked.units)
            gates = fallback_gates(rows, asked.no_fallback)
            size = sum(file.stat().st_size for file in target.files(temporary))
            record = ExportRecord(
                path=str(path),
                runtime=target.name,
                bytes=size,
                digest=model.digest,
                weights="exact",
                placement=rows,
                widened=widened(manifest),
                notes=(*manifest.notes, *unopened, *((NOT_WRITTEN,) if gates else ())),
                run_line="" if gates else target.run_line(temporary).replace(str(temporary), str(path)),
                bits_per_weight=8 * size / max(model.parameters, 1),
                unit=asked.units[0],
                fallback=fallbacks(rows),
                gates=gates,
            )
            if gates:
                raise Stopped(record)
        except BaseException:
            target.discard(temporary)
            raise
    return record


def lowered(model: CompressedModel, directory: Path, target: Runtime, temporary: Path, asked: Asked) -> Manifest:
    """Write the runtime's file and prove its weights; what was written beside it is deleted when that fails."""
    options: dict[str, Any] = {}
    accepted = signature(target.lower).parameters
    for name, value in asked.ends.items():
        if name not in accepted:
            raise BadInput(f"{target.name} has no choice of --{name}.", "Leave it out.")
        options[name] = value
    manifest = target.carry(model)
    try:
        target.lower(model, manifest, temporary, ModelPrograms(model), asked.progress, **options)
        _prove(target, temporary, model, directory, asked.progress)
    except BaseException:
        target.discard(temporary)
        raise
    return manifest


def _ends(unit: str, io: str | None, layout: str | None) -> dict[str, str]:
    """What was asked of inputs and outputs; an Ethos-U wants integers and channels last. Raises BadInput."""
    for option, value, known in (("--io", io, IO), ("--layout", layout, LAYOUTS)):
        if value is not None and value not in known:
            raise BadInput(f"{option} {value}: unknown.", f"Use {' or '.join(known)}.")
    default = {"io": "int8", "layout": "nhwc"} if unit in ETHOS_U else {}
    return default | {key: value for key, value in (("io", io), ("layout", layout)) if value is not None}


def _prove(target: Runtime, path: Path, model: CompressedModel, directory: Path, progress: Progress) -> None:
    """Read the file back with the vendor's reader. Raises OctavoError unless every tensor is the compressed model's."""
    from octavo.verify.weights import check_weights

    read_back = target.read_back(path)
    try:
        report = check_weights(read_back, read_back.manifest, model, carry=target.carry, progress=progress)
    finally:
        read_back.close()
    if report.verdict != "exact":
        raise _not_carried(model, directory, report.wrong)


def opened(target: Runtime, path: Path, units: tuple[str, ...]) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Open the file in its runtime: which unit runs each operator, and its notes; or one that it is not installed.

    ONNX Runtime's phone builds are asked by its own tables.
    """
    if target.name == "onnxruntime" and units[0] == "npu":
        from octavo.runtimes.onnx.mobile import mobile_placement

        found = asked_for(mobile_placement(path), "npu", "")
        return tuple(item.row() for item in found), (BY_TABLE,)
    try:
        opened = open_on(target, path, units)
    except Missing as error:
        return (), (f"Not opened here, so the placement is unknown: {error}",)
    try:
        return opened.rows, tuple(getattr(opened.session, "notes", ()))
    finally:
        opened.session.close()


def _not_carried(model: CompressedModel, directory: Path, wrong: tuple[Any, ...]) -> OctavoError:
    """Whose fault it is that a tensor read back differs from its record: the compressed model's own, or ours."""
    for item in wrong:
        value = model.tensor(item.name)
        digest = value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)
        if digest != model.record(item.name).digest:
            return BadInput(
                f"{directory}: {item.name} does not match its digest: damaged.", "Compress the model again."
            )
    names = ", ".join(f"{item.name}: {item.reason}" for item in wrong[:3])
    return OctavoError(f"The file read back differs in {len(wrong)} tensors ({names}).", "Please report this defect.")


def widened(manifest: Manifest) -> tuple[dict[str, object], ...]:
    """What the file holds in a wider form than the scheme's own, with how many tensors and why."""
    groups: dict[tuple[str, str, str], int] = {}
    for item in manifest.tensors:
        if item.why:
            key = (item.scheme, item.stored_as, item.why)
            groups[key] = groups.get(key, 0) + 1
    return tuple({"scheme": s, "as": a, "why": w, "tensors": n} for (s, a, w), n in groups.items())
