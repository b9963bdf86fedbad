"""llama.cpp: one GGUF file with architecture, tokenizer, codes and scales, and Octavo's manifest.

Codes are carried exactly or not at all (core/carriage.toml has the table). `llama/` holds the pieces: blocks (bytes of
a block), names (tensors and their moves), metadata, tokenizer and merges, write, readback, session.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.architecture import DecoderSpec, decoder_spec
from octavo.core.carriage import carriage
from octavo.core.manifest import Carried, Manifest, manifest_for
from octavo.core.model import CompressedModel, TensorRecord
from octavo.core.tensor import float_digest
from octavo.errors import BadInput, Refused
from octavo.runtimes.base import Availability, Programs, Progress, Session
from octavo.runtimes.llama import metadata
from octavo.runtimes.llama.names import ARCHITECTURES, gguf_name, moves
from octavo.runtimes.llama.tokenizer import read_tokenizer

ROPE_FACTORS = "rope_freqs.weight"


class LlamaCpp:
    """The Runtime of llama.cpp: GGUF files, on the CPU."""

    name = "llamacpp"
    suffix = ".gguf"

    def carry(self, model: CompressedModel) -> Manifest:
        """Decide how each tensor lies in the file.

        Raises Refused for a graph, an architecture or config that llama.cpp does not compute, or a scheme that GGUF
        cannot hold exactly; BadInput when tensors are missing or have other shapes than the config says.
        """
        spec = _spec(model)
        metadata.check(spec)
        _check_tensors(model, spec)
        tensors = tuple(self._carried(model, spec, record) for record in model.tensors)
        tokenizer = read_tokenizer(model.assets, spec)
        notes = [*tokenizer.notes, metadata.context(spec)[1]]
        extra: dict[str, Any] = {"architecture": ARCHITECTURES[spec.family], "tokenizer": tokenizer.kind}
        return manifest_for(model, self.name, tensors, notes=tuple(note for note in notes if note), extra=extra)

    def lower(
        self, model: CompressedModel, manifest: Manifest, path: Path, programs: Programs, progress: Progress
    ) -> None:
        """Write the GGUF to `path`. `programs` are not needed: llama.cpp brings its own programs."""
        from octavo.runtimes.llama.write import write_gguf

        spec = _spec(model)
        stored = {carried.name: carried.stored_as for carried in manifest.tensors}
        keys: dict[str, Any] = {
            "general.type": "model",
            "general.quantization_version": metadata.QUANTIZATION_VERSION,
            "general.file_type": metadata.file_type(stored, model.tensors),
        }
        keys |= metadata.architecture(spec) | read_tokenizer(model.assets, spec).keys
        factors = metadata.rope_factors(spec)
        extra = {} if factors is None else {ROPE_FACTORS: factors}
        write_gguf(path, ARCHITECTURES[spec.family], keys, model, manifest, extra, progress)

    def read_back(self, path: Path) -> Any:
        """Open the file with gguf-py's reader (GgufReadBack). Raises BadInput when it is damaged."""
        from octavo.runtimes.llama.readback import GgufReadBack

        return GgufReadBack(path)

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        units: tuple[str, ...] = ("cpu",),
        context: int | None = None,
        kv: str | None = None,
    ) -> Session:
        """Load the file in llama.cpp, in a worker process. `context`: positions to make room for (see LlamaSession).

        Raises BadInput for an unknown `kv`; Missing when units are asked for and the CPU is not among them.
        """
        from octavo.runtimes.llama.session import LlamaSession

        session: Session = LlamaSession(path, threads=threads, context=context, units=units, kv_type=kv or "f32")
        return session

    def discard(self, path: Path) -> None:
        """A GGUF is one file: there is nothing beside it."""

    def files(self, path: Path) -> list[Path]:
        """A GGUF is one file."""
        return [path]

    def run_line(self, path: Path) -> str:
        """The command that runs the file outside Octavo."""
        return f"llama-cli -m {shlex.quote(str(path))} -p 'Once upon a time'"

    def doctor(self) -> Availability:
        """Whether xllamacpp (llama.cpp as a wheel) is installed; GGUF files can be written and read without it."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return Availability(True, f"xllamacpp {version('xllamacpp')}, gguf {version('gguf')}", ("cpu",))
        except PackageNotFoundError as error:
            return Availability(
                False,
                reason=f"{error.name} is not installed.",
                remedy="pip install 'octavo[llama]' (export needs only gguf)",
            )

    def _carried(self, model: CompressedModel, spec: DecoderSpec, record: TensorRecord) -> Carried:
        cell = carriage(self.name, record)
        made = moves(spec, record, cell.stored_as)
        carried = Carried(
            name=record.name,
            shape=record.shape,
            role=record.role,
            scheme=record.scheme,
            digest=record.digest,
            stored_as=cell.stored_as,
            at=(gguf_name(spec, record.name),),
            moves=made,
            why=cell.why,
        )
        if "plus_one" not in made:
            return carried
        values = np.asarray(model.tensor(record.name), np.float32)
        stored = values + np.float32(1)
        if np.array_equal(stored - np.float32(1), values):
            return carried
        why = f"{cell.why}; " if cell.why else ""
        return replace(
            carried,
            why=f"{why}fp32(1 + w) does not give w back for every weight: the digest is of what lies in the file",
            carried_digest=float_digest(stored),
        )


def _spec(model: CompressedModel) -> DecoderSpec:
    if model.program.kind != "huggingface":
        raise Refused(
            "llama.cpp runs language models of known families, not operator graphs.",
            "Export this model to another runtime (onnxruntime).",
        )
    return decoder_spec(model.program.body)


def _check_tensors(model: CompressedModel, spec: DecoderSpec) -> None:
    """Raise BadInput, naming them, when the tensors are not exactly those of the config."""
    expected = {name: tensor.shape for name, tensor in spec.tensors().items()}
    found = {record.name: record.shape for record in model.tensors}
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not one of its tensors" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise BadInput(
            f"The config and the tensors disagree: {'; '.join(sorted(problems)[:5])} ({len(problems)} in all).",
            "Compress the model again.",
        )
