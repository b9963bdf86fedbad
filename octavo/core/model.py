"""CompressedModel: everything a runtime needs, and nothing that was not decided before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import Role
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor


@dataclass(frozen=True)
class Program:
    """What is computed. `huggingface`: body is the config of a known family. `graph`: body is a torch.export graph
    in its documented JSON schema (no pickle is needed to read either)."""

    kind: Literal["huggingface", "graph"]
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json({"kind": self.kind, "body": self.body})).hexdigest()


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: name, shape, role, scheme (or its float type: fp32, fp16, bf16), content digest, SQNR in dB."""

    name: str
    shape: tuple[int, ...]
    role: Role
    scheme: str
    digest: str
    sqnr_db: float | None = None

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def quantized(self) -> bool:
        return self.scheme in SCHEMES and not SCHEMES[self.scheme].is_float

    @property
    def bytes(self) -> int:
        """Exact bytes of codes and scales, or of the float values."""
        if self.quantized:
            return SCHEMES[self.scheme].bytes(self.shape)
        return self.parameters * (4 if self.scheme == "fp32" else 2)


@dataclass(frozen=True)
class Edge:
    """A quantised activation: its stable name, scale, zero point and integer type."""

    name: str
    scale: float
    zero_point: int
    dtype: str


@dataclass(frozen=True)
class State:
    """What goes in and comes back at every step (an LSTM's state, a KV cache): shape with -1 for a free length."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Skipped:
    """A tensor that was left in float, and why."""

    name: str
    reason: str


class TensorReader(Protocol):
    """Where the tensors are read from."""

    def tensor(self, record: TensorRecord, start: int = 0, stop: int | None = None) -> TensorValue:
        """Return rows [start, stop) of one tensor."""
        ...


TensorValue = QuantizedTensor | NDArray[np.float32]


@dataclass(frozen=True)
class CompressedModel:
    """Program, every tensor, edges, state and assets; what was done (lineage) and what was not (skipped)."""

    program: Program
    tensors: tuple[TensorRecord, ...]
    reader: TensorReader = field(repr=False, compare=False)
    edges: tuple[Edge, ...] = ()
    state: tuple[State, ...] = ()
    assets: dict[str, bytes] = field(default_factory=dict, repr=False)
    skipped: tuple[Skipped, ...] = ()
    lineage: tuple[dict[str, Any], ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over program, tensors, edges, state and assets: the content, never the file layout."""
        return model_digest(self.parts())

    def parts(self) -> dict[str, Any]:
        """The digests that the model's digest is made of, in a form that a manifest carries."""
        return {
            "program": self.program.digest,
            "tensors": {record.name: record.digest for record in self.tensors},
            "edges": [asdict(edge) for edge in self.edges],
            "state": [asdict(state) | {"shape": list(state.shape)} for state in self.state],
            "assets": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.assets.items())},
        }

    @property
    def parameters(self) -> int:
        return sum(record.parameters for record in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight: codes, scales and unquantised tensors over all parameters."""
        return 8 * self.bytes / self.parameters if self.parameters else 0.0

    def record(self, name: str) -> TensorRecord:
        """Look a tensor up by name; KeyError if there is none."""
        return next(record for record in self.tensors if record.name == name)

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> TensorValue:
        """Rows [start, stop) of a tensor: QuantizedTensor, or float32 values."""
        return self.reader.tensor(self.record(name), start, stop)


def canonical_json(value: Any) -> bytes:
    """JSON with one spelling per value: what digests are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def model_digest(parts: dict[str, Any]) -> str:
    """The model digest recomputed from its parts."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()
