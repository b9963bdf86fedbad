"""Which tensors of the file are a static model's edges: same scale, zero point and type, and the same sizes.

The converter keeps the order of operators but not their names. Among edges that share one grid (a pool and what goes
into it) the first fitting tensor in order is taken: any of them holds the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

from octavo.core.model import Edge
from octavo.errors import Refused
from octavo.runtimes.tflite.graph import Graph


def find_edges(graph: Graph, edges: Iterable[Edge], sizes: Mapping[str, int]) -> dict[str, int]:
    """{edge: tensor}. `sizes`: how many elements each edge's value has.

    Raises Refused for an edge that the file does not have, or whose scale float32 does not hold.
    """
    order = [*graph.inputs, *(int(index) for operator in graph.operators for index in operator.outputs)]
    order += [index for index in graph.constants() if index not in order]
    found: dict[str, int] = {}
    for edge in edges:
        if float(np.float32(edge.scale)) != edge.scale:
            raise Refused(f"The edge '{edge.name}' has scale {edge.scale!r}, which float32 does not hold.")
        fitting = [index for index in order if _is(graph, index, edge)]
        sized = [index for index in fitting if prod(graph.shape(index)) == sizes.get(edge.name, -1)] or fitting
        fresh = [index for index in sized if index not in found.values()]
        if not sized:
            raise Refused(
                f"litert-torch left the edge '{edge.name}' (scale {edge.scale:g}, zero point {edge.zero_point}) out.",
                "Calibrate for litert, or keep that operator in float.",
            )
        found[edge.name] = (fresh or sized)[0]
    return found


def _is(graph: Graph, index: int, edge: Edge) -> bool:
    held = graph.quantization(index)
    return (
        held is not None
        and graph.type(index) == edge.dtype.upper()
        and len(held[0]) == 1
        and float(held[0][0]) == edge.scale
        and int(held[1][0]) == edge.zero_point
    )
