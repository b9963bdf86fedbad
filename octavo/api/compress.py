"""Stage one: a float model in, a compressed model on disk out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.api.compress_static import SAMPLES, Static, fold_static, is_static
from octavo.api.load import Fixed, open_source
from octavo.core.model import CompressedModel
from octavo.core.source import Source
from octavo.core.store import StoreWriter, new_path
from octavo.core.store import load as load_store
from octavo.errors import BadInput, nearest
from octavo.records import ModelRecord, TensorSummary

if TYPE_CHECKING:
    from torch import nn

SOLVERS = ("rtn",)
SCALES = ("search", "absmax")


def compress(
    model: str | Path | nn.Module | None = None,
    *,
    scheme: str,
    out: str | Path,
    solver: str = "rtn",
    scale: str = "search",
    embedding: str | None = None,
    head: str | None = None,
    allow_skip: bool = False,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    fix: Fixed = None,
    calibration: Any = None,
    preprocess: str | Path | None = None,
    samples: int = SAMPLES,
    target: str = "common",
    observer: str = "mse",
    equalise: str = "best",
    adjust: str = "learned",
    sensitivity: bool = False,
    keep: Sequence[str] = (),
    x: str = "x",
    seed: int = 0,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> ModelRecord:
    """Fold `model` to `scheme` and write the compressed model to the directory `out`.

    A static scheme (w8a8, w8ta8, w8a16) is calibrated: on at most `samples` of `calibration`, a path (`preprocess` says
    how images and sound become inputs) or an iterable of {input: array}; its activations' ranges are those that
    `observer` finds, on the operators that `target` names; layers that a pattern of `keep` names stay in float.
    `equalise`, `adjust`: how weights are prepared and rounded; `sensitivity` measures what each layer costs.

    Raises BadInput for a model that cannot be read or holds NaN, an unknown scheme or solver, or an `out` that exists
    (without `force`); Refused for a tensor that the scheme cannot hold (without `allow_skip`).
    """
    if solver not in SOLVERS:
        raise BadInput(f"Unknown solver '{solver}'.", nearest(solver, SOLVERS))
    if scale not in SCALES:
        raise BadInput(f"Unknown scale choice '{scale}'.", nearest(scale, SCALES))
    from octavo.compress.assign import assign
    from octavo.compress.rtn import fold

    static_scheme = is_static(scheme)
    how = Static(
        calibration, preprocess, samples, target, observer, equalise, adjust, tuple(keep), sensitivity, x, seed
    )  # fmt: skip
    if calibration is not None and not static_scheme:
        raise BadInput(f"{scheme} needs no calibration data.", "Leave --calibration out, or choose w8a8.")
    source = open_source(model, module=module, weights=weights, trust=trust, example_inputs=example_inputs, fix=fix)
    try:
        if static_scheme:
            with new_path(Path(out), force=force, directory=True) as directory:
                fold_static(source, scheme, how, directory, _origin(source), progress)
            return describe(load_store(Path(out)), Path(out))
        assigned = assign(source, scheme, embedding=embedding, head=head, allow_skip=allow_skip)
        with new_path(Path(out), force=force, directory=True) as directory:
            writer = StoreWriter(directory, {a.name: (a.shape, a.scheme) for a in assigned.tensors})
            records, notes = fold(
                source, assigned.tensors, writer, search=scale == "search", threads=threads, progress=progress
            )
            writer.finish(
                CompressedModel(
                    program=source.program,
                    tensors=tuple(records),
                    reader=_NotYet(),
                    state=source.state,
                    assets=source.assets,
                    skipped=assigned.skipped,
                    lineage=(
                        _origin(source),
                        {"step": "solve", "solver": solver, "scale": scale, "scheme": scheme},
                        *notes,
                    ),
                )
            )
    finally:
        source.close()
    return describe(load_store(Path(out)), Path(out))


def describe(model: CompressedModel, path: Path) -> ModelRecord:
    """The record of a compressed model."""
    return ModelRecord(
        path=str(path),
        kind="compressed model",
        digest=model.digest,
        parameters=model.parameters,
        bytes=model.bytes,
        bits_per_weight=model.bits_per_weight,
        tensors=tuple(TensorSummary(t.name, t.shape, t.scheme, t.sqnr_db) for t in model.tensors),
        skipped=tuple({"name": item.name, "reason": item.reason} for item in model.skipped),
        lineage=model.lineage,
    )


def _origin(source: Source) -> dict[str, Any]:
    body = source.program.body
    name = body.get("model_type", "torch graph") if source.program.kind == "huggingface" else "torch graph"
    types = sorted({source.dtype(name) for name in source.tensors})
    said = {"notes": list(found)} if (found := getattr(source, "notes", ())) else {}
    return {"step": "source", "kind": source.program.kind, "model": name, "types": types} | said


class _NotYet:
    """Stands where the reader will be once the directory is in place."""

    def tensor(self, *_: Any) -> Any:
        raise AssertionError("the model is still being written")
