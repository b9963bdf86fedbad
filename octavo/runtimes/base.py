"""The contract of a runtime: decide how each tensor is carried, write the file, read it back, run it.

To add one: a file here with a class that has these methods, a line in REGISTRY, a section in core/carriage.toml.
`carry` decides and touches nothing; `lower` writes what was decided; `read_back` decodes the file with the vendor's
reader, back into the compressed model's own orientation and grid, so that digests can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import Carried, Manifest
from octavo.core.model import CompressedModel, Edge, TensorValue
from octavo.core.placement import Placement as Placement
from octavo.errors import BadInput, nearest

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]  # (what, done, total)
StaticWeights = Literal["codes", "fake", "outline"]


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Availability:
    """Whether a runtime works here, its version, its units, and what to do if it does not."""

    works: bool
    version: str = ""
    units: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""


class Session(Protocol):
    """A loaded artifact. State goes in and comes back: a KV cache, an LSTM's state, or None for the first step."""

    def step(self, inputs: Arrays, state: Any = None) -> tuple[Arrays, Any]:
        """Run once. Language models: {"ids": int64 [1, n]} → {"logits": float32 [1, n, vocab]}, and the new state."""
        ...

    def placement(self) -> list[Placement]:
        """Which unit runs each operator."""
        ...

    def close(self) -> None: ...


class ReadBack(Protocol):
    """A file opened with the vendor's reader."""

    @property
    def manifest(self) -> Manifest | None:
        """The manifest in the file, None without one. Raises EditedManifest when it contradicts itself."""
        ...

    def listing(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Every tensor of the file: (its own name, shape, type)."""
        ...

    def tensor(self, carried: Carried) -> TensorValue:
        """Decode one tensor and undo the moves. Raises Refused when what lies there cannot be the tensor described."""
        ...

    def digest(self, carried: Carried) -> str:
        """The digest of `tensor(carried)`, in row blocks where the format allows. Raises Refused likewise."""
        ...

    def stored(self, carried: Carried) -> NDArray[np.float32]:
        """A float tensor as it lies in the file, before any move is undone."""
        ...

    def edges(self) -> dict[str, Edge]:
        """{edge name: how the file quantises that value}, as far as the format shows; optional."""
        ...

    def close(self) -> None: ...


class Programs(Protocol):
    """The torch programs of a compressed model, made on demand; their parameters bear its tensors' names."""

    def outline(self) -> Any:
        """Without weights (zeros that take no memory): an ExportedProgram, with quantise → dequantise on the edges of
        a static model; of a language model the decoder module."""
        ...

    def valued(self) -> tuple[Any, tuple[Any, ...]]:
        """(GraphModule with the decoded weights in float32, example inputs): for weight-only schemes and floats."""
        ...

    def static(self, weights: StaticWeights = "codes") -> tuple[Any, tuple[Any, ...]]:
        """(GraphModule in PT2E's converted form, example inputs): quantise → dequantise on every edge, and weights as
        "codes" (int8 → dequantize), "fake" (decoded float → quantize → dequantize) or "outline" (zeros)."""
        ...


class Runtime(Protocol):
    """One on-device runtime."""

    name: str
    suffix: str

    def carry(self, model: CompressedModel) -> Manifest:
        """Decide where and how each tensor lies in the file. Raises Refused with what is possible instead."""
        ...

    def lower(
        self, model: CompressedModel, manifest: Manifest, path: Path, programs: Programs, progress: Progress
    ) -> None:
        """Write the file to `path` (a temporary one). `programs` makes the torch program in the form needed."""
        ...

    def read_back(self, path: Path) -> ReadBack: ...

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        units: tuple[str, ...] = ("cpu",),
        context: int | None = None,
        kv: str | None = None,
    ) -> Session:
        """Load the file. `context`: positions of a sequence to make room for, where a runtime must know beforehand.

        `kv`: type of the KV cache (default: what rounds least). Raises BadInput for one that the file cannot have.
        """
        ...

    def discard(self, path: Path) -> None:
        """Delete what `lower` wrote beside `path`, after a failure."""
        ...

    def files(self, path: Path) -> list[Path]:
        """Every file that belongs to the artifact, `path` first."""
        ...

    def run_line(self, path: Path) -> str:
        """A command that runs the file."""
        ...

    def doctor(self) -> Availability: ...


REGISTRY = {
    "llamacpp": "octavo.runtimes.llamacpp:LlamaCpp",
    "onnxruntime": "octavo.runtimes.onnxruntime:OnnxRuntime",
    "litert": "octavo.runtimes.litert:LiteRt",
    "executorch": "octavo.runtimes.executorch:ExecuTorch",
    "coreml": "octavo.runtimes.coreml:CoreMl",
}
SUFFIXES = {
    ".gguf": "llamacpp", ".onnx": "onnxruntime", ".tflite": "litert", ".pte": "executorch", ".mlpackage": "coreml",
}  # fmt: skip


def runtime(name: str) -> Runtime:
    """Look a runtime up by name. Raises BadInput with the nearest names."""
    if name not in REGISTRY:
        raise BadInput(f"Unknown runtime '{name}'.", nearest(name, REGISTRY))
    module, attribute = REGISTRY[name].split(":")
    found: Runtime = getattr(import_module(module), attribute)()
    return found


def runtime_of(path: Path) -> Runtime:
    """The runtime that opens this file, by its suffix. Raises BadInput."""
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{path}: no runtime opens '{path.suffix}' files.", f"Octavo runs {', '.join(SUFFIXES)}.")
    if not path.exists():
        raise BadInput(f"{path}: no such file.")
    return runtime(SUFFIXES[path.suffix])


def open_artifact(
    path: Path, *, threads: int | None = None, context: int | None = None, kv: str | None = None
) -> Session:
    """Open a file in the runtime that its suffix names."""
    return runtime_of(path).open(path, threads=threads, context=context, kv=kv)
