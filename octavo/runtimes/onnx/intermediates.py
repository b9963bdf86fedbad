"""Every operator's output of an .onnx file, by making it an output of a copy.

Of a file with quantised activations only the integers of its edges are asked for: they are what ONNX Runtime's fused
kernels give, and asking for the floats between them would take the fusion apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OctavoError
from octavo.runtimes.base import Arrays
from octavo.runtimes.intermediates import bound
from octavo.runtimes.onnx.layout import EDGE_CODES
from octavo.runtimes.onnx.read import AGAIN


def record(params: dict[str, Any], arrays: Arrays, emit: Any) -> tuple[dict[str, Any], Arrays]:
    """A worker's target: path, names (of the inputs, in the order of `arrays`), threads."""
    import onnx

    path = Path(params["path"])
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf, onnx and the file system have their own
        raise OctavoError(f"{path}: onnx cannot read it ({error}).", AGAIN) from error
    own = [item.name for item in model.graph.output]
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    asked = {node.output[0]: node for node in (quantised or model.graph.node) if node.output and node.output[0]}
    names = list(dict.fromkeys([*asked, *own]))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    found = _run(model, names, params, arrays, bool(quantised))
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    values: list[list[str]] = []
    held: Arrays = {}
    outputs = []
    producers = {name: node for node in model.graph.node for name in node.output}
    for name in names:
        value = found[name]
        if name in asked and asked[name].op_type == "QuantizeLinear":
            value = _decoded(value, asked[name], constants)
        if value.dtype.kind != "f" or not value.size:
            continue
        if name in own:
            outputs.append(len(values))
        held[str(len(values))] = np.ascontiguousarray(value, np.float32)
        values.append([producers[name].op_type if name in producers else "", name.removesuffix(EDGE_CODES)])
    return {"values": values, "outputs": outputs}, held


def _run(model: Any, names: list[str], params: dict[str, Any], arrays: Arrays, quantised: bool) -> Arrays:
    import onnxruntime

    from octavo.runtimes.onnx.session import EMPTY, _options

    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), _options(params["threads"], quantised), providers=["CPUExecutionProvider"]
        )
        taken = {
            item.name: (tuple(n if isinstance(n, int) else 1 for n in item.shape), EMPTY.get(item.type, np.float32))
            for item in session.get_inputs()
        }
        feeds = bound(params["names"], arrays, taken)
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # pybind raises a dozen classes without a common base
        raise OctavoError(f"{params['path']}: ONNX Runtime cannot run it ({error}).", AGAIN) from error


def _decoded(codes: NDArray[Any], node: Any, constants: Arrays) -> NDArray[Any]:
    """Integers as the file's own scale and zero point have them; unknown ones as they are."""
    if node.input[1] not in constants:
        return codes
    scale = constants[node.input[1]].astype(np.float32)
    zero = constants[node.input[2]].astype(np.float32) if len(node.input) > 2 and node.input[2] in constants else 0
    return np.asarray((codes.astype(np.float32) - zero) * scale, np.float32)
