"""How far an artifact's outputs lie from the float original's, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.estimate import Estimate, finite
from octavo.core.metrics import Distance, Distances, Kind
from octavo.errors import BadInput, OctavoError
from octavo.verify.data import Window

Arrays = Mapping[str, NDArray[Any]]
Logits = NDArray[np.float32]
Run = Callable[[Any], Any]  # ids int64 [n] → logits [n, vocabulary]; or {name: array} → {name: array}


@dataclass(frozen=True)
class OutputsReport:
    """Distances of the output that lies farthest off (by SQNR), and of each output by name.

    `kl` (nats per position) and `agreement` (top-1) are None for outputs that are no logits. `samples`: windows or
    input dictionaries seen.
    """

    sqnr_db: Estimate
    cosine: Estimate
    kl: Estimate | None
    agreement: Estimate | None
    samples: int
    identical: bool
    nonfinite: int
    by_output: dict[str, Distances]
    extra: dict[str, Any] = field(default_factory=dict)  # further JSON keys

    def within(self, min_sqnr_db: float) -> bool:
        """Whether every output reaches the bound; NaN and infinite outputs never do."""
        return self.nonfinite == 0 and (self.identical or self.sqnr_db.value >= min_sqnr_db)

    def as_dict(self) -> dict[str, Any]:
        """JSON: plain numbers under CLI's keys, their intervals beside them. Identical outputs have no finite SQNR."""
        parts = {"sqnr_db": self.sqnr_db, "cosine": self.cosine, "kl": self.kl, "agreement": self.agreement}
        return {
            **{name: part and finite(part.value) for name, part in parts.items()},
            "intervals": {name: part.interval for name, part in parts.items() if part},
            "confidence": self.cosine.confidence,
            "n": self.cosine.n,
            "samples": self.samples,
            "identical": self.identical,
            "nonfinite": self.nonfinite,
            **self.extra,
        }


class OutputComparison:
    """Accumulates an OutputsReport; for callers that need the outputs for something else too."""

    def __init__(self, kind: Kind = "logits") -> None:
        self._kind: Kind = kind
        self._outputs: dict[str, Distance] = {}
        self._samples = 0

    def add(self, reference: Arrays, candidate: Arrays, cluster: Any = None) -> None:
        """Feed the outputs of one window or one batch. Raises OctavoError when names or shapes differ, BadInput when
        the reference itself is NaN."""
        missing = [name for name in reference if name not in candidate]
        if missing:
            raise OctavoError(f"The artifact has no output {missing}; its outputs are {list(candidate)}.")
        for name, right in reference.items():
            found = np.asarray(candidate[name])
            if right.shape != found.shape:
                raise OctavoError(f"Output '{name}': the original gives {right.shape}, the artifact {found.shape}.")
            if np.isnan(right).any():
                raise BadInput(f"Output '{name}' of the original holds NaN: there is nothing to compare with.")
            self._add(name, right, found, cluster)
        self._samples += 1

    def _add(self, name: str, right: NDArray[Any], found: NDArray[Any], cluster: Any) -> None:
        distance = self._outputs.setdefault(name, Distance(self._kind))
        if cluster is not None:
            distance.add(_rows(right, self._kind), _rows(found, self._kind), cluster)
            return
        for index in range(len(right) if right.ndim else 1):  # each sample of a batch is a cluster of its own
            one = slice(index, index + 1) if right.ndim else ...
            distance.add(_rows(right[one], self._kind), _rows(found[one], self._kind), (self._samples, index))

    def report(self, confidence: float = 0.95) -> OutputsReport:
        """Raises BadInput when nothing was fed."""
        if not self._outputs:
            raise BadInput("No inputs to compare outputs on.", "Give data with at least one sample.")
        found = {name: distance.result(confidence) for name, distance in self._outputs.items()}
        worst = min(found.values(), key=lambda item: item.sqnr_db.value if item.nonfinite == 0 else -np.inf)
        return OutputsReport(
            worst.sqnr_db,
            worst.cosine,
            worst.kl,
            worst.agreement,
            self._samples,
            all(item.identical for item in found.values()),
            sum(item.nonfinite for item in found.values()),
            found,
        )


def compare_outputs(
    reference: Run, candidate: Run, windows: Iterable[Any], *, kind: Kind = "logits", confidence: float = 0.95
) -> OutputsReport:
    """Run both sides on each window and compare.

    `windows`: `Window`s or int64 id arrays (both sides: ids [n] → logits [n, vocabulary]; a window is a cluster of
    correlated positions), or {input: array} with the batch on axis 0 (→ {output: array}; each sample is a cluster).
    `kind`: "logits" compares the last axis as scores over classes too (KL, agreement); "values" does not.
    """
    comparison = OutputComparison(kind)
    for index, window in enumerate(windows):
        ids = window.ids if isinstance(window, Window) else window
        cluster = window.cluster if isinstance(window, Window) else None if isinstance(window, Mapping) else index
        comparison.add(named(reference(ids)), named(candidate(ids)), cluster)
    return comparison.report(confidence)


def named(outputs: Any) -> Arrays:
    """Outputs by name: a bare array is the logits of a language model."""
    return outputs if isinstance(outputs, Mapping) else {"logits": np.asarray(outputs)}


def _rows(values: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """[rows, columns]: scores keep their last axis; other values are one row per sample."""
    if kind == "logits" and values.ndim > 1:
        return values.reshape(-1, values.shape[-1])
    return values.reshape(len(values) if values.ndim > 1 else 1, -1)
