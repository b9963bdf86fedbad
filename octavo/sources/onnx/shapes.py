"""Operators that move, cut, repeat or make numbers without computing on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.onnx.node import Node, Step, operator, torch_type


@operator("Identity", "Dropout")
def identity(node: Node) -> Step:
    """Dropout does nothing when a model is used; a mask asked for is all true."""
    if node.op == "Dropout" and node.has(2) and node.number(2):
        node.refuse("it is in training mode", "Export the model for inference (model.eval()).")
    if node.op == "Dropout":
        node.known(1)
    if len(node.outputs) > 1:
        return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))
    return lambda x, *_: x


@operator("Reshape")
def reshape(node: Node) -> Step:
    """0 keeps a size (unless `allowzero`), −1 is what is left."""
    sizes, old = node.ints(1) or [], node.shape()
    if not node.attr("allowzero", 0):
        sizes = [old[i] if size == 0 else size for i, size in enumerate(sizes)]
    return lambda x, *_: torch.reshape(x, sizes)


@operator("Flatten")
def flatten(node: Node) -> Step:
    axis, rank = node.attr("axis", 1), node.rank()
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return lambda x: torch.flatten(x, 1)
    rows = 1
    for size in node.shape()[:axis]:
        rows *= size
    return lambda x: torch.reshape(x, (rows, -1))


@operator("Transpose")
def transpose(node: Node) -> Step:
    order = node.attr("perm") or list(range(node.rank()))[::-1]
    return lambda x: x.permute(order)


@operator("Squeeze")
def squeeze(node: Node) -> Step:
    axes = node.axes()
    if axes is None:
        axes = [axis for axis, size in enumerate(node.shape()) if size == 1]
    if any(node.shape()[axis] != 1 for axis in axes):
        node.refuse(f"axes {axes} of {list(node.shape())} are not all of size 1", "Export the model again.")
    return lambda x, *_: torch.squeeze(x, axes)


@operator("Unsqueeze")
def unsqueeze(node: Node) -> Step:
    axes = node.axes() or []
    rank = node.rank() + len(axes)
    places = sorted(axis % rank for axis in axes)

    def step(x: Tensor, *_: object) -> Tensor:
        for axis in places:
            x = torch.unsqueeze(x, axis)
        return x

    return step


@operator("Concat")
def concat(node: Node) -> Step:
    axis = node.attr("axis", 0)
    return lambda *tensors: torch.cat(tensors, axis)


@operator("Split")
def split(node: Node) -> Step:
    """Sizes as attribute (before 13) or input; else equal parts, the last one smaller."""
    axis = node.attr("axis", 0)
    sizes = node.attr("split") or node.ints(1)
    if sizes is None:
        whole, count = node.shape()[axis], node.attr("num_outputs", len(node.outputs))
        part = -(-whole // count)
        sizes = [part] * (count - 1) + [whole - part * (count - 1)]
    return lambda x, *_: torch.split(x, list(sizes), axis)


@operator("Slice")
def cut(node: Node) -> Step:
    """Python's slices per axis; negative steps flip."""
    starts, ends = node.ints(1) or [], node.ints(2) or []
    axes = node.ints(3, list(range(len(starts)))) or []
    steps = node.ints(4, [1] * len(starts)) or []
    shape = node.shape()
    ranges = {axis % len(shape): slice(a, b, s) for axis, a, b, s in zip(axes, starts, ends, steps, strict=True)}
    whole = {axis: range(*_bounds(item, shape[axis])) for axis, item in ranges.items()}

    def step(x: Tensor, *_: object) -> Tensor:
        for axis, at in whole.items():
            if at == range(shape[axis]):
                continue
            if at.step > 0:
                x = torch.ops.aten.slice.Tensor(x, axis, at.start, at.stop, at.step)
            else:
                first = at[-1] if len(at) else 0
                x = torch.ops.aten.slice.Tensor(
                    x, axis, first, first + (len(at) - 1) * -at.step + 1 if at else 0, -at.step
                )
                x = torch.flip(x, [axis])
        return x

    return step


def _bounds(item: slice, size: int) -> tuple[int, int, int]:
    """Bounds as ONNX clamps them: an end far below zero means "past the first", with a negative step."""
    step = item.step
    start = item.start + size if item.start < 0 else item.start
    end = item.stop + size if item.stop < 0 else item.stop
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
        return start, max(start, end), step
    return min(max(start, 0), size - 1), min(max(end, -1), size - 1), step


@operator("Gather")
def gather(node: Node) -> Step:
    """Rows of a constant matrix are an embedding; a known index is a selection."""
    axis = node.attr("axis", 0) % max(node.rank(), 1)
    index, table = node.value(1), node.value(0)
    if index.constant is not None:
        at = torch.where(index.constant < 0, index.constant + node.shape()[axis], index.constant)
        if at.dim() == 0:
            node.known(1)
            place = int(at)
            return lambda x, *_: torch.select(x, axis, place)
        node.replace(1, "" if torch.equal(at, index.constant) else f".of_{node.shape()[axis]}", at.long())
        return lambda x, i: _select(x, i, axis)
    if table.constant is not None and axis == 0 and node.rank() == 2 and table.meta.is_floating_point():
        return lambda x, i: F.embedding(i, x)
    size = node.shape()[axis]
    return lambda x, i: _select(x, torch.where(i < 0, i + size, i), axis)


def _select(x: Tensor, index: Tensor, axis: int) -> Tensor:
    found = torch.index_select(x, axis, index.reshape(-1))
    return found if index.dim() == 1 else found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(node: Node) -> Step:
    axis = node.attr("axis", 0)
    size = node.shape()[axis]
    return lambda x, i: torch.gather(x, axis, torch.where(i < 0, i + size, i))


@operator("GatherND")
def gather_nd(node: Node) -> Step:
    node.allow(batch_dims=(0,))
    depth = node.shape(1)[-1]
    return lambda x, i: x[tuple(i[..., axis] for axis in range(depth))]


@operator("ScatterND")
def scatter_nd(node: Node) -> Step:
    node.allow(reduction=("none", "add"))
    depth, add = node.shape(1)[-1], node.attr("reduction", "none") == "add"
    return lambda x, i, new: torch.index_put(x, tuple(i[..., axis] for axis in range(depth)), new, accumulate=add)


@operator("ScatterElements")
def scatter_elements(node: Node) -> Step:
    node.allow(reduction=("none", "add"))
    axis = node.attr("axis", 0)
    size, add = node.shape()[axis], node.attr("reduction", "none") == "add"

    def step(x: Tensor, i: Tensor, new: Tensor) -> Tensor:
        at = torch.where(i < 0, i + size, i)
        return torch.scatter_add(x, axis, at, new) if add else torch.scatter(x, axis, at, new)

    return step


@operator("Expand")
def expand(node: Node) -> Step:
    """Broadcast both ways: a size of 1 asked for keeps what is there."""
    shape = np.broadcast_shapes(node.shape(), tuple(node.ints(1) or []))
    return lambda x, *_: x.expand(shape)


@operator("Tile")
def tile(node: Node) -> Step:
    repeats = node.ints(1) or []
    return lambda x, *_: x.repeat(repeats)


@operator("Shape")
def shape_of(node: Node) -> Step:
    """Known at import: sizes are static."""
    found = torch.tensor(node.shape()[node.attr("start", 0) : node.attr("end")], dtype=torch.int64)
    node.args[0] = None
    return lambda *_: found


@operator("Size")
def size_of(node: Node) -> Step:
    found = torch.tensor(node.value(0).meta.numel(), dtype=torch.int64)
    node.args[0] = None
    return lambda *_: found


@operator("Cast", "CastLike")
def cast(node: Node) -> Step:
    """Half precision runs in float32: the weights are exact in it, and the file says nothing about rounding order."""
    if node.op == "CastLike":
        like, node.args[1] = node.value(1).meta.dtype, None
        return lambda x, *_: x.to(like)
    try:
        kind = torch_type(node.attr("to"))
    except KeyError:
        node.refuse(f"casts to type {node.attr('to')}, which torch has not", "Export the model in float32.")
    return lambda x: x.to(kind)


@operator("Constant")
def constant(node: Node) -> Step:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if node.attr(name) is not None:
            kinds = {"f": torch.float32, "i": torch.int64}
            given = node.attr(name)
            made = given if isinstance(given, Tensor) else torch.tensor(given, dtype=kinds[name[6]])
            return lambda: made
    node.refuse(f"its value is of a kind ({', '.join(node.attributes)}) that is not imported", "Use a dense tensor.")


@operator("ConstantOfShape")
def constant_of_shape(node: Node) -> Step:
    value = node.attr("value", torch.zeros(1))
    sizes = node.ints(0) or []
    return lambda *_: value.reshape(-1)[:1].repeat(_count(sizes)).reshape(sizes)


def _count(sizes: list[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


@operator("Range")
def numbers(node: Node) -> Step:
    kind = node.value(0).meta.dtype
    start, stop, step = (node.number(index) or 0 for index in range(3))
    return lambda *_: torch.arange(start, stop, step, dtype=kind)


@operator("Pad")
def pad(node: Node) -> Step:
    """Pads are begins then ends per axis; torch wants pairs, last axis first. Negative ones cut."""
    mode, rank = node.attr("mode", "constant"), node.rank()
    given = node.ints(1) or []
    axes = [axis % rank for axis in node.ints(3, list(range(rank))) or []]
    pairs = {axis: (given[i], given[i + len(axes)]) for i, axis in enumerate(axes)}
    flat = [size for axis in reversed(range(rank)) for size in pairs.get(axis, (0, 0))]
    if mode == "constant":
        value = node.number(2, 0.0)
        return lambda x, *_: F.pad(x, flat, "constant", value)
    node.known(2)
    modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    padded = len(flat) // 2
    if mode not in modes or padded > 3 or node.rank() < padded:
        node.refuse(f"mode '{mode}' over {padded} axes is not imported", "Pad at most the last three axes.")
    kind, missing = modes[mode], max(0, padded + 2 - rank)

    def step(x: Tensor, *_: object) -> Tensor:
        lead = x.shape[: rank - padded]
        body = x.reshape(1, -1, *x.shape[rank - padded :]) if missing or rank != padded + 2 else x
        out = F.pad(body, flat, kind)
        return out.reshape(*lead, *out.shape[2:])

    return step


@operator("DepthToSpace")
def depth_to_space(node: Node) -> Step:
    block, mode = node.attr("blocksize"), node.attr("mode", "DCR")
    if mode == "CRD":
        return lambda x: F.pixel_shuffle(x, block)
    n, c, h, w = node.shape()

    def step(x: Tensor) -> Tensor:
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // block**2, h * block, w * block)

    return step


@operator("SpaceToDepth")
def space_to_depth(node: Node) -> Step:
    block = node.attr("blocksize")
    n, c, h, w = node.shape()

    def step(x: Tensor) -> Tensor:
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return step


@operator("Trilu")
def triangle(node: Node) -> Step:
    diagonal = int(node.number(1, 0) or 0)
    step = torch.triu if node.attr("upper", 1) else torch.tril
    return lambda x, *_: step(x, diagonal)


@operator("EyeLike")
def eye(node: Node) -> Step:
    rows, columns = node.shape()
    kind = torch_type(node.attr("dtype")) if node.attr("dtype") else node.value(0).meta.dtype
    node.args[0] = None
    square = torch.zeros(rows, columns, dtype=kind)
    square.diagonal(node.attr("k", 0)).fill_(1)
    return lambda *_: square


@operator("OneHot")
def one_hot(node: Node) -> Step:
    axis = node.attr("axis", -1)
    (depth,) = node.ints(1) or [1]
    off, on = node.known(2).tolist() if node.has(2) else (0, 1)  # type: ignore[union-attr]
    kind = node.value(2).meta.dtype
    at = axis % (node.rank() + 1)
    line = [depth if i == at else 1 for i in range(node.rank() + 1)]
    node.extra("classes", torch.arange(depth).reshape(line))

    def step(x: Tensor, *rest: Tensor) -> Tensor:
        index = torch.where(x < 0, x + depth, x).unsqueeze(at)
        return torch.where(index == rest[-1], torch.tensor(on, dtype=kind), torch.tensor(off, dtype=kind))

    return step


@operator("NonZero")
def non_zero(node: Node) -> Step:
    """Of a constant only: otherwise the sizes would depend on the data."""
    found = node.known(0)
    assert found is not None
    places = torch.nonzero(found).T.contiguous()
    return lambda *_: places
