"""Watching a float graph at work, and the scale of every quantised value that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.compress.annotate import Group, Plan
from octavo.compress.nodes import is_float
from octavo.compress.observers import Grid, Histogram, grid, minmax, observer
from octavo.compress.walk import Sample, Walk, samples
from octavo.core.model import Edge
from octavo.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

FEW = 32  # samples below which a warning is due: an extreme of the next sample lies outside with 1 chance in 32
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """The edges, in order of execution, and what is worth knowing of how they came about.

    `samples`: how many were run; `constant`: values that were zero throughout; `ranges`: {edge: (lowest, highest)}.
    """

    edges: tuple[Edge, ...]
    samples: int
    constant: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]
    notes: tuple[str, ...]


def calibrate(
    exported: ExportedProgram,
    plan: Plan,
    batches: Iterable[Sample],
    *,
    how: str = "mse",
    values: Mapping[str, torch.Tensor] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Calibration:
    """Run the float graph (with `values` {tensor: decoded weights} in their place) over the samples and choose scales.

    What the program returns keeps its whole range, whatever `how`: its largest values are the answer.

    Raises BadInput without samples, for shapes that do not fit, and where a value becomes NaN or infinite (named).
    """
    choose = observer(how)
    watch = {name: group for group in plan.groups if group.fixed is None for name in group.sources}
    seen = {group: Histogram() for group in plan.groups if group.fixed is None}
    walk = Walk(exported, values)
    count = 0

    def look(node: Node, result: Any) -> Any:
        group = watch.get(node.name)
        if group is not None and not (count and node.name in walk.constants):
            _count(seen[group], node, result)
        return result

    for sample in samples(exported, batches):
        walk(sample, look)
        count += 1
        progress("calibrate", count, 0)
    if not count:
        raise BadInput("There are no calibration samples.", "Give --calibration data, at least a few dozen samples.")
    ends = {item.name for node in exported.graph.nodes if node.op == "output" for item in node.all_input_nodes}
    chosen = {
        group: _chosen(group, seen.get(group), plan.dtype, minmax if ends & set(group.names) else choose)
        for group in plan.groups
    }
    return _calibration(exported, plan, chosen, seen, count)


def _count(histogram: Histogram, node: Node, result: Any) -> None:
    import torch

    array = result.detach().to(torch.float32).contiguous().numpy()
    if not np.isfinite(array).all():
        raise BadInput(
            f"The value of {node.name} is NaN or infinite on calibration data.",
            "The float model overflows there: mend it.",
        )
    histogram.add(array)


def _chosen(group: Group, seen: Histogram | None, dtype: str, choose: Callable[[Histogram, str], Grid]) -> Grid:
    if group.fixed is not None:
        low, high = (-128, 127) if dtype == "int8" else (-32768, 32767)
        return Grid(group.fixed[0], group.fixed[1], low, high)
    assert seen is not None
    return grid(seen.low, seen.high, dtype, narrow=True) if group.weight else choose(seen, dtype)


def _calibration(
    exported: ExportedProgram, plan: Plan, chosen: dict[Group, Grid], seen: dict[Group, Histogram], count: int
) -> Calibration:
    by_name = {name: (chosen[group], seen.get(group)) for group in plan.groups for name in group.names}
    ordered = [node.name for node in exported.graph.nodes if node.name in by_name and is_float(node)]
    edges = tuple(Edge(name, by_name[name][0].scale, by_name[name][0].zero_point, plan.dtype) for name in ordered)
    ranges = {name: (found.seen_low, found.seen_high) for name in ordered if (found := by_name[name][1]) is not None}
    constant = tuple(name for name, (low, high) in ranges.items() if low == high == 0.0)
    notes = list(plan.notes)
    if count < FEW:
        notes.append(
            f"{count} calibration samples: a new sample's extreme lies outside the range seen with a chance of 1 in "
            f"{count + 1}; {FEW} or more are usual"
        )
    if constant:
        notes.append(f"always zero on calibration data: {', '.join(constant)}")
    return Calibration(edges, count, constant, ranges, tuple(notes))
