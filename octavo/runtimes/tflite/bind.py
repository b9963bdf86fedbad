"""Codes in the places of weights: what the converter made is patched, or held to the compressed model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import Carried
from octavo.core.model import CompressedModel, TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput, Refused
from octavo.runtimes.tflite.graph import Graph
from octavo.runtimes.tflite.layout import BIAS, PRODUCTS, bias_values, bits_of, constant_values, encode, negative_zeros
from octavo.runtimes.tflite.match import Place, find
from octavo.runtimes.tflite.names import Names

# Kernels that take integer weights beside float activations, and at which input. A depthwise or transposed convolution
# is faster in float (XNNPACK has no such kernel for them): its weights are unpacked once, at load.
HYBRID = {"FULLY_CONNECTED": 1, "EMBEDDING_LOOKUP": 1, "CONV_2D": 1}
PER_CHANNEL = ("CONV_2D",)  # of these, the ones that want a scale per channel even where all are the same
WITH_BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_3D")


def bind(graph: Graph, model: CompressedModel, tensors: Iterable[Carried], names: Names) -> tuple[Carried, ...]:
    """Put every tensor of `model` into `graph` as it is; returns where and how each lies now.

    Raises Refused for a tensor that the converter changed beyond recognition, naming it.
    """
    values = {carried.name: model.tensor(carried.name) for carried in tensors}
    places = _places(graph, values, tensors)
    integers = _integer_floats(graph, places, values)
    lost = [name for name, found in places.items() if not found]
    if lost:
        raise Refused(
            f"{', '.join(lost[:4])}{' …' if len(lost) > 4 else ''}: litert-torch folded {len(lost)} tensors "
            "into others, so that the file does not hold them.",
            "A BatchNorm must be folded into its convolution before: compress the model so.",
        )
    done: dict[str, Carried] = {}
    for carried in sorted(tensors, key=lambda item: not isinstance(values[item.name], QuantizedTensor)):
        value, found = values[carried.name], places[carried.name]
        at = tuple(dict.fromkeys(names.give(place.index, carried.name) for place in found))
        moved = replace(carried, at=at, moves=_moves(carried, found[0], integers))
        if carried.scheme == "fp16" and any(_biases_integers(graph, place.index) for place in found):
            moved = replace(moved, stored_as="FLOAT32", why="a kernel with integer weights wants its bias in float32")
        else:
            for place in found:
                _write(graph, carried, value, place)
        done[carried.name] = moved
    return tuple(done[carried.name] for carried in tensors)


def _biases_integers(graph: Graph, index: int) -> bool:
    """Whether a constant is the bias of an operator whose weights are integers."""
    return any(
        graph.kind(user) in WITH_BIAS
        and len(user.inputs) > 2
        and int(user.inputs[2]) == index
        and graph.type(int(user.inputs[1])) in ("INT8", "INT4")
        for user in graph.users(index)
    )


def _moves(carried: Carried, place: Place, integers: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return (*carried.moves, *place.moves, *integers.get(carried.name, ()))


def _places(graph: Graph, values: dict[str, TensorValue], tensors: Iterable[Carried]) -> dict[str, list[Place]]:
    """Every place of every tensor: its codes, if the converter has made integers of them; else its floats."""
    static = {c.name for c in tensors if c.scheme in SCHEMES and SCHEMES[c.scheme].activation}
    codes = {name: value.codes for name, value in values.items() if isinstance(value, QuantizedTensor)}
    found = find(graph, {name: codes[name] for name in codes if name in static})
    for name, places in found.items():
        found[name] = [place for place in places if _scales_agree(graph, place, values[name])]
    floats = {name: _floats(value) for name, value in values.items() if not found.get(name)}
    return {name: [] for name in values} | found | find(graph, floats)


def _floats(value: TensorValue) -> NDArray[np.float32]:
    return value.dequantize() if isinstance(value, QuantizedTensor) else np.asarray(value, np.float32)


def _scales_agree(graph: Graph, place: Place, value: Any) -> bool:
    held = graph.quantization(place.index)
    if held is None or held[1].any():
        return False
    scale = value.scale.reshape(-1)
    axis = place.axes.index(0)
    return (
        len(held[0]) in (1, len(scale), value.shape[0])
        and bool((held[0] == scale).all())
        and (len(held[0]) == 1 or held[2] == axis)
    )


def _integer_floats(
    graph: Graph, places: dict[str, list[Place]], values: dict[str, TensorValue]
) -> dict[str, tuple[str, ...]]:
    """Place the floats that the file has as integers: biases, and constants with an edge of their own.

    Returns {name: the moves that it made}.
    """
    floats = {name: value for name, value in values.items() if not isinstance(value, QuantizedTensor)}
    lost = {name: np.asarray(value, np.float32) for name, value in floats.items() if not places[name]}
    moves: dict[str, tuple[str, ...]] = {}
    for index, move, decoded in _integers(graph) if lost else ():
        for name, value in lost.items():
            if not places[name] and np.array_equal(decoded.reshape(-1), value.reshape(-1)):
                places[name] = [Place(index, tuple(range(value.ndim)))]
                moves[name] = (move, *negative_zeros(value))
                break
    return moves


def _integers(graph: Graph) -> Iterable[tuple[int, str, NDArray[np.float32]]]:
    """(index, move, values) of the constants that are biases of integer operators, or quantised like activations."""
    biases: set[int] = set()
    for operator in graph.operators:
        if graph.kind(operator) in WITH_BIAS and len(operator.inputs) > 2:
            into, weight, bias = (int(index) for index in operator.inputs[:3])
            codes = graph.values(bias) if bias >= 0 and graph.type(bias) in ("INT32", "INT64") else None
            scales = graph.quantization(into), graph.quantization(weight)
            if codes is None or scales[0] is None or scales[1] is None or bias in biases:
                continue
            biases.add(bias)
            for product in PRODUCTS:
                yield bias, f"{BIAS}{product}", bias_values(codes, scales[0][0][0], scales[1][0], product)
    for index in graph.constants():
        held, codes = graph.quantization(index), graph.values(index)
        if index not in biases and held is not None and len(held[0]) == 1 and graph.type(index) in ("INT8", "INT16"):
            assert codes is not None
            yield index, "to integers", constant_values(codes, held[0][0], int(held[1][0]))


def _write(graph: Graph, carried: Carried, value: TensorValue, place: Place) -> None:
    """Make the constant at `place` what `carried` says it is."""
    if not isinstance(value, QuantizedTensor):
        if carried.scheme == "fp16" and graph.type(place.index) == "FLOAT32":
            _write_half(graph, place.index)
        elif graph.type(place.index) == "FLOAT32":  # the converter may have lost the sign of a zero
            turned = np.ascontiguousarray(np.asarray(value, np.float32).transpose(place.axes))
            graph.set_data(place.index, "FLOAT32", turned.reshape(-1).view(np.uint8))
        return
    if graph.type(place.index) != "FLOAT32":  # integers already, and the very same
        return
    bits, group = bits_of(carried.scheme), SCHEMES[carried.scheme].group
    direct, others = _users(graph, place.index)
    blocked = [graph.kind(user) for user in (*others, *direct) if user in others or graph.kind(user) in PER_CHANNEL]
    if group and blocked:  # a DEQUANTIZE of weights in blocks gives wrong numbers without a word
        raise Refused(
            f"{carried.name}: LiteRT has no {blocked[0]} for weights in blocks ({carried.scheme}).",
            "Use w8 or w4 for it.",
        )
    if others:
        _dequantize(graph, place.index, others)
    graph.set_data(place.index, f"INT{bits}", encode(value, place.axes, bits))
    if group:
        _blockwise(graph, place.index, value, group)
    else:
        axis, scale = place.axes.index(0), value.scale.reshape(-1)
        if any(graph.kind(user) in PER_CHANNEL for user in direct):
            axis = _channel_axis(graph, place)
            scale = np.broadcast_to(scale, (graph.shape(place.index)[axis],))
        graph.quantize(place.index, scale, np.zeros(scale.size, np.int64), axis)


def _channel_axis(graph: Graph, place: Place) -> int:
    """The axis of the file's tensor that our axis 0 has become: the file may have axes of one besides."""
    shape, ours = list(graph.shape(place.index)), place.axes.index(0)
    return ours if len(shape) == len(place.axes) or ours == 0 else len(shape) - 1


def _users(graph: Graph, index: int) -> tuple[list[Any], list[Any]]:
    """The operators that read a weight: those that take integers beside floats, and the others."""
    direct: list[Any] = []
    others: list[Any] = []
    for operator in graph.users(index):
        at = HYBRID.get(graph.kind(operator), -1)
        reads = [place for place, i in enumerate(operator.inputs) if int(i) == index]
        floats = graph.type(int(operator.outputs[0])) == "FLOAT32"
        (direct if reads == [at] and floats else others).append(operator)
    return direct, others


def _dequantize(graph: Graph, index: int, users: list[Any]) -> None:
    """Let `users` read the constant through a DEQUANTIZE, which LiteRT computes once.

    It goes to the front of all operators: between others it would cut a delegate's part of the graph in two.
    """
    tensor = graph.tensors[index]
    seen = graph.add_tensor(f"{tensor.name}.dequantized", "FLOAT32", graph.shape(index))
    for operator in users:
        operator.inputs = np.asarray([seen if int(i) == index else int(i) for i in operator.inputs], np.int32)
    graph.add_operator("DEQUANTIZE", [index], [seen], 0, "DequantizeOptions", version=6)


def _write_half(graph: Graph, index: int) -> None:
    values = graph.values(index)
    assert values is not None
    half = values.astype(np.float16)
    _dequantize(graph, index, graph.users(index))
    graph.set_data(index, "FLOAT16", half.reshape(-1).view(np.uint8))


def _blockwise(graph: Graph, index: int, value: QuantizedTensor, group: int) -> None:
    """Scales per block of a row lie in a FLOAT16 tensor that the weight names."""
    half = value.scale.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), value.scale):
        raise BadInput("a scale of the compressed model is not exact in fp16.", "Compress the model again.")
    details = graph.schema.BlockwiseQuantizationT()
    details.scales = graph.add_tensor(f"{index}.scales", "FLOAT16", half.shape, half)
    details.zeroPoints, details.blockSize = -1, group
    made = graph.schema.QuantizationParametersT()
    made.details, made.detailsType = details, graph.schema.QuantizationDetails.BlockwiseQuantization
    graph.tensors[index].quantization = made
