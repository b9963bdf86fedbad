"""Is the file what it claims to be, and how far is it from the original?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.api.bisect import bisected
from octavo.api.load import Fixed, load, open_source
from octavo.api.original import Original, open_original
from octavo.api.placing import check_compiled, int8_form, open_on
from octavo.api.run import bind_inputs
from octavo.core.manifest import EditedManifest, Manifest
from octavo.core.metrics import Kind, sqnr_db
from octavo.core.model import CompressedModel
from octavo.core.placement import fallback_gates, fallbacks
from octavo.core.scheme import SCHEMES
from octavo.core.source import Source, floats
from octavo.core.tensor import QuantizedTensor
from octavo.core.units import parse_units
from octavo.errors import BadInput
from octavo.records import VerifyRecord

Progress = Callable[[str, int, int], None]
Report = tuple[Any, Any]  # OutputsReport, AccuracyReport | None
BISECTED = ("weights", "min_sqnr", "max_drop")  # gates after which the operator is looked for


@dataclass(frozen=True)
class Budget:
    """What the user will give up: accuracy (a share; with `confidence` its interval's upper end), output SQNR in dB."""

    max_drop: float | None = None
    confidence: float | None = None
    min_sqnr: float | None = None

    @property
    def level(self) -> float:
        """The confidence level of every interval."""
        return self.confidence if self.confidence is not None else 0.95


def verify(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    compressed: str | Path | None = None,
    data: str | Path | None = None,
    x: str = "x",
    y: str = "y",
    preprocess: str | Path | None = None,
    max_drop: float | str | None = None,
    confidence: float | str | None = None,
    min_sqnr: float | None = None,
    windows: int = 16,
    context: int = 256,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    fix: Fixed = None,
    threads: int | None = None,
    unit: str | Sequence[str] | None = None,
    no_fallback: bool = False,
    bisect: bool | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> VerifyRecord:
    """Decode the weights with the vendor's reader and compare digests; with `against`, compare the decoded weights with
    the original's; with `data` too, run both and compare outputs and accuracy, paired.

    A network's `data`: an .npz; a folder or zip of images or clips, which a preprocess.toml beside it (or `preprocess`)
    makes into inputs; a .wav, frame by frame, for a model that carries a state.
    `max_drop` gates on the paired estimate, with `confidence` on the upper end of its interval; `no_fallback` on any
    operator that runs elsewhere than on `unit` (the first one named). `bisect` finds the first operator whose output
    diverges from the float graph; by itself where the weights, outputs or accuracy fail and there are data.
    Raises BadInput for files that cannot be read. Gates that do not hold are in the record, with their exit codes.
    """
    budget, units = Budget(parse_share(max_drop), parse_share(confidence), min_sqnr), parse_units(unit)
    given: dict[str, Any] = {
        "module": module, "weights": weights, "trust": trust, "example_inputs": example_inputs, "fix": fix,
    }  # fmt: skip
    named = against is not None or module is not None
    if data is not None and not named:
        raise BadInput("--data needs --against: outputs and accuracy are compared with the float original.")
    if data is None and (budget.max_drop is not None or budget.min_sqnr is not None):
        raise BadInput("--max-drop and --min-sqnr need --against and --data to compare outputs.")
    if data is None and bisect:
        raise BadInput("--bisect needs --against and --data: operators are compared on a sample of them.")
    with ExitStack() as stack:
        original, source = None, None
        if data is not None:
            original = open_original(
                against, Path(data), windows=windows, context=context, seed=seed, x=x, y=y, preprocess=preprocess,
                **given,
            )  # fmt: skip
            stack.callback(original.source.close)
        elif named:
            source = open_source(against, **given)
            stack.callback(source.close)
        return verify_artifact(
            Path(artifact), original, source=source, compressed=compressed, budget=budget, threads=threads,
            units=units, no_fallback=no_fallback, bisect=bisect, progress=progress,
        )  # fmt: skip


def verify_artifact(
    artifact: Path,
    original: Original | None,
    *,
    source: Source | None = None,
    compressed: str | Path | None = None,
    budget: Budget = Budget(),
    threads: int | None = None,
    units: tuple[str, ...] = ("cpu",),
    no_fallback: bool = False,
    bisect: bool | None = False,
    progress: Progress = lambda what, done, total: None,
) -> VerifyRecord:
    """`verify` for an original that is open already (or a `source` whose weights alone are compared)."""
    from octavo.runtimes.base import runtime_of
    from octavo.verify.weights import check_weights, edited_manifest

    file, of_form = int8_form(artifact)
    target = runtime_of(file)
    model = load(compressed) if compressed is not None else None
    found: dict[str, Any] = {"outputs": None, "accuracy": None, "rows": None}
    decoded: dict[str, Any] | None = None
    notes: list[str] = list(of_form)
    given, edges = original, frozenset[str]()
    read_back: Any = target.read_back(file)
    try:
        manifest = read_back.manifest
        edges = frozenset(item["name"] for item in manifest.parts["edges"]) if manifest is not None else edges
        weights = check_weights(read_back, manifest, model, carry=target.carry, progress=progress)
        notes += [*weights.notes, *(manifest.notes if manifest is not None else ())]
        if manifest is not None and weights.verdict == "exact":
            decoded = _decoded(original, source, manifest, read_back, model, budget)
    except EditedManifest as error:
        weights = edited_manifest(error)
        notes += ["Not run: what the file computes cannot be relied on."] if original is not None else []
        original = None
    finally:
        read_back.close()
    if original is not None:
        found = _run(original, target, file, threads, units, budget, progress)
        notes += [*found["notes"], *original.notes, *_decided(found["outputs"]), *_doubts(original, found["accuracy"])]
        if decoded is not None:
            decoded["artifact_over_decoded"] = _arithmetic(found["accuracy"], decoded)
    rows, placed = found["rows"], check_compiled(artifact)
    if placed is not None:
        rows, notes = placed.rows, [*notes, *placed.notes]
    elif no_fallback and rows is None:
        rows = _placement(target, file, units, threads)
    gates = (
        *_gates(weights.verdict, found["outputs"], found["accuracy"], budget),
        *(placed.gates if placed is not None else ()),
        *fallback_gates(rows or (), no_fallback),
    )
    diverges: dict[str, Any] | None = None
    if given is not None and (bisect or (bisect is None and any(gate["gate"] in BISECTED for gate in gates))):
        diverges, more = bisected(
            file, target.name, given, model=model, wrong=_wrong(weights.verdict), min_sqnr=budget.min_sqnr, edges=edges
        )
        notes += more
    return VerifyRecord(
        artifact=str(artifact),
        digest=weights.digest or None,
        weights=weights.verdict,
        outputs=found["outputs"] and found["outputs"].as_dict() | found["from"],
        decoded=decoded,
        accuracy=found["accuracy"] and found["accuracy"].as_dict(),
        fallback=fallbacks(rows or ()),
        gates=gates,
        passed=not gates,
        notes=tuple(notes),
        diverges=diverges,
    )


def _wrong(verdict: Any) -> dict[str, str]:
    """{tensor or edge: why it is wrong}; read-back names edges as `edge NAME` where it does."""
    items = verdict.get("wrong", ()) if isinstance(verdict, dict) else ()
    return {item["name"].removeprefix("edge "): item["reason"] for item in items}


def _run(
    original: Original,
    target: Any,
    artifact: Path,
    threads: int | None,
    units: tuple[str, ...],
    budget: Budget,
    progress: Progress,
) -> dict[str, Any]:
    """Outputs and accuracy of the artifact in its own runtime, and the unit that ran each operator."""
    longest = max(len(window.ids) for window in original.data.windows) if original.is_language else None
    opened = open_on(target, artifact, units, threads=threads, context=longest)
    session = opened.session
    try:
        outputs, accuracy = _compare(original, _runner(original, session), budget, progress)
        rows = opened.rows
    finally:
        session.close()
    origin: dict[str, Any] = {"from": getattr(session, "logits_from", target.name)}
    if "probabilities" in origin["from"]:  # shifted by a constant per position: only KL and agreement compare
        origin |= {"sqnr_db": None, "cosine": None}
    said = tuple(getattr(session, "notes", ()))
    return {"outputs": outputs, "accuracy": accuracy, "rows": rows, "from": origin, "notes": said}


def _placement(target: Any, artifact: Path, units: tuple[str, ...], threads: int | None) -> tuple[dict[str, Any], ...]:
    """Which unit runs each operator of a file that is not run."""
    opened = open_on(target, artifact, units, threads=threads)
    try:
        return opened.rows
    finally:
        opened.session.close()


def _runner(original: Original, session: Any) -> Callable[[Any], Any]:
    """The artifact as the same kind of callable as the original: ids → logits, or inputs → outputs by name."""
    if original.is_language:
        return lambda ids: session.step({"ids": np.asarray(ids, np.int64)[None]}, None)[0]["logits"][0]
    if original.is_stream and len(session.inputs) < len(original.data.shapes):
        raise BadInput("The artifact keeps its state to itself; a recording is compared where state is an input.")
    return lambda inputs: _in_order(session.step(bind_inputs(session, inputs), None)[0])


def _in_order(outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs by position: exporters rename them."""
    return {f"output_{index}": value for index, value in enumerate(outputs.values())}


def _compare(original: Original, candidate: Callable[[Any], Any], budget: Budget, progress: Progress) -> Report:
    from octavo.verify.accuracy import compare_both
    from octavo.verify.language import compare_text

    if original.is_language:
        return compare_text(original.run, candidate, original.data, confidence=budget.level, progress=progress)
    if original.is_stream:
        from octavo.verify.stream import compare_stream

        return compare_stream(original.run, candidate, original.data, confidence=budget.level), None
    kind: Kind = "values" if original.data.labels is None else "logits"  # KL and agreement are of class scores
    return compare_both(
        original.run, candidate, original.data, kind=kind, batch=original.batch, confidence=budget.level
    )


def _decided(outputs: Any) -> list[str]:
    """How often each side decided, where the data were a recording."""
    found = outputs.extra.get("decisions") if hasattr(outputs, "extra") else None
    if not found:
        return []
    shares = f"{found['float']:.2%} of {found['frames']} frames, the artifact's in {found['artifact']:.2%}"
    return [f"The original's output is above {found['threshold']:g} in {shares}; agreement is of these decisions."]


def _doubts(original: Original, accuracy: Any) -> list[str]:
    """What makes the labels themselves doubtful: an original that is right no more often than by guessing."""
    labels = getattr(original.data, "labels", None)
    if accuracy is None or labels is None or accuracy.metric != "top-1" or accuracy.original.high is None:
        return []
    classes = int(labels.max()) + 1
    if classes < 2 or accuracy.original.high > 2 / classes or accuracy.n < 2 * classes:
        return []
    return [
        f"The float original itself is right on {accuracy.original.value:.1%} of {accuracy.n} samples of {classes} "
        "classes, as by guessing: are the classes in the model's order, and the values scaled as it was trained?"
    ]


def _decoded(
    original: Original | None,
    source: Source | None,
    manifest: Manifest,
    read_back: Any,
    model: CompressedModel | None,
    budget: Budget,
) -> dict[str, Any] | None:
    """The file's weights, decoded: their SQNR to the original's, and run in torch what the codes cost, without the
    runtime's arithmetic. Of a static model the graph with its edges, which the compressed `model` has; else nothing."""
    from octavo.sources.reference import GraphReference, LanguageReference, StaticReference

    def values(item: Any) -> NDArray[np.float32]:
        tensor = read_back.tensor(item)
        return tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor

    if original is None:
        return None if source is None else _weights_sqnr(source, manifest, values)
    run: Any
    program = original.source.program
    if manifest.parts.get("edges"):
        if model is None:
            return None
        run = StaticReference(model.program, model.edges, {t.name: read_back.tensor(t) for t in manifest.tensors})
    else:
        tensors = ((item.name, values(item)) for item in manifest.tensors)
        run = LanguageReference(program, tensors) if original.is_language else GraphReference(program, dict(tensors))
    outputs, accuracy = _compare(original, run, budget, lambda what, done, total: None)
    found: dict[str, Any] = outputs.as_dict()
    return found | {"accuracy": accuracy.as_dict() if accuracy is not None else None}


def _weights_sqnr(source: Source, manifest: Manifest, values: Callable[[Any], NDArray[np.float32]]) -> dict[str, Any]:
    """SQNR in dB of every quantised tensor to the original's; the artifact is not run."""
    found: dict[str, float] = {}
    for item in manifest.tensors:
        if item.name not in source.tensors and manifest.parts.get("edges"):
            continue  # made by a transform: a folded normalisation, a bias
        if item.name not in source.tensors or tuple(source.tensors[item.name].shape) != item.shape:
            raise BadInput(f"{item.name} {list(item.shape)} is no tensor of the model given.", "Give its own original.")
        if not SCHEMES.get(item.scheme, SCHEMES["fp32"]).is_float:
            found[item.name] = sqnr_db(floats(source, item.name), values(item))
    lowest = min(found, key=lambda name: found[name], default=None)
    return {"weights_sqnr_db": found, "lowest": lowest}


def _arithmetic(accuracy: Any, decoded: dict[str, Any]) -> float | None:
    """How much the runtime's own arithmetic changes the metric: artifact over decoded weights in torch, minus one."""
    inner = decoded["accuracy"]
    if accuracy is None or inner is None or not inner["artifact"]:
        return None
    return float(accuracy.artifact.value / inner["artifact"] - 1)


def _gates(verdict: Any, outputs: Any, accuracy: Any, budget: Budget) -> tuple[dict[str, Any], ...]:
    """The gates that do not hold; one whose figure could not be measured does not hold."""
    failed: list[dict[str, Any]] = []
    if verdict != "exact":
        names = "" if verdict == "unknown" else ", ".join(item["name"] for item in verdict["wrong"][:5])
        reason = "weights unknown: no manifest; give --compressed DIR" if not names else f"weights not exact: {names}"
        failed.append({"gate": "weights", "code": 6, "reason": reason})
    if budget.min_sqnr is not None and not (outputs and outputs.within(budget.min_sqnr)):
        value = f"at {outputs.sqnr_db.value:.2f} dB" if outputs else "not measured"
        reason = f"outputs {value}, the bound is {budget.min_sqnr:g} dB"
        failed.append({"gate": "min_sqnr", "code": 6, "reason": reason})
    if budget.max_drop is not None:
        if outputs and accuracy is None:
            raise BadInput("--max-drop needs labels in --data (or a text).", "Name them with --y.")
        if not (accuracy and accuracy.within(budget.max_drop, budget.confidence is not None)):
            failed.append({"gate": "max_drop", "code": 4, "reason": _drop_reason(accuracy, budget)})
    return tuple(failed)


def _drop_reason(accuracy: Any, budget: Budget) -> str:
    if accuracy is None:
        return f"accuracy not measured, the budget is {budget.max_drop:.2%}"
    at_most = accuracy.drop.high if budget.confidence is not None else accuracy.drop.value
    shown = "by an unknown share" if at_most is None else f"by {at_most:.2%}"
    bound = f" ({budget.confidence:.0%} bound)" if budget.confidence is not None else ""
    return f"{accuracy.metric} worse {shown}{bound}, the budget is {budget.max_drop:.2%}"


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
