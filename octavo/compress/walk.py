"""Running a graph node by node: to watch its values, or to change them on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from octavo.compress.nodes import inputs, parameters, tensors, value
from octavo.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

Item = TypeVar("Item")
See = Callable[[Any, Any], Any]
Sample = Mapping[str, Any]  # {input: array or tensor}


class Walk:
    """A program that runs node by node with these tensors (by tensor name; the program's own where none is given)."""

    def __init__(self, exported: ExportedProgram, values: Mapping[str, torch.Tensor] | None = None) -> None:
        self.exported = exported
        self.nodes = list(exported.graph.nodes)
        held = {**tensors(exported), **(values or {})}
        self.constants = {place: held[name].detach() for place, name in parameters(exported).items()}
        self._last = _last_uses(self.nodes)

    def __call__(self, sample: Mapping[str, Any], see: See | None = None) -> list[Any]:
        """The outputs for one sample {input: tensor}. `see(node, value)` may return another value to go on with."""
        import torch

        known: dict[Node, Any] = {}
        with torch.no_grad():
            for node, dead in zip(self.nodes, self._last, strict=True):
                if node.op == "output":
                    return [known[item] for item in node.all_input_nodes]
                if node.op == "placeholder":
                    result = self.constants[node.name] if node.name in self.constants else sample[node.name]
                else:
                    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda item: known[item])
                    result = node.target(*args, **kwargs)
                known[node] = result if see is None else see(node, result)
                for item in dead:
                    del known[item]
        raise BadInput("The program has no output.")


def samples(exported: ExportedProgram, batches: Iterable[Sample]) -> Iterator[dict[str, torch.Tensor]]:
    """Batches as samples of exactly the program's shapes; a batch that holds several along axis 0 is cut up.

    Raises BadInput for a missing input, a shape that does not fit, and NaN or infinite values: each names the sample.
    """
    import torch

    wanted = {node.name: value(node) for node in inputs(exported)}
    for number, batch in enumerate(batches):
        missing = [name for name in wanted if name not in batch]
        if missing:
            raise BadInput(
                f"Calibration sample {number} has no '{missing[0]}'; it has {', '.join(batch) or 'nothing'}.",
                "Give one array per model input, by its name.",
            )
        count = {_count(number, name, np.shape(batch[name]), like) for name, like in wanted.items()}
        if len(count) > 1:
            raise BadInput(
                f"Calibration sample {number}: its inputs hold {sorted(count)} samples.", "Give as many of each."
            )
        for index in range(count.pop() if count else 0):
            parts = {name: _part(batch[name], like, index) for name, like in wanted.items()}
            for name, part in parts.items():
                if part.is_floating_point() and not bool(torch.isfinite(part).all()):
                    bad = int((~torch.isfinite(part)).sum())
                    raise BadInput(
                        f"Calibration sample {number}: {bad} of {part.numel()} values of '{name}' are NaN or infinite.",
                        "Repair or drop that sample.",
                    )
            yield parts


def evenly(items: list[Item], count: int) -> list[Item]:
    """At most `count` of the items, from first to last: samples may come in an order (a stream begins in silence)."""
    if len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]


def _count(number: int, name: str, shape: tuple[int, ...], like: torch.Tensor) -> int:
    """How many samples an array of `shape` holds."""
    want = tuple(like.shape)
    if shape == want:
        return 1
    if len(shape) == len(want) and shape and shape[1:] == want[1:] and want[0] and shape[0] % want[0] == 0:
        return shape[0] // int(want[0])
    turned = sorted(shape[1:]) == sorted(want[1:])
    raise BadInput(
        f"Calibration sample {number}: '{name}' is {list(shape)}; the model takes {list(want)}.",
        "Its axes are in another order: check the layout (nchw, nhwc)." if turned else "Check the preprocessing.",
    )


def _part(array: Any, like: torch.Tensor, index: int) -> torch.Tensor:
    import torch

    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(array))
    size = like.shape[0] if like.dim() else 1
    return (tensor[index * size : (index + 1) * size] if like.dim() else tensor).to(like.dtype)


def _last_uses(nodes: list[Node]) -> list[list[Node]]:
    """Per node, the values that nobody needs after it."""
    last: dict[Node, int] = {}
    for index, node in enumerate(nodes):
        last[node] = index
        for item in node.all_input_nodes:
            last[item] = index
    dead: list[list[Node]] = [[] for _ in nodes]
    for node, index in last.items():
        dead[index].append(node)
    return dead
