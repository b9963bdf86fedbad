"""The torch programs of a compressed model, made when a runtime asks for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.api.load import require_torch
from octavo.core.architecture import decoder_spec
from octavo.core.model import CompressedModel, TensorValue
from octavo.errors import Refused

if TYPE_CHECKING:
    from octavo.runtimes.base import StaticWeights


@dataclass(frozen=True)
class ModelPrograms:
    """`runtimes.base.Programs` of one compressed model. Every method raises Missing without torch."""

    model: CompressedModel

    def outline(self) -> Any:
        """The program without its weights: an ExportedProgram, or the decoder module of a language model."""
        require_torch()
        if self.model.program.kind == "huggingface":
            from octavo.sources.decoder import build

            return build(decoder_spec(self.model.program.body))
        if self.model.edges:
            from octavo.sources.qdq import outline

            return outline(self.model.program, self.model.edges)
        from octavo.sources.torch import rebuild

        return rebuild(self.model.program)

    def valued(self) -> tuple[Any, tuple[Any, ...]]:
        """(the float graph with the decoded weights, example inputs)."""
        self._graph_only()
        from octavo.sources.qdq import valued

        return valued(self.model.program, self._tensors())

    def static(self, weights: StaticWeights = "codes") -> tuple[Any, tuple[Any, ...]]:
        """(the graph with quantise → dequantise on its edges, example inputs); see sources.qdq."""
        self._graph_only()
        from octavo.sources.qdq import static

        tensors = None if weights == "outline" else self._tensors()
        schemes = {record.name: record.scheme for record in self.model.tensors}
        return static(self.model.program, self.model.edges, tensors, weights, schemes)

    def _graph_only(self) -> None:
        require_torch()
        if self.model.program.kind != "graph":
            raise Refused("A language model's program is not one fixed graph.", "Export it to llamacpp or onnxruntime.")

    def _tensors(self) -> dict[str, TensorValue]:
        return {record.name: self.model.tensor(record.name) for record in self.model.tensors}
