"""Changes to a real .tflite through LiteRT's own FlatBuffer classes: nets that no converter makes on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def with_log_softmax(source: Path, out: Path) -> Path:
    """The net with LOG_SOFTMAX in place of its SOFTMAX: int8, and no NPU of the Ethos-U series has it."""
    schema, model = _read(source)
    for code in model.operatorCodes:
        if schema.BuiltinOperator.SOFTMAX in (code.builtinCode, code.deprecatedBuiltinCode):
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.LOG_SOFTMAX
    graph = model.subgraphs[0]
    last = graph.operators[-1]
    last.builtinOptionsType, last.builtinOptions = schema.BuiltinOptions.NONE, None
    quantization = graph.tensors[last.outputs[0]].quantization
    quantization.scale, quantization.zeroPoint = [16 / 256], [127]  # what the operator demands
    return _write(model, out)


def _read(path: Path) -> tuple[Any, Any]:
    from ai_edge_litert import schema_py_generated as schema

    return schema, schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def _write(model: Any, path: Path) -> Path:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
