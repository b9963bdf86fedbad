"""Stage two: a compressed model in, a runtime's file out, read back before it is called done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.api.load import load, torch_program
from octavo.api.run import placed
from octavo.core.manifest import Manifest
from octavo.core.model import CompressedModel
from octavo.core.store import new_path
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import BadInput, Missing, OctavoError
from octavo.records import ExportRecord

if TYPE_CHECKING:
    from octavo.runtimes.base import Runtime

Progress = Callable[[str, int, int], None]


def export(
    directory: str | Path,
    *,
    runtime: str,
    out: str | Path,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> ExportRecord:
    """Lower the compressed model in `directory` to `runtime`, and read the file back with the vendor's reader.

    Raises Refused when the runtime has no exact form of a tensor; OctavoError when what was read back differs (then no
    file is left). Only the compressed model is looked at: the source may be gone.
    """
    from octavo.runtimes.base import runtime as find

    path, model, target = Path(out), load(directory), find(runtime)
    if path.suffix != target.suffix:
        raise BadInput(f"{path}: {runtime} files end in {target.suffix}.", f"Use -o {path.stem}{target.suffix}.")
    manifest = target.carry(model)
    with new_path(path, force=force) as temporary:
        try:
            target.lower(model, manifest, temporary, lambda: torch_program(model), progress)
            _prove(target, temporary, model, Path(directory), progress)
            placement, unopened = _opened(target, temporary)
        except BaseException:
            target.discard(temporary)
            raise
    size = sum(file.stat().st_size for file in target.files(path))
    return ExportRecord(
        path=str(path),
        runtime=runtime,
        bytes=size,
        digest=model.digest,
        weights="exact",
        placement=placement,
        widened=widened(manifest),
        notes=(*manifest.notes, *unopened),
        run_line=target.run_line(path),
        bits_per_weight=8 * size / max(model.parameters, 1),
    )


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


def _opened(target: Runtime, path: Path) -> tuple[tuple[dict[str, str], ...], tuple[str, ...]]:
    """Open the file in its runtime: which unit runs each operator; or a note that the runtime is not installed."""
    try:
        session = target.open(path)
    except Missing as error:
        return (), (f"Not opened here, so the placement is unknown: {error}",)
    try:
        return placed(session), ()
    finally:
        session.close()


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
