"""Stage one for static schemes: weights and activations quantised together, calibrated on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.core.grid import pack
from octavo.core.metrics import sqnr_db
from octavo.core.model import CompressedModel, TensorRecord
from octavo.core.scheme import scheme
from octavo.core.source import Source
from octavo.core.store import StoreWriter
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import BadInput, Refused

if TYPE_CHECKING:
    from octavo.compress.static import StaticResult

Progress = Callable[[str, int, int], None]
SAMPLES = 128  # calibration samples unless said otherwise


@dataclass(frozen=True)
class Static:
    """How a static scheme is calibrated. `data`: the path of samples, samples that are read (verify's), or an iterable
    of {input: array}; `keep`: patterns of layers that stay in float; `sensitivity`: measure each layer's share of the
    noise as well. The others as in compress.static.quantise."""

    data: Any = None
    preprocess: str | Path | None = None
    samples: int = SAMPLES
    target: str = "common"
    observer: str = "mse"
    equalise: str = "best"
    adjust: str = "learned"
    keep: Sequence[str] = ()
    sensitivity: bool = False
    x: str = "x"
    seed: int = 0


def fold_static(
    source: Source, scheme_name: str, how: Static, directory: Path, origin: dict[str, Any], progress: Progress
) -> CompressedModel:
    """Quantise `source` and write its tensors to `directory`; the model's index is the caller's to write.

    Raises Refused for a language model, BadInput without calibration data or for data that does not fit.
    """
    if source.program.kind != "graph":
        raise Refused(
            f"{scheme_name} quantises activations too, and language models are not calibrated yet.",
            "Use a weight-only scheme: w8, w4g32, …",
        )
    result, measured, notes = quantised(source, scheme_name, how, progress)
    from octavo.sources.torch import describe

    program, described = describe(result.exported)
    kept = {name: np.asarray(values, np.float32) for name, values, _ in described}
    roles = {name: role for name, _, role in described}
    writer = StoreWriter(
        directory, {n: (v.shape, scheme_name if n in result.weights else "fp32") for n, v in kept.items()}
    )
    records = []
    for name, values in kept.items():
        held = result.weights.get(name)
        if held is None:
            writer.floats(name, 0, values)
            records.append(TensorRecord(name, values.shape, roles[name], "fp32", float_digest(values)))
            continue
        _write_codes(writer, name, held)
        noise = sqnr_db(values, held.dequantize())
        records.append(TensorRecord(name, values.shape, roles[name], scheme_name, held.digest(), float(noise)))
    model = CompressedModel(
        program=program,
        tensors=tuple(records),
        reader=_Unread(),
        edges=result.edges,
        state=source.state,
        assets=source.assets,
        lineage=(origin, {**result.lineage, "seed": how.seed, "data": notes}, *measured),
    )
    writer.finish(model)
    return model


def quantised(
    source: Source, scheme_name: str, how: Static, progress: Progress
) -> tuple[StaticResult, list[dict[str, Any]], list[str]]:
    """The static model's content, each layer's sensitivity if asked for, and what reading the data decided."""
    from octavo.compress.sensitivity import sensitivity
    from octavo.compress.static import quantise
    from octavo.sources.torch import rebuild

    samples, notes = _samples(how, source)
    given = list(samples)
    exported = rebuild(source.program, {name: source.rows(name) for name in source.tensors})
    result = quantise(
        exported, given, scheme=scheme_name, target=how.target, observer=how.observer, equalise=how.equalise,
        adjust=how.adjust, keep=tuple(how.keep), progress=progress,
    )  # fmt: skip
    measured = []
    if how.sensitivity:
        progress("sensitivity", 0, 1)
        measured = [sensitivity(result.exported, result.edges, result.weights, given).record()]
    return result, measured, notes


def is_static(name: str) -> bool:
    """Whether a scheme quantises activations. Raises BadInput for an unknown one."""
    return scheme(name).activation is not None


def _samples(how: Static, source: Source) -> tuple[Iterable[dict[str, Any]], list[str]]:
    """Calibration inputs, one at a time, and notes on them."""
    if how.data is None:
        raise BadInput(
            "A static scheme is calibrated on samples, and none were given.",
            "--calibration DATA: an .npz, or a folder or zip of images or clips.",
        )
    from octavo.sources.reference import GraphReference

    run = GraphReference(source.program, {name: source.rows(name) for name in source.tensors})
    data, notes = how.data, tuple[str, ...]()
    if isinstance(data, str | Path):
        from octavo.api.network_data import NetworkData

        preprocess = Path(how.preprocess) if how.preprocess is not None else None
        reader = NetworkData(source, run, x=how.x, preprocess=preprocess, seed=how.seed)
        data, notes = reader.calibrating(Path(data), how.samples)
    if hasattr(data, "steps"):  # a recording: the state that each frame meets is the float model's
        every = max(1, len(data) // how.samples)
        return (inputs for inputs, _ in islice(data.steps(run), 0, every * how.samples, every)), list(notes)
    batches = data.batches(1) if hasattr(data, "batches") else data
    return (dict(getattr(batch, "inputs", batch)) for batch in batches), list(notes)


def _write_codes(writer: StoreWriter, name: str, held: QuantizedTensor) -> None:
    writer.codes(name, 0, pack(held.codes.reshape(held.shape[0], -1), held.range.bits))
    writer.scales(name, 0, held.scale)


class _Unread:
    """Stands where the reader will be once the directory is in place."""

    def tensor(self, *_: Any) -> Any:
        raise AssertionError("the model is still being written")
