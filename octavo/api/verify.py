"""Is the file what it claims to be, and how far is it from the original?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.api.load import load, open_source
from octavo.api.run import bind_inputs, placed
from octavo.core.manifest import EditedManifest, Manifest
from octavo.core.metrics import Kind
from octavo.core.source import Source
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput
from octavo.records import VerifyRecord

ASKED = "cpu"  # the one unit so far
Progress = Callable[[str, int, int], None]
Report = tuple[Any, Any]  # OutputsReport, AccuracyReport | None


@dataclass(frozen=True)
class Original:
    """The float original, opened once and run for as many artifacts as are compared with it."""

    source: Source
    run: Callable[[Any], Any]
    data: Any  # verify.data.Text or Labelled
    batch: int = 1  # samples per run, which a captured graph fixes

    @property
    def is_language(self) -> bool:
        return self.source.program.kind == "huggingface"


def verify(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    compressed: str | Path | None = None,
    data: str | Path | None = None,
    max_drop: float | str | None = None,
    min_sqnr: float | None = None,
    windows: int = 16,
    context: int = 256,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> VerifyRecord:
    """Decode the weights with the vendor's reader and compare digests; with `against` and `data`, run both and compare
    outputs and accuracy, paired.

    Raises BadInput for files that cannot be read. Gates that do not hold are in the record, with their exit codes.
    """
    drop = parse_share(max_drop)
    original = None
    if data is not None:
        if against is None and module is None:
            raise BadInput("--data needs --against: outputs and accuracy are compared with the float original.")
        original = open_original(
            against if against is not None else "module", Path(data), windows=windows, context=context, module=module,
            weights=weights, trust=trust, example_inputs=example_inputs, seed=seed,
        )  # fmt: skip
    try:
        return verify_artifact(
            Path(artifact), original, compressed=compressed, max_drop=drop, min_sqnr=min_sqnr, threads=threads,
            progress=progress,
        )  # fmt: skip
    finally:
        if original is not None:
            original.source.close()


def open_original(
    model: Any,
    data: Path,
    *,
    windows: int,
    context: int,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    seed: int = 0,
) -> Original:
    """Open the float original and the data it is compared on. Raises BadInput, Missing."""
    from octavo.sources.reference import GraphReference, LanguageReference, Remembered
    from octavo.sources.tokenizer import tokenizer_of
    from octavo.verify.data import read_text

    source = open_source(model, module=module, weights=weights, trust=trust, example_inputs=example_inputs)
    if source.program.kind == "graph":
        arrays = {name: source.rows(name) for name in source.tensors}
        samples, batch = _samples(source, data)
        return Original(source, Remembered(GraphReference(source.program, arrays)), samples, batch)
    tokenizer = tokenizer_of(source.assets)
    text = read_text(
        data, tokenizer.encode, length=context, bos=tokenizer.bos, limit=windows, seed=seed, offsets=tokenizer.offsets
    )
    tensors = ((name, source.floats(name)) for name in source.tensors)  # type: ignore[attr-defined]
    return Original(source, Remembered(LanguageReference(source.program, tensors)), text)


def _samples(source: Source, path: Path) -> tuple[Any, int]:
    """The arrays of an .npz under the graph's input names and in their order, and how many samples it takes at once."""
    from octavo.sources.torch import inputs_of
    from octavo.verify.data import read_arrays

    shapes = inputs_of(source.program)
    data = read_arrays(path, shapes)
    batch = max(1, *(shape[0] for shape in shapes.values()))
    if len(data) % batch:
        raise BadInput(
            f"{path}: {len(data)} samples, and the model was captured for {batch} at a time.",
            f"Give a multiple of {batch}, or example inputs of one sample.",
        )
    return data, batch


def verify_artifact(
    artifact: Path,
    original: Original | None,
    *,
    compressed: str | Path | None = None,
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> VerifyRecord:
    """`verify` for an original that is open already."""
    from octavo.runtimes.base import runtime_of
    from octavo.verify.weights import check_weights, edited_manifest

    target = runtime_of(artifact)
    model = load(compressed) if compressed is not None else None
    outputs: Any = None
    accuracy: Any = None
    decoded: dict[str, Any] | None = None
    manifest: Manifest | None = None
    placement: tuple[dict[str, str], ...] = ()
    read_back = target.read_back(artifact)
    try:
        manifest = read_back.manifest
        weights = check_weights(read_back, manifest, model, carry=target.carry, progress=progress)
        if original is not None and manifest is not None and weights.verdict == "exact":
            decoded = _decoded(original, manifest, read_back)
    except EditedManifest as error:
        weights = edited_manifest(error)
    finally:
        read_back.close()
    if original is not None:
        session = target.open(artifact, threads=threads)
        try:
            outputs, accuracy = _compare(original, _runner(original, session), progress)
            placement = placed(session)
        finally:
            session.close()
        if decoded is not None:
            decoded["artifact_over_decoded"] = _arithmetic(accuracy, decoded)
    fallback = tuple(item for item in placement if item["unit"] != ASKED)
    gates = _gates(weights.verdict, outputs, accuracy, max_drop, min_sqnr)
    return VerifyRecord(
        artifact=str(artifact),
        digest=weights.digest or None,
        weights=weights.verdict,
        outputs=outputs.as_dict() if outputs is not None else None,
        decoded=decoded,
        accuracy=accuracy.as_dict() if accuracy is not None else None,
        fallback=fallback,
        gates=gates,
        passed=not gates,
        notes=(*weights.notes, *(manifest.notes if manifest is not None else ())),
    )


def _runner(original: Original, session: Any) -> Callable[[Any], Any]:
    """The artifact as the same kind of callable as the original: ids → logits, or inputs → outputs by name."""
    if original.is_language:
        return lambda ids: session.step({"ids": np.asarray(ids, np.int64)[None]}, None)[0]["logits"][0]
    return lambda inputs: _in_order(session.step(bind_inputs(session, inputs), None)[0])


def _in_order(outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs by position: exporters rename them."""
    return {f"output_{index}": value for index, value in enumerate(outputs.values())}


def _compare(original: Original, candidate: Callable[[Any], Any], progress: Progress) -> Report:
    from octavo.verify.accuracy import compare_both
    from octavo.verify.language import compare_text

    if original.is_language:
        return compare_text(original.run, candidate, original.data, progress=progress)
    kind: Kind = "values" if original.data.labels is None else "logits"  # KL and agreement are of class scores
    return compare_both(original.run, candidate, original.data, kind=kind, batch=original.batch)


def _decoded(original: Original, manifest: Manifest, read_back: Any) -> dict[str, Any]:
    """The file's weights, decoded and run in torch: what the codes cost, without the runtime's arithmetic."""
    from octavo.sources.reference import GraphReference, LanguageReference

    def values(item: Any) -> NDArray[np.float32]:
        tensor = read_back.tensor(item)
        return tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor

    tensors = ((item.name, values(item)) for item in manifest.tensors)
    program = original.source.program
    run: Any = LanguageReference(program, tensors) if original.is_language else GraphReference(program, dict(tensors))
    outputs, accuracy = _compare(original, run, lambda what, done, total: None)
    found: dict[str, Any] = outputs.as_dict()
    return found | {"accuracy": accuracy.as_dict() if accuracy is not None else None}


def _arithmetic(accuracy: Any, decoded: dict[str, Any]) -> float | None:
    """How much the runtime's own arithmetic changes the metric: artifact over decoded weights in torch, minus one."""
    inner = decoded["accuracy"]
    if accuracy is None or inner is None or not inner["artifact"]:
        return None
    return float(accuracy.artifact.value / inner["artifact"] - 1)


def _gates(
    verdict: Any, outputs: Any, accuracy: Any, max_drop: float | None, min_sqnr: float | None
) -> tuple[dict[str, Any], ...]:
    """The gates that do not hold."""
    failed: list[dict[str, Any]] = []
    if verdict != "exact":
        names = "" if verdict == "unknown" else ", ".join(item["name"] for item in verdict["wrong"][:5])
        reason = "weights unknown: no manifest; give --compressed DIR" if not names else f"weights not exact: {names}"
        failed.append({"gate": "weights", "code": 6, "reason": reason})
    if min_sqnr is not None:
        if outputs is None:
            raise BadInput("--min-sqnr needs --against and --data to compare outputs.")
        if not outputs.within(min_sqnr):
            reason = f"outputs at {outputs.sqnr_db.value:.2f} dB, the bound is {min_sqnr:g} dB"
            failed.append({"gate": "min_sqnr", "code": 6, "reason": reason})
    if max_drop is not None:
        if accuracy is None:
            raise BadInput("--max-drop needs labelled --data (or a text) and --against.")
        if not accuracy.within(max_drop):
            reason = f"{accuracy.metric} worse by {accuracy.drop.value:.2%}, the budget is {max_drop:.2%}"
            failed.append({"gate": "max_drop", "code": 4, "reason": reason})
    return tuple(failed)


def parse_share(value: float | str | None) -> float | None:
    """`1%` or `0.01` as a fraction. Raises BadInput."""
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    text = value.strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise BadInput(f"'{value}' is no share.", "Write it like 1% or 0.01.") from error
    if not 0 <= share <= 1:
        raise BadInput(f"'{value}' is outside 0 … 100 %.", "Write it like 1% or 0.01.")
    return share
