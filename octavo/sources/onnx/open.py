"""An .onnx file as a source of float weights, or as a torch module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import BadInput, nearest
from octavo.sources.onnx.fix import Fix

if TYPE_CHECKING:
    import torch

    from octavo.sources.graph import GraphSource

CODES = {2, 3, 21, 22, 25, 26}  # uint8, int8, uint4, int4, uint2, int2: the types that weights are quantised to
WEIGHT = {  # where these operators take their weight
    "DequantizeLinear": 0, "com.microsoft.MatMulNBits": 1, "MatMulInteger": 1, "ConvInteger": 1, "QLinearConv": 3,
    "QLinearMatMul": 3, "com.microsoft.QGemm": 3, "com.microsoft.GatherBlockQuantized": 0,
    "com.microsoft.DynamicQuantizeMatMul": 1,
}  # fmt: skip


def open_onnx(path: Path, fix: Fix | None = None) -> GraphSource:
    """The float weights and the program of an .onnx file; a free batch is 1.

    Raises BadInput as `import_onnx`, and for a file whose weights are quantised already.
    """
    from octavo.sources.graph import open_module

    model = read(path)
    held = quantised_weights(model.graph)
    if held:
        raise BadInput(
            f"{path}: quantised already: {len(held)} of its weights are integer codes, first '{held[0]}'.",
            "Give the float model that it was made from; `octavo inspect` and `octavo bench` take it as it is.",
        )
    module, example = import_model(model, path, fix)
    return open_module(module, example)


def import_onnx(path: str | Path, fix: Fix | None = None) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """An .onnx file as (nn.Module in eval mode, example inputs). The module returns {output name: tensor}.

    `fix`: {scalar or one-element input: its value}, which decides the If that asks for it; {dimension name: size};
    {input: whole shape}. A free first axis is 1. Quantised operators run as float arithmetic; float16 as float32.
    Raises BadInput: no ONNX model, a free size that is not given, an operator or opset that is not imported (named,
    with its node), an If that depends on the data.
    """
    return import_model(read(Path(path)), Path(path), fix)


def read(path: Path) -> Any:
    """The file's ModelProto with its external data. Raises BadInput."""
    import onnx

    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's own kinds, onnx's for external data, and OSError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path}: not an ONNX model ({reason}).", "Export it again.") from error
    if not model.HasField("graph") or not model.graph.node:
        raise BadInput(f"{path}: an ONNX file without operators.", "Export it again.")
    return model


def import_model(model: Any, path: Path, fix: Fix | None = None) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """`import_onnx` of a model that is read already."""
    from octavo.sources.onnx.node import Value
    from octavo.sources.onnx.walk import Walk
    from octavo.sources.recorded import Imported, blank

    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    walk = Walk({item.domain: item.version for item in model.opset_import})
    given = dict(fix or {})
    stored = {item.name for item in model.graph.initializer}
    wanted = [item for item in model.graph.input if item.name not in stored]
    _check_names(wanted, given, path)
    scope: dict[str, Value] = {}
    inputs: list[Value] = []
    for item in wanted:
        value = _input(walk, item, given, _batch_names(wanted), path)
        scope[item.name] = value
        inputs += [value] if value.constant is None else []
    outputs = walk.graph(model.graph, scope)
    if not inputs:
        raise BadInput(f"{path}: every input is fixed; nothing is left to compute.", "Leave one input free.")
    fixed = [item.name for item, value in zip(model.graph.output, outputs, strict=True) if value.constant is not None]
    if fixed:
        raise BadInput(f"{path}: the output '{fixed[0]}' depends on no input.", "Remove it from the model's outputs.")
    named = [(item.name, value) for item, value in zip(model.graph.output, outputs, strict=True)]
    return Imported(inputs, named, walk.runs, walk.tensors), tuple(blank(value) for value in inputs)


def quantised_weights(graph: Any) -> list[str]:
    """The initializers, of integer codes, that an operator uses as a weight."""
    codes = {item.name for item in graph.initializer if item.data_type in CODES and len(item.dims) > 1}
    found = []
    for node in graph.node:
        name = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        at = WEIGHT.get(name)
        if at is not None and at < len(node.input) and node.input[at] in codes:
            found.append(node.input[at])
    return found


def _input(walk: Any, item: Any, given: dict[str, Any], batch: set[str], path: Path) -> Any:
    """A model input: fixed to a value, or of a shape with nothing free."""
    import torch

    from octavo.sources.onnx.node import torch_type

    if not item.type.HasField("tensor_type"):
        raise BadInput(f"{path}: the input '{item.name}' is no tensor.", "Sequences and maps are not imported.")
    try:
        kind = torch_type(item.type.tensor_type.elem_type)
    except KeyError:
        raise BadInput(
            f"{path}: the input '{item.name}' holds no numbers.", "Cut off what comes before them."
        ) from None
    dims = item.type.tensor_type.shape.dim
    value = given.get(item.name)
    if isinstance(value, int | float) and all(dim.dim_value == 1 for dim in dims):
        return walk.known(item.name, torch.full([1] * len(dims), value, dtype=kind))
    if not item.type.tensor_type.HasField("shape") and value is None:
        raise BadInput(f"{path}: the input '{item.name}' has no shape.", f"Give it: --fix {item.name}=1x3x224x224.")
    if isinstance(value, int | float):
        if len(dims) != 1:
            raise BadInput(
                f"{path}: the input '{item.name}' has {len(dims)} axes; {value} is no shape for it.",
                f"Give all of them: --fix {item.name}={'x'.join('1' * max(len(dims), 2))}.",
            )
        value = (int(value),)
    shape = [_size(dim, axis, given, batch) for axis, dim in enumerate(dims)]
    if value is not None:
        shape = _agreed(item.name, list(value), dims, path)
    if None in shape:
        shown = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in dims)
        example = "x".join(str(size or 16) for size in shape)
        raise BadInput(
            f"{path}: the input '{item.name}' [{shown}] has free sizes, and a program for a device has none.",
            f"Give them: --fix {item.name}={example}.",
        )
    return walk.placeholder(item.name, tuple(shape), kind)


def _size(dim: Any, axis: int, given: dict[str, Any], batch: set[str]) -> int | None:
    """A size, or None where it is free: one sample at a time where it is the batch."""
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    if dim.dim_param and dim.dim_param in given:
        return int(given[dim.dim_param])
    return 1 if axis == 0 or (dim.dim_param and dim.dim_param in batch) else None


def _batch_names(wanted: list[Any]) -> set[str]:
    """Names of first axes: elsewhere they mean the batch too."""
    firsts = [item.type.tensor_type.shape.dim[0] for item in wanted if item.type.tensor_type.shape.dim]
    return {dim.dim_param for dim in firsts if dim.dim_param}


def _agreed(name: str, shape: list[int], dims: Any, path: Path) -> list[int | None]:
    """The shape given, if the graph's known sizes allow it."""
    wrong = len(dims) not in (0, len(shape)) or any(
        dim.dim_value not in (0, size) for dim, size in zip(dims, shape, strict=False)
    )
    if wrong or any(size < 1 for size in shape):
        known = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        raise BadInput(f"{path}: '{name}' fixed to the shape {shape}; the graph's is {known}.", "Give one that fits.")
    return list(shape)


def _check_names(wanted: list[Any], given: dict[str, Any], path: Path) -> None:
    names = {item.name for item in wanted}
    names |= {dim.dim_param for item in wanted for dim in item.type.tensor_type.shape.dim if dim.dim_param}
    for name in given:
        if name not in names:
            raise BadInput(f"{path}: no input or dimension '{name}' to fix.", nearest(name, names))
