"""Operators that move elements about. What depends on their order sees them as the file has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.tflite.node import TO_FIRST, TO_LAST, Node, Value, axis_of, operator, same_order


@operator("RESHAPE")
def reshape(node: Node) -> Value:
    """To input 1, else to option 0."""
    target = node.ints(1) if node.has(1) else _listed(node)
    count = prod(node.value().shape)
    if -1 in target:
        target[target.index(-1)] = count // max(1, -prod(target))
    return _reshaped(node, tuple(target))


@operator("SQUEEZE")
def squeeze(node: Node) -> Value:
    """Option 0: which axes; all of size 1 without it."""
    shape = node.value().shape
    axes = {axis % len(shape) for axis in _listed(node)} or {axis for axis, size in enumerate(shape) if size == 1}
    return _reshaped(node, tuple(size for axis, size in enumerate(shape) if axis not in axes))


def _listed(node: Node) -> list[int]:
    """Option 0, a list of integers."""
    options = node.operation.options
    return list((options.numbers(0, "i") if options is not None else None) or ())


@operator("EXPAND_DIMS")
def expand_dims(node: Node) -> Value:
    shape = list(node.value().shape)
    axis = int(node.number(1))
    shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, 1)
    return _reshaped(node, tuple(shape))


def _reshaped(node: Node, target: tuple[int, ...]) -> Value:
    """A map is turned back before its elements are counted off, except where that changes nothing, and where only
    fully connected layers take the flattened map: they turn their weights."""
    x = node.value()
    if prod(target) != prod(x.shape) or min(target, default=1) < 0:
        node.refuse(f"{list(x.shape)} has {prod(x.shape)} elements, {list(target)} has not", "Convert the model again.")
    flat = x.shape[1:] if x.first and target == (x.shape[0], prod(x.shape[1:])) else None
    if x.first and not same_order(x.shape) and flat is not None and _only_linear(node, target[1]):
        made = node.emit(lambda x: x.reshape(target), x)
        return Value(made.key, made.name, made.meta, made.constant, flat=(flat[0], flat[1], flat[2]))
    if not (x.first and same_order(x.shape)):
        x = node.walk.plain(x)
    if x.shape == target and not x.first:
        return x
    if len(target) == 4 and node.wants_first and same_order(target):
        turned = tuple(target[axis] for axis in TO_FIRST)
        return node.emit(lambda x: x.reshape(turned), x, first=True)
    return node.emit(lambda x: x.reshape(target), x)


def _only_linear(node: Node, width: int) -> bool:
    """Whether nothing but fully connected layers with stored weights [O, width] takes the result."""
    graph, made = node.walk.graph, node.operation.outputs[0]
    users = [item for item in graph.operations if made in item.inputs]
    linear = all(
        item.op == "FULLY_CONNECTED"
        and item.inputs.index(made) == 0
        and _stored_shape(node, item.inputs[1])[1:] == (width,)
        for item in users
    )
    return bool(users) and linear and made not in graph.outputs.values()


def _stored_shape(node: Node, index: int) -> tuple[int, ...]:
    """The shape of tensor `index` if its numbers are known."""
    value = node.walk.values.get(index)
    if value is not None:
        return value.shape if value.constant is not None else ()
    stored = node.walk.graph.tensors[index]
    return stored.shape if stored.data is not None else ()


@operator("TRANSPOSE")
def transpose(node: Node) -> Value:
    """Between the file's layout and torch's nothing moves: the value is only seen differently."""
    x, order = node.value(), [int(axis) for axis in node.ints(1)]
    if sorted(order) != list(range(len(x.shape))):
        node.refuse(f"the order {order} of {len(x.shape)} axes", "Convert the model again.")
    if x.constant is None and x.first and tuple(order) == TO_FIRST:
        return replace(x, first=False)
    if x.constant is None and not x.first and tuple(order) == TO_LAST and node.wants_first:
        return replace(x, first=True)
    if order == sorted(order):
        return x
    x = node.plain()
    return node.emit(lambda x: x.permute(order), x)


@operator("SHAPE")
def shape(node: Node) -> Value:
    """Known at import, since nothing in the graph varies."""
    kind = {0: torch.int32, 2: torch.int32, 4: torch.int64}[node.option(0, "b", 2)]
    return node.extra("shape", torch.tensor(node.value().shape, dtype=kind))


@operator("CONCATENATION")
def concatenation(node: Node) -> Value:
    """Options: axis, activation."""
    values = node.laid(*range(len(node.inputs)))
    axis = axis_of(values[0], node.option(0, "i"))
    made = node.emit(lambda *given: torch.cat(given, axis), *values, first=values[0].first)
    return node.activated(made, 1)


@operator("PACK")
def pack(node: Node) -> Value:
    """Options: how many, axis."""
    axis, values = node.option(1, "i"), [node.plain(index) for index in range(len(node.inputs))]
    return node.emit(lambda *given: torch.stack(given, axis), *values)


@operator("UNPACK")
def unpack(node: Node) -> list[Value]:
    """Options: how many, axis."""
    x, axis = node.plain(), node.option(1, "i")
    return node.emit_all(lambda x: torch.unbind(x, axis), x, first=False)


@operator("SPLIT", "SPLIT_V")
def split(node: Node) -> list[Value]:
    """SPLIT: axis, data; option: how many equal parts. SPLIT_V: data, sizes, axis; one size may be left open."""
    (x,) = node.laid(1 if node.op == "SPLIT" else 0)
    axis = int(node.number(0 if node.op == "SPLIT" else 2))
    whole, at = x.shape[axis], axis_of(x, axis)
    sizes = [whole // node.option(0, "i")] * node.option(0, "i") if node.op == "SPLIT" else node.ints(1)
    sizes = [size if size >= 0 else whole - sum(item for item in sizes if item >= 0) for size in sizes]
    return node.emit_all(lambda x: torch.split(x, sizes, at), x, first=x.first)


@operator("GATHER")
def gather(node: Node) -> Value:
    """Options: axis, batch axes. Rows of a stored table are an embedding."""
    if node.option(1, "i"):
        node.refuse("batch_dims is not 0", "Convert the model without it.")
    table, index = node.plain(0), node.plain(1)
    axis = node.option(0, "i") % len(table.shape)
    if index.constant is None:
        if axis or len(table.shape) != 2 or table.constant is None:
            node.refuse("its indices are computed by the model", "Rows of a stored table are imported.")
        return node.emit(lambda table, index: F.embedding(index, table), table, index)
    chosen = node.held(1, index.constant.reshape(-1).long() % table.shape[axis])
    target = (*table.shape[:axis], *index.shape, *table.shape[axis + 1 :])
    return node.emit(lambda table, index: torch.index_select(table, axis, index).reshape(target), table, chosen)


@operator("TILE", "BROADCAST_TO")
def repeated(node: Node) -> Value:
    x, sizes = node.plain(), node.ints(1)
    if node.op == "TILE":
        return node.emit(lambda x: x.repeat(sizes), x)
    return node.emit(lambda x: x.expand(sizes), x)


@operator("SLICE")
def slice_of(node: Node) -> Value:
    """Input 1: begin, 2: size, −1 for the rest."""
    (x,) = node.laid(0)
    cuts = []
    for whole, begin, size in zip(x.shape, node.ints(1), node.ints(2), strict=True):
        end = whole if size == -1 else begin + size
        if not 0 <= begin <= end <= whole:
            node.refuse(f"{begin} to {end} of {whole}", "Convert the model again.")
        cuts.append(slice(begin, end, 1))
    return _cut(node, x, cuts)


@operator("STRIDED_SLICE")
def strided_slice(node: Node) -> Value:
    """As numpy slices; inputs begin, end, strides. Options: masks of begin, end, ellipsis, new axis, shrink; offset."""
    masks = [node.option(number, "i") for number in range(5)]
    if masks[2] or masks[3]:
        node.refuse("it has an ellipsis or a new axis", "Convert the model without it.")
    (x,) = node.laid(0)
    cuts, dropped = [], []
    rows = list(zip(node.ints(1), node.ints(2), node.ints(3), strict=True))
    for axis, whole in enumerate(x.shape):
        begin, end, step = rows[axis] if axis < len(rows) else (0, whole, 1)
        end += begin if node.option(5, "?", False) and axis < len(rows) else 0
        if masks[4] >> axis & 1:
            begin += whole if begin < 0 else 0
            dropped.append(axis)
            cuts.append(slice(begin, begin + 1, 1))
            continue
        open_begin, open_end = axis >= len(rows) or masks[0] >> axis & 1, axis >= len(rows) or masks[1] >> axis & 1
        cuts.append(slice(None if open_begin else begin, None if open_end else end, step))
    made = _cut(node, x, cuts)
    if not dropped:
        return made
    made, kept = node.walk.plain(made), tuple(s for a, s in enumerate(made.shape) if a not in dropped)
    return node.emit(lambda x: x.reshape(kept), made)


def _cut(node: Node, x: Value, cuts: Sequence[slice]) -> Value:
    """One slice per axis of the file's. torch has no negative steps: what they cut is turned round first."""
    parts: list[tuple[int, int, int, int, bool]] = []
    for axis, (cut, whole) in enumerate(zip(cuts, x.shape, strict=True)):
        begin, end, step = cut.indices(whole)
        count = len(range(begin, end, step))
        if step < 0:
            begin, end = whole - 1 - begin, whole - 1 - begin + (count - 1) * -step + 1
        if (begin, count) != (0, whole) or step < 0:
            parts.append((axis_of(x, axis), begin, begin if not count else end, abs(step), step < 0))

    def run(x: Tensor) -> Tensor:
        for axis, begin, end, step, turned in parts:
            x = torch.flip(x, (axis,)) if turned else x
            x = torch.ops.aten.slice.Tensor(x, axis, begin, end, step)
        return x

    return node.emit(run, x, first=x.first) if parts else x
