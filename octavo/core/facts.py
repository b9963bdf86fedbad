"""ModelFacts: what planning needs to know of a model. Shapes, operators and bytes; never weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from octavo.core.architecture import Role
from octavo.core.decoder_shape import DecoderShape

OperatorKind = Literal[
    "matmul",  # Linear, Gemm, MatMul with a weight
    "conv",  # convolution whose groups hold more than one input channel
    "depthwise",  # convolution with one input channel per group
    "attention",  # products of activations with activations (QKᵀ, AV; a fused attention operator)
    "recurrent",  # LSTM, GRU, a scan
    "gather",  # rows looked up: an embedding
    "norm",
    "softmax",
    "activation",  # pointwise non-linearity
    "elementwise",  # add, multiply, scale, cast
    "pool",  # pooling and other reductions
    "move",  # reshape, transpose, concat, slice, pad, resize: bytes move, nothing is computed
    "other",
]


@dataclass(frozen=True)
class WeightFacts:
    """One stored tensor. `stored`: its scheme or float type as the source has it; `stored_bytes` exact, 0 if unknown
    (a config without weights)."""

    name: str
    shape: tuple[int, ...]
    role: Role
    stored: str
    stored_bytes: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class EdgeFacts:
    """A value that flows between operators: shape (batch 1), and bytes per element as the source computes it."""

    name: str
    shape: tuple[int, ...]
    element_bytes: float

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return int(self.elements * self.element_bytes)


@dataclass(frozen=True)
class OperatorFacts:
    """One operator: the format's own name for it, its kind, multiply-accumulates of one inference, the names of the
    weights it reads, of the edges it reads and of those it writes."""

    name: str
    op: str
    kind: OperatorKind
    macs: int
    weights: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class KvLayer:
    """One layer's cache: key and value elements per position, and the window beyond which nothing is kept."""

    key: int
    value: int
    window: int | None = None


@dataclass(frozen=True)
class LanguageFacts:
    """A decoder: `macs_per_token` of its weights (no attention, no head), `head_macs` of one row of logits,
    `attention_macs` per token and position attended, its own included (sum over layers, windows not applied).
    `context` is 0 where the source states no limit."""

    vocab_size: int
    hidden_size: int
    heads: int
    context: int
    tied: bool
    kv: tuple[KvLayer, ...]
    macs_per_token: int
    head_macs: int
    attention_macs: int


@dataclass(frozen=True)
class ModelFacts:
    """A model as the planner sees it. `network`: `operators` and `edges` are of one inference at batch 1, in an order
    in which they can run. `language`: they are of one decoded token (its past is in `language`). `size`: a bare
    parameter count, nothing else is known.

    `missing`: what could not be found out, in words, so that the plan can say so. `origin`: what was read, in words.
    `decoder`: the numbers a language model's graph is drawn from, for as many tokens at once as one likes.
    """

    name: str
    kind: Literal["network", "language", "size"]
    parameters: int
    active_parameters: int
    weights: tuple[WeightFacts, ...] = ()
    operators: tuple[OperatorFacts, ...] = ()
    edges: tuple[EdgeFacts, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    language: LanguageFacts | None = None
    missing: tuple[str, ...] = ()
    origin: str = ""
    decoder: DecoderShape | None = None

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one inference, or of one decoded token with an empty past (the head included)."""
        return sum(operator.macs for operator in self.operators)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of the weights as the source stores them; 0 where it holds none."""
        return sum(weight.stored_bytes for weight in self.weights)

    @cached_property
    def read_shares(self) -> tuple[tuple[WeightFacts, float], ...]:
        """Of every weight the share that one decoded token reads: of a table looked up one row, of a matrix as much as
        it multiplies with (of a mixture's experts those it passes through), else all. A tied embedding is its head.
        A weight of which it is not known what reads it counts whole, unless it is a table."""
        known = {weight.name: weight for weight in self.weights}
        shares: dict[str, float] = {}
        for operator in self.operators:
            for weight in (known[name] for name in operator.weights if name in known):
                share = 1.0
                if operator.kind == "gather":
                    share = 1 / max(weight.shape[0], 1)
                elif len(weight.shape) > 1 and operator.macs:
                    share = min(1.0, operator.macs / max(weight.parameters, 1))
                shares[weight.name] = max(share, shares.get(weight.name, 0.0))
        if self.operators:
            for name, weight in known.items():
                shares.setdefault(name, 0.0 if weight.role == "embedding" else 1.0)
        return tuple((known[name], share) for name, share in shares.items())
