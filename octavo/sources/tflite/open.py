"""A .tflite file as a source of float weights, or as a torch module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import BadInput

if TYPE_CHECKING:
    import torch

    from octavo.sources.graph import GraphSource
    from octavo.sources.tflite.file import Graph


def open_tflite(path: Path) -> GraphSource:
    """The float weights and the program of a .tflite file. Raises BadInput as `import_tflite`."""
    from octavo.sources.graph import open_module
    from octavo.sources.tflite.file import read

    graph = read(Path(path))
    module, example = _imported(graph, Path(path))
    return replace(open_module(module, example), notes=graph.notes)


def import_tflite(path: str | Path) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A float .tflite file as (nn.Module in eval mode, example inputs). The module returns {output name: tensor}.

    Inputs and outputs keep the file's shapes (channels last) and its signature's names; inside, images are channels
    first. A free batch is 1. Half-precision weights are widened, which is exact; weights stored as codes beside float
    values (dynamic-range quantisation) are decoded.
    Raises BadInput: no .tflite, damaged, values that are codes, several signatures, a free size other than the batch,
    an operator that is not imported (named, with its place and version), a result not of the shape in the file.
    """
    from octavo.sources.tflite.file import read

    return _imported(read(Path(path)), Path(path))


def _imported(graph: Graph, path: Path) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    from octavo.sources.recorded import Imported, blank
    from octavo.sources.tflite.walk import Walk

    walk = Walk(graph)
    try:
        inputs, outputs = walk.walk()
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.remedy) from error
    return Imported(inputs, outputs, walk.runs, walk.used()), tuple(blank(value) for value in inputs)
