"""Names of the file's tensors: ours for weights, edges and ends, readable ones for the rest; each used once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from octavo.errors import BadInput
from octavo.runtimes.tflite.graph import Graph


class Names:
    """Hands names out; whoever comes first gets the name as it is, a later one with a number behind."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.given: dict[int, str] = {}
        self._used: set[str] = set()

    def give(self, index: int, name: str) -> str:
        """Call a tensor `name` if it has no name yet; the name it has now."""
        if index not in self.given:
            tries = (name if number == 1 else f"{name}#{number}" for number in count(1))
            self.given[index] = next(free for free in tries if free not in self._used)
            self._used.add(self.given[index])
        return self.given[index]

    def ends(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Call inputs and outputs by the program's names, in the signature too.

        Raises BadInput when they are not as many.
        """
        graph, made = self.graph, self.graph.schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = "serving_default", 0
        for which, names, indices in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
            if len(names) != len(indices):
                raise BadInput(f"The converted graph has {len(indices)} {which}; the program has {len(names)}.")
            entries = []
            for name, index in zip(names, indices, strict=True):
                self.give(index, name)
                entries.append(graph.schema.TensorMapT())
                entries[-1].name, entries[-1].tensorIndex = name, index
            setattr(made, which, entries)
        graph.model.signatureDefs = [made]

    def edges(self, edges: Mapping[str, int]) -> dict[str, str]:
        """Call each edge's tensor after it; {edge: the name of its tensor}."""
        return {edge: self.give(index, edge) for edge, index in edges.items()}

    def settle(self) -> None:
        """Name the rest: results after their operator's weight, else by the operator's kind. Writes all names down."""
        places = {int(index): place for place, tensor in enumerate(self.graph.operators) for index in tensor.outputs}
        for place, operator in enumerate(self.graph.operators):
            weights = [self.given[int(i)] for i in operator.inputs if int(i) in self.given and int(i) not in places]
            layer = next((name.removesuffix(".weight") for name in weights if name.endswith(".weight")), "")
            for index in operator.outputs:
                self.give(int(index), layer or f"{self.graph.kind(operator).lower()}.{place}")
        for index, tensor in enumerate(self.graph.tensors):
            tensor.name = self.give(index, "constant" if self.graph.data(index) is not None else "value")
