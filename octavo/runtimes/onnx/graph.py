"""The float program as an ONNX graph whose weights are inputs: so nothing about them can be folded into it.

torch.onnx.export runs on weights that take no memory (one zero, expanded); the real ones are bound by name afterwards.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from octavo.core.architecture import decoder_spec
from octavo.core.model import CompressedModel
from octavo.errors import BadInput, OctavoError
from octavo.runtimes.onnx.integers import prepare
from octavo.runtimes.onnx.layout import EDGE_CODES

if TYPE_CHECKING:
    import onnx_ir
    import torch

OPSET = 21  # the first with INT4 tensors; 18 or later is what the exporter writes
TRACED = 4  # positions while tracing: sizes 0 and 1 would be taken for constants


_MADE: dict[tuple[Any, ...], bytes] = {}  # graphs of this process: weightless, so small
_MADE_LIMIT = 4


def float_graph(model: CompressedModel, program: Callable[[], Any]) -> onnx_ir.Model:
    """The program of `model` as an ONNX IR model; its first inputs are the program's, then one per tensor by name.

    `program()`: the decoder module ("huggingface") or the ExportedProgram ("graph"). Tracing takes most of an export's
    time and sees no weight, so schemes of one model share it. Raises OctavoError when the exporter fails, with its
    reason.
    """
    import onnx
    import onnx_ir

    key = model.program.digest, tuple(record.name for record in model.tensors), model.edges
    if key not in _MADE:
        if len(_MADE) >= _MADE_LIMIT:
            _MADE.pop(next(iter(_MADE)))
        made = onnx_ir.to_proto(_float_graph(model, program()))
        _MADE[key] = made.SerializeToString(deterministic=True)
    found: onnx_ir.Model = onnx_ir.from_proto(onnx.ModelProto.FromString(_MADE[key]))
    return found


def _float_graph(model: CompressedModel, program: Any) -> onnx_ir.Model:
    """Trace, translate, make the weights inputs, tidy up."""
    exported = _traced_decoder(model, program) if model.program.kind == "huggingface" else program
    made = _translate(exported)
    if model.edges:
        _name_edges(made, exported, model)
    graph, names = made.graph, {record.name for record in model.tensors}
    for name, same in model.program.body.get("aliases", {}).items() if model.program.kind == "graph" else ():
        if name in graph.initializers and same in graph.initializers:
            graph.initializers[name].replace_all_uses_with(graph.initializers[same])
    for name in [name for name in graph.initializers if name in names]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    _tidy(made)
    if model.edges:
        prepare(made, model.edges)
    _name_ends(model, made, exported, names)
    return made


def _name_edges(made: onnx_ir.Model, exported: Any, model: CompressedModel) -> None:
    """Name the integers of every edge `EDGE.codes`: the exporter keeps the order of the nodes, not their names."""
    names = {f"{edge.name}_codes": edge.name for edge in model.edges}
    order = [names[node.name] for node in exported.graph.nodes if node.name in names]
    found = [node for node in made.graph if node.op_type == "QuantizeLinear"]
    if len(found) != len(order) or len(order) != len(names):
        raise OctavoError(f"torch.onnx made {len(found)} QuantizeLinear of {len(names)} edges.", "Please report this.")
    for node, name in zip(found, order, strict=True):
        node.outputs[0].name = name + EDGE_CODES


def _traced_decoder(model: CompressedModel, module: torch.nn.Module) -> torch.export.ExportedProgram:
    """torch.export of the decoder, with free lengths for the ids and the cache."""
    import torch

    spec = decoder_spec(model.program.body)
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        hollow = torch.nn.Parameter(torch.zeros(1).expand(parameter.shape), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, hollow)
    cache = [torch.zeros(1, spec.kv_heads, TRACED - 1, spec.head_dim) for _ in range(2 * spec.layers)]
    free = torch.export.Dim.DYNAMIC
    shapes = ({1: free}, [{2: free} for _ in cache])
    with torch.no_grad(), _quiet():
        ids = torch.ones(1, TRACED, dtype=torch.int64)
        return torch.export.export(module, (ids, cache), dynamic_shapes=shapes, strict=False)


def _translate(exported: torch.export.ExportedProgram) -> onnx_ir.Model:
    import torch

    with _quiet():
        try:
            done = torch.onnx.export(exported, dynamo=True, optimize=False, opset_version=OPSET, verbose=False)
        except Exception as error:  # the exporter wraps whatever its operators raise
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            raise OctavoError(f"torch.onnx cannot export this program: {reason}") from error
    assert done is not None
    return done.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about itself (absent torchvision, deprecations inside torch) off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tidy(made: onnx_ir.Model) -> None:
    """Fold constants, drop what is unused and what the exporter noted about itself (source lines among it)."""
    from onnxscript import optimizer

    with _quiet():
        optimizer.optimize(made)
    made.metadata_props.clear()
    made.graph.metadata_props.clear()
    values = [*made.graph.inputs, *made.graph.outputs, *made.graph.initializers.values()]
    for node in made.graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()


def _name_ends(model: CompressedModel, made: onnx_ir.Model, exported: Any, weights: set[str]) -> None:
    """Inputs and outputs under names that a caller can rely on."""
    inputs = [value for value in made.graph.inputs if value.name not in weights]
    if model.program.kind == "huggingface":
        layers = decoder_spec(model.program.body).layers
        cache = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        into = ["ids", *(f"past_key_values.{name}" for name in cache)]
        out = ["logits", *(f"present.{name}" for name in cache)]
        for value, name in zip(inputs, into, strict=True):
            value.name = name
    else:
        # State goes in under its name, and comes out as the last outputs, in the same order.
        plain = len(made.graph.outputs) - len(model.state)
        out = output_names(exported, len(made.graph.outputs))[:plain]
        out = ["output"] if plain == 1 and model.state else out
        out += [f"present.{state.name}" for state in model.state]
        absent = {state.name for state in model.state} - {value.name for value in inputs}
        if absent:
            raise BadInput(f"The program takes no input {', '.join(sorted(absent))}, which its state names.")
    for value, name in zip(made.graph.outputs, out, strict=True):
        if value.is_graph_input() or value.name in weights:  # an input handed through keeps its name
            continue
        value.name = name


def output_names(exported: Any, count: int) -> list[str]:
    """The keys of a returned dictionary; else `output`, or `output.0`, `output.1`, …"""
    spec = exported.call_spec.out_spec
    if spec is not None and spec.type is dict and len(spec.context) == count:
        return [str(key) for key in spec.context]
    return ["output"] if count == 1 else [f"output.{index}" for index in range(count)]
