"""The data of a network that is open: read in the shapes of its graph, divided, and examined before they calibrate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.core.model import Program
from octavo.core.source import Source
from octavo.errors import BadInput


@dataclass(frozen=True)
class NetworkData:
    """Reads data for `source`, a captured graph, and `run`, the same graph in fp32: {input: array} → {output: array}.

    `x`, `y`: names in an .npz; `preprocess`: the file that says how images and sound become inputs.
    """

    source: Source
    run: Callable[[Any], Any]
    x: str = "x"
    y: str = "y"
    preprocess: Path | None = None
    seed: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        from octavo.sources.torch import inputs_of

        return inputs_of(self.source.program)

    @property
    def batch(self) -> int:
        """How many samples the graph takes at once."""
        if len(self.shapes) > 1 and len({shape[:1] for shape in self.shapes.values()}) > 1:
            return 1  # inputs that have no batch in common: state
        return max(1, *(shape[0] if shape else 1 for shape in self.shapes.values()))

    def read(self, path: Path) -> Any:
        """Samples; or a Stream, for a .wav and where the preprocess.toml says how clips are cut into frames.

        Raises BadInput for what does not fit the graph, or its captured batch.
        """
        from octavo.verify.data import read_data
        from octavo.verify.preprocess import find_preprocess

        if path.suffix.lower() == ".wav":
            return self._stream(path)
        if path.suffix.lower() != ".npz" and path.exists():
            how = find_preprocess(path, self.preprocess)
            if how is not None and how.frame is not None:
                return self._stream(path)

        data = read_data(path, self.shapes, x=self.x, y=self.y, preprocess=self.preprocess, seed=self.seed)
        if len(data) % self.batch:
            raise BadInput(
                f"{path}: {len(data)} samples, and the model was captured for {self.batch} at a time.",
                f"Give a multiple of {self.batch}, or example inputs of one sample.",
            )
        return data

    def divided(self, path: Path, calibration: Path | None, samples: int | None) -> tuple[Any, Any, tuple[str, ...]]:
        """(evaluation, calibration, notes): no sample in common; what calibrates has been examined, and its warnings
        are among the notes."""
        from octavo.verify.divide import calibration_and_evaluation, divided_stream
        from octavo.verify.stream import Stream

        data = self.read(path)
        other = None if calibration is None else self.read(calibration)
        if isinstance(data, Stream) or isinstance(other, Stream):
            return divided_stream(data, other, samples)
        found = calibration_and_evaluation(data, other, seed=self.seed, samples=samples, batch=self.batch)
        said = dict.fromkeys((*data.notes, *(other.notes if other is not None else ()), *found.notes))
        findings = self._examined(found.calibration, calibration or path, found.evaluation if other else None)
        return found.evaluation, found.calibration, (*said, *findings.warnings)

    def calibrating(self, path: Path, samples: int | None = None) -> tuple[Any, tuple[str, ...]]:
        """(samples to calibrate on, notes), where nothing is evaluated: at most `samples`, drawn evenly over labels."""
        from octavo.verify.divide import drawn
        from octavo.verify.stream import Stream

        data = self.read(path)
        if isinstance(data, Stream):
            part = data.part(0, samples)
            return part, (*data.notes, f"{len(part)} of {len(data)} frames of {path.name} calibrate.")
        found = drawn(data, samples, self.seed, self.batch)
        notes = (*data.notes, f"{len(found)} of {len(data)} samples of {path.name} calibrate.")
        return found, (*notes, *self._examined(found, path, None).warnings)

    def _examined(self, data: Any, path: Path, beside: Any) -> Any:
        from octavo.verify.examine import examine

        said = path.is_dir() or path.suffix.lower() == ".zip"  # what the values are, by a preprocess.toml
        return examine(data, self.shapes, beside=None if beside is None else examine(beside), raw_bytes=said)

    def _stream(self, path: Path) -> Any:
        from octavo.verify.preprocess import require_preprocess
        from octavo.verify.stream import EXAMPLE, open_stream

        how = require_preprocess(path, self.preprocess, EXAMPLE)
        return open_stream(path, self.shapes, how, self.run, output_names(self.source.program))


def output_names(program: Program) -> tuple[str, ...]:
    """The keys of the dictionary that a graph returns, in order; nothing where it returns no dictionary."""
    calls = program.body["exported"]["graph_module"].get("module_call_graph", ())
    spec = next(
        (call["signature"]["out_spec"] for call in calls if call.get("fqn") == "" and call.get("signature")), ""
    )
    try:
        node = json.loads(spec)[1]
        return tuple(json.loads(node["context"])) if node["type"] == "builtins.dict" else ()
    except (ValueError, TypeError, KeyError, IndexError):
        return ()
