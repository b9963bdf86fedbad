"""Writing a .pte: the program lowered in a worker, each tensor looked for in what came out, the manifest put in.

ExecuTorch's exporter decides where constants lie, so the file is written twice: first as it comes, to find every tensor
in it by content (what is not found, code for code, is refused); then with the manifest that says where each one lies.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, Carried, Manifest
from octavo.core.model import CompressedModel
from octavo.errors import BadInput, OctavoError, Refused
from octavo.runtimes.base import Programs, Progress
from octavo.runtimes.onnx.graph import output_names
from octavo.runtimes.pte.read import ASSET, STRUCTURE, PteReadBack, find_edges, structure_digest
from octavo.workers.local import Worker

SECONDS = 900  # lowering takes seconds; minutes for hundreds of operators
LOWERING = "octavo.runtimes.pte.lowering"
_WORKER: list[Worker] = []  # one, kept: torch and the exporter take five seconds to load


def write(model: CompressedModel, manifest: Manifest, path: Path, programs: Programs, progress: Progress) -> None:
    """Write the file. Raises OctavoError when the exporter fails, Refused when a tensor is not in what it made."""
    from octavo.runtimes.pte.lowering import pack

    exported = _exported(model, programs)
    extra = manifest.extra | _ends(model, exported)
    progress("lowering", 0, 3)
    params, arrays = pack(exported)
    worker = _worker()
    made = worker.call(f"{LOWERING}:lower", params, arrays, timeout=SECONDS)
    progress("lowering", 1, 3)
    extra |= {**made.result, STRUCTURE: "0" * 64}  # the placement, and ExecuTorch's own counts of what was delegated
    with _opened(made.arrays["pte"]) as back:
        extra["edges"] = _edges(back, model)
        tensors = tuple(_located(back, carried) for carried in manifest.tensors)
    manifest = replace(manifest, tensors=tensors, extra=extra)
    named = {ASSET + name: np.frombuffer(data, np.uint8) for name, data in sorted(model.assets.items())}
    named[KEY] = np.frombuffer(manifest.to_json().encode(), np.uint8)  # last, so that nothing lies behind it
    whole = worker.call(f"{LOWERING}:finish", {}, named, timeout=SECONDS).arrays["pte"]
    progress("lowering", 2, 3)
    path.write_bytes(_sealed(whole, manifest))
    progress("lowering", 3, 3)


def _exported(model: CompressedModel, programs: Programs) -> Any:
    """The program with its weights as codes: static, or with dynamic int8 activations before weight-only layers."""
    import torch

    from octavo.runtimes.pte.dynamic import bind
    from octavo.runtimes.pte.rewrite import rewrite

    module, examples = programs.static("codes") if model.edges else programs.valued()
    rewrite(module)
    bind(module, model)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch
            return torch.export.export(module, examples, strict=False)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OctavoError(f"torch.export cannot capture the program to lower: {lines[0]}") from error


def _ends(model: CompressedModel, exported: Any) -> dict[str, Any]:
    """Names of what goes in and comes out, in the order of the file, which holds none."""
    inputs = [str(name) for name in exported.graph_signature.user_inputs]
    count = len(exported.graph_signature.user_outputs)
    plain = count - len(model.state)
    outputs = output_names(exported, count)[:plain]
    outputs = ["output"] if plain == 1 and model.state else outputs
    absent = {state.name for state in model.state} - set(inputs)
    if absent:
        raise BadInput(f"The program takes no input {', '.join(sorted(absent))}, which its state names.")
    state = {item.name: f"present.{item.name}" for item in model.state}
    return {"inputs": inputs, "outputs": [*outputs, *state.values()], "state": state}


def _edges(back: PteReadBack, model: CompressedModel) -> dict[str, list[str]]:
    """Where each edge's value lies. Raises Refused when XNNPACK quantises no value as an edge says."""
    found = find_edges(back.graphs, model.edges)
    lost = [name for name, at in found.items() if not at]
    if lost:
        raise Refused(
            f"ExecuTorch's exporter quantises {', '.join(lost[:5])}{' …' * (len(lost) > 5)} not as calibrated: "
            f"{len(lost)} of {len(found)} edges are nowhere in what it wrote.",
            "Compress again with those operators in float, or export to another runtime.",
        )
    return found


def _located(back: PteReadBack, carried: Carried) -> Carried:
    """The record with the places where the tensor was found. Raises Refused when it is nowhere in the file."""
    at, move = back.find(carried)
    if not at:
        raise Refused(
            f"{carried.name} {list(carried.shape)}: {carried.scheme} is nowhere in what ExecuTorch's exporter wrote: "
            "it changed the codes, dropped the scales or left the operator out.",
            "Keep this tensor in fp32, or export to another runtime.",
        )
    return replace(carried, at=at, moves=(*carried.moves, move) if move else carried.moves)


@contextmanager
def _opened(data: NDArray[Any]) -> Iterator[PteReadBack]:
    """A read-back of bytes that are no file yet."""
    handle, name = tempfile.mkstemp(suffix=".pte")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.data)
        back = PteReadBack(Path(name))
        try:
            yield back
        finally:
            back.close()
    finally:
        os.unlink(name)


def _sealed(whole: NDArray[Any], manifest: Manifest) -> bytearray:
    """The file with the digest of its own structure in its manifest, which keeps its length."""
    with _opened(whole) as back:
        digest = structure_digest(back.container, manifest, back.places)
        span = back.container.named[KEY]
    text = replace(manifest, extra=manifest.extra | {STRUCTURE: digest}).to_json().encode()
    if len(text) != span.size:
        raise OctavoError(f"The manifest has {len(text)} bytes, and room was left for {span.size}.")
    sealed = bytearray(whole.data)
    sealed[span.start : span.stop] = text
    return sealed


def _worker() -> Worker:
    """The lowering worker of this process."""
    if _WORKER and not _WORKER[0].alive:
        _WORKER.clear()
    if not _WORKER:
        _WORKER.append(Worker())
    return _WORKER[0]
