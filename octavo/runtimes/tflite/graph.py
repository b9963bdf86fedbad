"""A .tflite model that is being edited: LiteRT's own schema classes, and the few moves that our passes make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, Missing

IDENTIFIER = b"TFL3"
TYPES: dict[str, tuple[int, Any]] = {  # name in the schema: (its number, numpy's type)
    "FLOAT32": (0, np.float32), "FLOAT16": (1, np.float16), "INT32": (2, np.int32), "UINT8": (3, np.uint8),
    "INT64": (4, np.int64), "BOOL": (6, np.bool_), "INT16": (7, np.int16), "INT8": (9, np.int8), "INT4": (17, np.int8),
}  # fmt: skip
NAMES = {number: name for name, (number, _) in TYPES.items()}


def schema() -> Any:
    """LiteRT's generated schema. Raises Missing without it."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise Missing(f"Files of LiteRT need {error.name}.", "pip install 'octavo[litert]'") from error
    return schema_py_generated


class Graph:
    """The one subgraph of a model. Tensors are known by their index, operators by their place in the list.

    Raises BadInput for a model of several subgraphs.
    """

    def __init__(self, data: bytes) -> None:
        self._hold(schema().ModelT.InitFromPackedBuf(bytearray(data), 0))

    @classmethod
    def of(cls, model: Any) -> Graph:
        """A graph of the schema's own ModelT. Raises BadInput likewise."""
        made = cls.__new__(cls)
        made._hold(model)
        return made

    def _hold(self, model: Any) -> None:
        self.schema, self.model = schema(), model
        if len(model.subgraphs) != 1:
            raise BadInput(f"The graph has {len(model.subgraphs)} subgraphs.", "It has to be one without branches.")
        self.body = model.subgraphs[0]

    @property
    def tensors(self) -> list[Any]:
        found: list[Any] = self.body.tensors
        return found

    @property
    def operators(self) -> list[Any]:
        found: list[Any] = self.body.operators
        return found

    @property
    def inputs(self) -> list[int]:
        return [int(index) for index in self.body.inputs]

    @property
    def outputs(self) -> list[int]:
        return [int(index) for index in self.body.outputs]

    def kind(self, operator: Any) -> str:
        """The operator's name in the schema, as CONV_2D."""
        return operator_name(self.schema, self.model.operatorCodes[operator.opcodeIndex])

    def shape(self, index: int) -> tuple[int, ...]:
        shape = self.tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def type(self, index: int) -> str:
        """The tensor's type by name; one that nothing here works with, as its number."""
        return NAMES.get(self.tensors[index].type, str(self.tensors[index].type))

    def data(self, index: int) -> NDArray[np.uint8] | None:
        """The bytes of a constant; None for a value that is computed."""
        held = self.model.buffers[self.tensors[index].buffer].data
        return None if held is None or not len(held) else np.asarray(held, np.uint8)

    def values(self, index: int) -> NDArray[Any] | None:
        """A constant of a type with whole bytes, in its own shape."""
        held = self.data(index)
        dtype = TYPES[self.type(index)][1] if self.type(index) in TYPES else None
        if held is None or dtype is None or held.size != int(np.prod(self.shape(index))) * np.dtype(dtype).itemsize:
            return None
        found: NDArray[Any] = held.view(dtype).reshape(self.shape(index))
        return found

    def constants(self) -> Iterator[int]:
        """Indices of the tensors that have data."""
        return (index for index in range(len(self.tensors)) if self.data(index) is not None)

    def producers(self) -> dict[int, Any]:
        """{tensor: the operator that computes it}."""
        return {int(index): operator for operator in self.operators for index in operator.outputs}

    def users(self, index: int) -> list[Any]:
        """The operators that read a tensor."""
        return [operator for operator in self.operators if index in [int(i) for i in operator.inputs]]

    def quantization(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64], int] | None:
        """(scales, zero points, axis) of a tensor; None for one without."""
        held = self.tensors[index].quantization
        if held is None or held.scale is None or not len(held.scale):
            return None
        scale = np.asarray(held.scale, np.float32)
        zero = np.zeros(len(scale), np.int64) if held.zeroPoint is None else np.asarray(held.zeroPoint, np.int64)
        return scale, zero, int(held.quantizedDimension)

    def quantize(self, index: int, scale: NDArray[np.float32], zero: NDArray[np.int64], axis: int = 0) -> None:
        """Say what a tensor's integers mean."""
        made = self.schema.QuantizationParametersT()
        made.scale, made.zeroPoint = np.asarray(scale, np.float32), np.asarray(zero, np.int64)
        made.quantizedDimension = axis
        self.tensors[index].quantization = made

    def set_data(self, index: int, kind: str, data: NDArray[np.uint8]) -> None:
        """Give a constant other bytes and another type, in a buffer of its own."""
        made = self.schema.BufferT()
        made.data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.model.buffers.append(made)
        self.tensors[index].buffer = len(self.model.buffers) - 1
        self.tensors[index].type = TYPES[kind][0]

    def add_tensor(self, name: str, kind: str, shape: Sequence[int], data: NDArray[Any] | None = None) -> int:
        """A new tensor; its index."""
        made = self.schema.TensorT()
        made.name, made.shape, made.type, made.buffer, made.hasRank = name, np.asarray(shape, np.int32), 0, 0, True
        self.tensors.append(made)
        index = len(self.tensors) - 1
        made.type = TYPES[kind][0]
        if data is not None:
            self.set_data(index, kind, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        return index

    def add_operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], at: int, options: str = "", version: int = 1
    ) -> Any:
        """A new operator at place `at`; `options` names its options' class without a T. Returns it."""
        made = self.schema.OperatorT()
        made.opcodeIndex = self._code(kind, version)
        made.inputs, made.outputs = np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)
        if options:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self.schema, f"{options}T")()
        self.operators.insert(at, made)
        return made

    def need_version(self, operator: Any, version: int) -> None:
        """Say that an operator needs at least this version of its kernel."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        if code.version < version:
            operator.opcodeIndex = self._code(self.kind(operator), version)

    def place(self, operator: Any) -> int:
        """Where an operator is in the list."""
        return next(place for place, other in enumerate(self.operators) if other is operator)

    def remove(self, operator: Any) -> None:
        """Take an operator out; its outputs are the caller's to reconnect."""
        del self.operators[self.place(operator)]

    def replace_uses(self, old: int, new: int) -> None:
        """Let all that read `old`, the model's own outputs included, read `new`."""
        for operator in self.operators:
            operator.inputs = np.asarray([new if int(i) == old else int(i) for i in operator.inputs], np.int32)
        self.set_outputs([new if index == old else index for index in self.outputs])

    def set_inputs(self, inputs: Sequence[int]) -> None:
        """The model's inputs, in the signature too."""
        self._set_ends("inputs", self.inputs, inputs)

    def set_outputs(self, outputs: Sequence[int]) -> None:
        """The model's outputs, in the signature too."""
        self._set_ends("outputs", self.outputs, outputs)

    def _set_ends(self, which: str, before: list[int], after: Sequence[int]) -> None:
        moved = dict(zip(before, after, strict=True))
        setattr(self.body, which, np.asarray(after, np.int32))
        for signature in self.model.signatureDefs or ():
            for item in getattr(signature, which) or ():
                item.tensorIndex = moved.get(item.tensorIndex, item.tensorIndex)

    def _code(self, kind: str, version: int) -> int:
        number = getattr(self.schema.BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
                return index
        made = self.schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), version
        self.model.operatorCodes.append(made)
        return len(self.model.operatorCodes) - 1

    def pack(self) -> bytes:
        """The file. Equal models give equal bytes."""
        import flatbuffers

        self._drop_unused()
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _drop_unused(self) -> None:
        """Leave out tensors, operator codes and buffers that nothing names."""
        held = {index for operator in self.operators for index in (*operator.inputs, *operator.outputs) if index >= 0}
        held |= {*self.inputs, *self.outputs}
        for index in list(held):
            details = self.tensors[index].quantization and self.tensors[index].quantization.details
            if details is not None and hasattr(details, "scales"):
                held.add(details.scales)
        kept = sorted(int(index) for index in held)
        moved = {old: new for new, old in enumerate(kept)}
        for operator in self.operators:
            operator.inputs = np.asarray([moved.get(int(i), -1) for i in operator.inputs], np.int32)
            operator.outputs = np.asarray([moved[int(i)] for i in operator.outputs], np.int32)
        for signature in self.model.signatureDefs or ():
            for item in (*(signature.inputs or ()), *(signature.outputs or ())):
                item.tensorIndex = moved[item.tensorIndex]
        self.body.inputs = np.asarray([moved[index] for index in self.inputs], np.int32)
        self.body.outputs = np.asarray([moved[index] for index in self.outputs], np.int32)
        self.body.tensors = [self.tensors[index] for index in kept]
        for tensor in self.tensors:
            details = tensor.quantization and tensor.quantization.details
            if details is not None and hasattr(details, "scales"):
                details.scales = moved[details.scales]
        self._drop_codes_and_buffers()

    def _drop_codes_and_buffers(self) -> None:
        codes = sorted({operator.opcodeIndex for operator in self.operators})
        for operator in self.operators:
            operator.opcodeIndex = codes.index(operator.opcodeIndex)
        self.model.operatorCodes = [self.model.operatorCodes[index] for index in codes]
        used = {tensor.buffer for tensor in self.tensors} | {item.buffer for item in self.model.metadata or ()}
        buffers = sorted(used | {0})
        for owner in (*self.tensors, *(self.model.metadata or ())):
            owner.buffer = buffers.index(owner.buffer)
        self.model.buffers = [self.model.buffers[index] for index in buffers]


_OPERATORS: dict[int, str] = {}


def operator_name(schema: Any, code: Any) -> str:
    """The name of an operator code (whose number was a byte before it was an integer)."""
    if not _OPERATORS:
        _OPERATORS.update({v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)})
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _OPERATORS.get(number, str(number))
