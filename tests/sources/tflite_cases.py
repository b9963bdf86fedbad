"""Small .tflite files written with the vendor's schema, and what LiteRT's own interpreter computes from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Array = NDArray[Any]
KINDS = {np.float32: 0, np.float16: 1, np.int32: 2, np.uint8: 3, np.int64: 4, np.bool_: 6, np.int8: 9}
SPELT = {"Conv2d": "Conv2D", "DepthwiseConv2d": "DepthwiseConv2D", "Padv2": "PadV2", "BatchMatmul": "BatchMatMul"}
NO_DELEGATE = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def f(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def i(*values: int) -> Array:
    return np.array(values, np.int32)


@dataclass
class Op:
    """An operator of the graph: names of what it takes ('' where absent) and makes; its options by field name."""

    name: str
    inputs: list[str]
    outputs: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = ""  # of its options, where that is not its own name
    version: int = 1


@dataclass
class Net:
    """A graph: `given` are its inputs with the values to try, `stored` its constants."""

    ops: list[Op]
    given: dict[str, Array]
    stored: dict[str, Array]
    outputs: list[str]
    scales: dict[str, tuple[list[float], int]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)  # types of what is computed, where not float32
    signature: dict[str, str] = field(default_factory=dict)
    free_batch: bool = False

    def bytes(self, shapes: dict[str, list[int]] | None = None) -> bytes:
        """The file. `shapes`: of what is computed; found by the interpreter when they are not given."""
        if shapes is None:
            shapes = _shapes(self.bytes({}))
        model, graph = schema.ModelT(), schema.SubGraphT()
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], [schema.BufferT()], []
        graph.tensors, graph.operators, numbers = [], [], {"": -1}
        made = [name for op in self.ops for name in op.outputs]
        for name in dict.fromkeys([*self.given, *self.stored, *made]):
            numbers[name] = len(graph.tensors)
            graph.tensors.append(self._tensor(name, shapes, model))
        for op in self.ops:
            graph.operators.append(_operator(op, numbers, model))
        graph.inputs, graph.outputs = [numbers[n] for n in self.given], [numbers[n] for n in self.outputs]
        if self.signature:
            model.signatureDefs = [self._signature(numbers)]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def save(self, folder: Path, name: str = "m.tflite") -> Path:
        path = folder / name
        path.write_bytes(self.bytes())
        return path

    def _tensor(self, name: str, shapes: dict[str, list[int]], model: Any) -> Any:
        tensor, held = schema.TensorT(), self.stored.get(name, self.given.get(name))
        tensor.name = name
        tensor.type = KINDS[held.dtype.type] if held is not None else self.kinds.get(name, 0)
        tensor.shape = list(held.shape) if held is not None else shapes.get(name, [])
        if self.free_batch and name in self.given:
            tensor.shapeSignature = [-1, *tensor.shape[1:]]
        if name in self.stored:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(held).tobytes(), np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        if name in self.scales:
            tensor.quantization = schema.QuantizationParametersT()
            scales, tensor.quantization.quantizedDimension = self.scales[name]
            tensor.quantization.scale, tensor.quantization.zeroPoint = scales, [0] * len(scales)
        return tensor

    def _signature(self, numbers: dict[str, int]) -> Any:
        made = schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = "serving_default", 0
        for names, attribute in ((self.given, "inputs"), (self.outputs, "outputs")):
            maps = []
            for name in names:
                entry = schema.TensorMapT()
                entry.name, entry.tensorIndex = self.signature[name], numbers[name]
                maps.append(entry)
            setattr(made, attribute, maps)
        return made


def _operator(op: Op, numbers: dict[str, int], model: Any) -> Any:
    code, made = schema.OperatorCodeT(), schema.OperatorT()
    number = getattr(schema.BuiltinOperator, op.name, None)
    code.builtinCode = schema.BuiltinOperator.CUSTOM if number is None else number
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.customCode, code.version = (op.name if number is None else None), op.version
    made.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)
    made.inputs, made.outputs = [numbers[name] for name in op.inputs], [numbers[name] for name in op.outputs]
    kind = op.kind or "".join(part.capitalize() for part in op.name.split("_"))
    kind = SPELT.get(kind, kind)
    if hasattr(schema.BuiltinOptions, f"{kind}Options"):  # LiteRT follows some of them without a look
        made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
        made.builtinOptions = getattr(schema, f"{kind}OptionsT")()
        for key, value in op.options.items():
            assert hasattr(made.builtinOptions, key), key
            setattr(made.builtinOptions, key, value)
    return made


def _shapes(content: bytes) -> dict[str, list[int]]:
    engine = litert.Interpreter(model_content=content, experimental_op_resolver_type=NO_DELEGATE)
    engine.allocate_tensors()
    return {item["name"]: item["shape"].tolist() for item in engine.get_tensor_details()}


def in_litert(content: bytes | Path, *arrays: Array) -> list[Array]:
    """The outputs that LiteRT computes, without delegates, inputs in the file's order."""
    content = content.read_bytes() if isinstance(content, Path) else content
    engine = litert.Interpreter(model_content=content, experimental_op_resolver_type=NO_DELEGATE)
    engine.allocate_tensors()
    for item, array in zip(engine.get_input_details(), arrays, strict=True):
        engine.set_tensor(item["index"], array)
    engine.invoke()
    return [engine.get_tensor(item["index"]).copy() for item in engine.get_output_details()]
