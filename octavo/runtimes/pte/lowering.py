"""What happens in the lowering worker: an exported program becomes a .pte, through ExecuTorch's own exporter."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OctavoError

if TYPE_CHECKING:
    import torch

Emit = Callable[[dict[str, Any]], None]
Answer = tuple[dict[str, Any], dict[str, NDArray[Any]]]
FALLBACK = "portable kernel, not XNNPACK"
MADE: dict[str, Any] = {}  # the last program, until it has been given its manifest
SKIPPED = ("quantize", "getitem", "choose_qparams", "executorch_call_delegate", "_assert", "alloc")


def lower(params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Emit) -> Answer:
    """`params`: {"program": JSON of torch.export's schema, "parameters": names}; `arrays`: its tensors.

    Returns {"placement": [{op, unit, reason}], "delegation": the vendor's own counts} and the file as "pte". Raises
    OctavoError with the exporter's reason.
    """
    _quiet()
    exported = unpack(params, arrays)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    emit({"what": "partition"})
    try:
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        placement, counts = _placement(edge.exported_program())
        _refuse_stranded(edge.exported_program())
        emit({"what": "write"})
        made = edge.to_executorch()
    except OctavoError:
        raise
    except Exception as error:  # the exporter raises whatever its passes trip over
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise OctavoError(f"ExecuTorch cannot lower this program: {lines[0]}") from error
    MADE.clear()
    MADE["program"] = made
    return {"placement": placement, "delegation": counts}, {"pte": np.frombuffer(made.buffer, np.uint8)}


def finish(params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Emit) -> Answer:
    """Serialise the program of `lower` again, with `arrays` as named data: {"octavo.manifest": …, …}, in order."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir._serialize._serialize import serialize_for_executorch
    from executorch.exir._serialize.data_serializer import DataEntry

    made = MADE.pop("program")
    store = made._named_data or NamedDataStoreOutput([], {}, {})
    buffers, entries = list(store.buffers), dict(store.pte_data)
    for name, data in arrays.items():
        entries[name] = DataEntry(len(buffers), 1, None)
        buffers.append(data.tobytes())
    whole, _ = serialize_for_executorch(
        made._emitter_output,
        ExecutorchBackendConfig(),
        made._data_serializer,
        NamedDataStoreOutput(buffers, entries, {}),
    )
    return {}, {"pte": np.frombuffer(bytes(whole), np.uint8)}


def pack(exported: torch.export.ExportedProgram) -> Answer:
    """An exported program as JSON and arrays: what `lower` takes."""
    from torch._export.serde import serialize

    artifact = serialize.serialize(
        exported, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
    )
    arrays = {f"state/{name}": tensor.detach().contiguous().numpy() for name, tensor in exported.state_dict.items()}
    for name, value in exported.constants.items():
        arrays[f"constant/{name}"] = value.detach().contiguous().numpy()  # type: ignore[union-attr]
    parameters = [name for name, _ in exported.named_parameters()]
    return {"program": json.loads(artifact.exported_program), "parameters": parameters}, arrays


def unpack(params: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> torch.export.ExportedProgram:
    """Undo `pack`, in the worker."""
    import torch
    import torch.ao.quantization.fx._decomposed
    import torchao  # noqa: F401 - its operators must be known to the reader
    from torch._export.serde import schema, serialize

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    state: dict[str, torch.Tensor] = {}
    constants: dict[str, torch.Tensor] = {}
    for name, array in arrays.items():
        kind, _, key = name.partition("/")
        tensor = torch.from_numpy(np.array(array))
        if key in params["parameters"]:
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        (state if kind == "state" else constants)[key] = tensor
    body = serialize._dict_to_dataclass(schema.ExportedProgram, params["program"])  # type: ignore[no-untyped-call]
    return serialize.ExportedProgramDeserializer().deserialize(body, state, constants)


def _placement(program: Any) -> tuple[list[dict[str, str]], dict[str, list[int]]]:
    """Which operators XNNPACK took, in the order of the program; and the vendor's count of each kind."""
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir.lowered_backend_module import executorch_call_delegate

    found: list[dict[str, str]] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is executorch_call_delegate:
            inner = getattr(program.graph_module, node.args[0].target).original_module.graph.nodes
            found += [_operator(item, "") for item in inner if _counts(item)]
        elif _counts(node):
            found.append(_operator(node, FALLBACK))
    frame = get_delegation_info(program.graph_module).get_operator_delegation_dataframe()
    counts = {
        str(row["op_type"]): [
            int(row["occurrences_in_delegated_graphs"]), int(row["occurrences_in_non_delegated_graphs"])
        ]
        for _, row in frame.iterrows()
    }  # fmt: skip
    return found, counts


def _counts(node: Any) -> bool:
    return node.op == "call_function" and not any(word in node.name for word in SKIPPED)


def _operator(node: Any, reason: str) -> dict[str, str]:
    return {"op": f"{node.name} ({node.target.__name__})", "unit": "cpu", "reason": reason}


def _refuse_stranded(program: Any) -> None:
    """The runtime has no portable kernels that quantise or dequantise: a file with such a call would not load."""
    left = [
        f"{node.name} (for {', '.join(user.name for user in node.users)})"
        for node in program.graph.nodes
        if node.op == "call_function" and ("quantize" in node.name or "choose_qparams" in node.name)
    ]
    if left:
        raise OctavoError(
            f"XNNPACK leaves {len(left)} conversions outside: {'; '.join(left[:3])}{' …' * (len(left) > 3)}.",
            "Keep those layers in float, or export to another runtime.",
        )


def _quiet() -> None:
    """What the exporter says about itself belongs to nobody's screen, nor into the tail of an error."""
    import logging

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
