"""A pass over coremltools' program: every tensor of the model becomes the operation that the manifest promises.

It runs last, on a program that coremltools has already simplified. A constant belongs to a tensor when its values are
the tensor's (as they are, or with two axes exchanged); it is replaced by one made of our own codes and scales, under
the tensor's name. A tensor whose values are nowhere was folded into something: that is an error.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OctavoError

Arrays = Mapping[str, NDArray[Any]]
Key = tuple[tuple[int, ...], str]  # shape, digest of the values
FLAT = (-1,)  # in the place of a shape: of whatever shape
Places = dict[Key, list[Any]]
Axes = tuple[int, ...] | None
INDICES = {2: "uint2", 3: "uint3"}
TABLES = {2: (0, 1, -2, -1), 3: (0, 1, 2, 3, -4, -3, -2, -1)}  # an index is a code's two's complement


class Settle:
    """tensors: dicts of name, at (the operation's name), kind and bits (its layout), static. edges: the model's own.

    Afterwards `moves` has the moves made for each tensor, `places` the quantize operation of each edge.
    """

    def __init__(
        self, tensors: list[dict[str, Any]], edges: list[dict[str, Any]], arrays: Arrays, compute: str
    ) -> None:
        self.tensors, self.edges, self.arrays, self.half = tensors, edges, arrays, compute == "fp16"
        self.places: dict[str, str] = {}
        self._taken: set[int] = set()
        self.moves: dict[str, tuple[str, ...]] = {item["name"]: () for item in tensors}

    def __call__(self, program: Any) -> None:
        """What coremltools calls. Raises OctavoError naming the tensors that are nowhere."""
        from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

        block = program.functions["main"]
        places, sharers = _constants(block), Counter(self._key(item) for item in self.tensors)
        lost = []
        for item in self.tensors:
            found, axes = self._places(item, places, sharers)
            if found:
                self._settle(block, item, found, axes)
            else:
                lost.append(item["name"])
        if lost:
            raise OctavoError(
                f"coremltools folded {len(lost)} tensors into other constants: {', '.join(lost[:3])}.",
                "Please report this model; onnxruntime carries it.",
            )
        self._name_edges(block)
        PASS_REGISTRY["common::dead_code_elimination"].apply(program)

    def _name_edges(self, block: Any) -> None:
        """Name every quantize operation after its edge: the next, in the program's order, with its two numbers."""
        from octavo.runtimes.mlpackage.edges import parameters

        waiting: dict[tuple[float, int], list[Any]] = {}
        for operation in block.operations:
            if operation.op_type == "quantize" and (found := parameters(operation)) is not None:
                waiting.setdefault(found, []).append(operation)
        lost = []
        for index, edge in enumerate(self.edges):
            held = waiting.get((float(np.float32(edge["scale"])), edge["zero_point"]), [])
            if not held:
                lost.append(edge["name"])
                continue
            operation, name = held.pop(0), f"e{index}_{re.sub(r'[^0-9A-Za-z_]', '_', edge['name'])}"
            operation.name = operation.outputs[0].name = self.places[edge["name"]] = name
        if lost:
            raise OctavoError(
                f"coremltools' program does not quantise {', '.join(lost[:3])} as the compressed model does.",
                "Please report this model; onnxruntime carries it.",
            )

    def set_options(self, options: Any) -> None:
        """Part of what coremltools asks of a pass; there are none."""

    def _places(self, item: dict[str, Any], places: Places, sharers: Counter[Any]) -> tuple[list[Any], Axes]:
        """(the operations that hold this tensor's values, how its axes were permuted).

        A tied weight is several constants of the program, and one tensor: it takes them all. Of tensors with equal
        values each takes one, the last all that are left.
        """
        values = self._values(item)
        sharers[self._key(item)] -= 1
        ways: list[Axes] = [None, (1, 0)] if values.ndim == 2 else [None]
        last = sharers[self._key(item)] == 0
        for axes in ways:
            found = self._free(places.get(_key(values if axes is None else values.transpose(axes)), []))
            if found:
                return self._take(found if last else found[:1]), axes
        if item["kind"] in ("const", "cast", "wide"):  # a norm's or a PReLU's numbers, in a shape that broadcasts
            found = self._free(places.get((FLAT, _key(values.reshape(-1))[1]), []))
            same = [operation for operation in found if operation.outputs[0].shape == found[0].outputs[0].shape]
            return self._take(same if last else same[:1]), None
        return [], None

    def _free(self, operations: list[Any]) -> list[Any]:
        return [operation for operation in operations if id(operation) not in self._taken]

    def _take(self, operations: list[Any]) -> list[Any]:
        self._taken |= {id(operation) for operation in operations}
        return operations

    def _key(self, item: dict[str, Any]) -> Key:
        return _key(self._values(item))

    def _values(self, item: dict[str, Any]) -> NDArray[np.float32]:
        """The tensor's values as coremltools' program has them by now: rounded, where it computes in fp16."""
        name = item["name"]
        if name in self.arrays:
            values = np.asarray(self.arrays[name], np.float32)
        else:
            codes, scale = self.arrays[f"{name}.codes"], self.arrays[f"{name}.scale"]
            values = codes.astype(np.float32) * _repeated(scale, codes.shape)
        return values.astype(np.float16).astype(np.float32) if self.half else values

    def _settle(self, block: Any, item: dict[str, Any], found: list[Any], axes: Axes) -> None:
        """Make the promised operation, and let it take the places of those found."""
        from coremltools.converters.mil.mil import Builder as mb

        name, shape = item["name"], found[0].outputs[0].shape
        held = {part: self.arrays.get(f"{name}.{part}" if part else name) for part in ("codes", "scale", "")}
        arrays = {part: value.transpose(axes or range(value.ndim)) for part, value in held.items() if value is not None}
        if "" in arrays and arrays[""].shape != shape and axes is None:
            self.moves[name] = (f"shape {','.join(map(str, shape))}",)
            arrays[""] = arrays[""].reshape(shape)
        if axes is not None:
            self.moves[name] = (f"axes {','.join(map(str, axes))}",)
        with block, mb.scope(*_scopes()):
            made = _make(mb, item, arrays, found[0], self.half)
        for operation in found:
            block.replace_uses_of_var_after_op(
                anchor_op=operation,
                old_var=operation.outputs[0],
                new_var=made,
                no_check_var_types=True,
                force_replace=True,
            )
        block.remove_ops(found)


def _scopes() -> list[Any]:
    """Where in the torch graph an operation came from, which coremltools wants to be told: nowhere."""
    from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

    sources = (ScopeSource.EXIR_STACK_TRACE, ScopeSource.EXIR_DEBUG_HANDLE)
    return [ScopeInfo(source=source, data=[None]) for source in sources]


def _make(mb: Any, item: dict[str, Any], arrays: dict[str, Any], before: Any, half: bool) -> Any:
    """One operation of the layout `item["kind"]`, named `item["at"]`."""
    from coremltools.converters.mil.mil import types

    name, kind, number = item["at"], item["kind"], np.float16 if half else np.float32
    if kind == "const":
        return mb.const(val=np.ascontiguousarray(arrays[""], number), name=name, before_op=before)
    if kind == "cast":
        return mb.constexpr_cast(
            source_val=np.ascontiguousarray(arrays[""], np.float16), output_dtype="fp32", name=name, before_op=before
        )
    if kind == "wide":
        values = np.ascontiguousarray(arrays[""], np.float32)
        ones = np.ones((1,) * values.ndim, np.float16)
        return mb.constexpr_blockwise_shift_scale(data=values, scale=ones, name=name, before_op=before)
    codes, scale = np.ascontiguousarray(arrays["codes"]), np.ascontiguousarray(arrays["scale"], number)
    if kind == "affine":
        wide = [axis for axis, size in enumerate(scale.shape) if size > 1]
        axis = wide[0] if wide else 0
        flat = scale.reshape(-1) if wide else number(scale.reshape(-1)[0])
        return mb.constexpr_affine_dequantize(
            quantized_data=codes, zero_point=np.zeros_like(flat, np.int8) if wide else np.int8(0), scale=flat,
            axis=np.int32(axis), name=name, before_op=before,
        )  # fmt: skip
    if kind == "blockwise":
        stored = codes if item["bits"] == 8 else codes.astype(types.nptype_from_builtin(types.int4))
        return mb.constexpr_blockwise_shift_scale(data=stored, scale=scale, name=name, before_op=before)
    bits = item["bits"]
    indices = (codes.view(np.uint8) & np.uint8((1 << bits) - 1)).astype(
        types.nptype_from_builtin(types.string_to_builtin(INDICES[bits]))
    )
    table = np.array(TABLES[bits], np.int8).reshape((1,) * codes.ndim + (-1, 1))
    dense = mb.constexpr_lut_to_dense(indices=indices, lut=table, name=f"{name}_table", before_op=before)
    return mb.constexpr_blockwise_shift_scale(data=dense, scale=scale, name=name, before_op=before)


def _constants(block: Any) -> Places:
    """{key of the values: the operations that hold them}, in the program's order."""
    found: Places = {}
    for operation in block.operations:
        values = _held(operation)
        if values is not None:
            found.setdefault(_key(values), []).append(operation)
            if values.ndim > 1:
                found.setdefault((FLAT, _key(values.reshape(-1))[1]), []).append(operation)
    return found


def _held(operation: Any) -> NDArray[np.float32] | None:
    """The float values of a constant operation; None for any other."""
    if operation.op_type == "const":
        values = operation.outputs[0].val
    elif operation.op_type.startswith("constexpr_"):
        values = operation.materialized_val_inference()
    else:
        return None
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return None
    return values.astype(np.float32)


def _key(values: NDArray[np.float32]) -> Key:
    exact = np.ascontiguousarray(values, np.float32) + np.float32(0)  # −0 is 0 here: codes have no sign of zero
    return values.shape, hashlib.sha256(exact.tobytes()).hexdigest()


def _repeated(scale: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    for axis, (size, wanted) in enumerate(zip(scale.shape, shape, strict=True)):
        if size != wanted:
            scale = np.repeat(scale, wanted // size, axis=axis)
    return scale
