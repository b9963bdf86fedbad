"""MIL's operations that move numbers about, in torch."""

from __future__ import annotations

from typing import Any

from octavo.runtimes.mlpackage.arithmetic import Function, ints, tensor


def _concat(values: Any, axis: Any, interleave: Any = False, **_: Any) -> Any:
    import torch

    if interleave:
        stacked = torch.stack([tensor(v) for v in values], int(axis) + 1)
        return stacked.flatten(int(axis), int(axis) + 1)
    return torch.cat(
        [tensor(value).reshape(1) if tensor(value).ndim == 0 else tensor(value) for value in values], int(axis)
    )


def _stack(values: Any, axis: Any, **_: Any) -> Any:
    import torch

    return torch.stack([tensor(value) for value in values], int(axis))


def _split(x: Any, axis: Any, num_splits: Any = None, split_sizes: Any = None, **_: Any) -> Any:
    if split_sizes is not None:
        return x.split(ints(split_sizes), int(axis))
    return x.chunk(int(num_splits), int(axis))


def _reshape(x: Any, shape: Any, **_: Any) -> Any:
    sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(ints(shape))]
    return x.reshape(sizes)


def _transpose(x: Any, perm: Any, **_: Any) -> Any:
    return x.permute(ints(perm))


def _expand_dims(x: Any, axes: Any, **_: Any) -> Any:
    found = tensor(x)
    rank = found.ndim + len(ints(axes))
    for axis in sorted(axis % rank for axis in ints(axes)):
        found = found.unsqueeze(axis)
    return found


def _squeeze(x: Any, axes: Any = None, **_: Any) -> Any:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def _pad(x: Any, pad: Any, mode: str = "constant", constant_val: Any = 0.0, **_: Any) -> Any:
    import torch.nn.functional

    amounts = ints(pad)
    pairs = [amounts[i : i + 2] for i in range(0, len(amounts), 2)]
    flat = [n for pair in reversed(pairs) for n in pair]
    if mode == "constant":
        return torch.nn.functional.pad(x, flat, value=float(constant_val))
    while flat[-2:] == [0, 0] and len(flat) > 2:
        flat = flat[:-2]
    return torch.nn.functional.pad(x, flat, mode={"reflect": "reflect", "replicate": "replicate"}[mode])


def _slice_by_index(
    x: Any, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None,
    squeeze_mask: Any = None, **_: Any,
) -> Any:  # fmt: skip
    def flags(mask: Any) -> list[int]:
        return ints(mask) if mask is not None else [0] * x.ndim

    starts, stops, steps = ints(begin), ints(end), ints(stride) if stride is not None else [1] * x.ndim
    opened, ended, single = flags(begin_mask), flags(end_mask), flags(squeeze_mask)
    found = x
    for axis in reversed(range(x.ndim)):
        if single[axis]:
            found = found.select(axis, starts[axis])
            continue
        places = range(x.shape[axis])[
            slice(None if opened[axis] else starts[axis], None if ended[axis] else stops[axis], steps[axis])
        ]
        found = found.index_select(axis, _index(list(places)))
    return found


def _index(places: list[int]) -> Any:
    import torch

    return torch.tensor(places, dtype=torch.int64)


def _slice_by_size(x: Any, begin: Any, size: Any, **_: Any) -> Any:
    found = x
    for axis, (start, length) in enumerate(zip(ints(begin), ints(size), strict=True)):
        found = found.narrow(axis, start, x.shape[axis] - start if length < 0 else length)
    return found


def _gather(x: Any, indices: Any, axis: Any = 0, batch_dims: Any = 0, **_: Any) -> Any:
    if int(batch_dims):
        raise NotImplementedError("gather with batch dimensions")
    axis, where = int(axis) % x.ndim, tensor(indices).long()
    where = where + (where < 0) * x.shape[axis]
    taken = x.index_select(axis, where.reshape(-1))
    return taken.reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :])


def _tile(x: Any, reps: Any, **_: Any) -> Any:
    return x.repeat(ints(reps))


def _reverse(x: Any, axes: Any = None, **_: Any) -> Any:
    return x.flip(list(range(x.ndim)) if axes is None else ints(axes))


def _identity(x: Any, **_: Any) -> Any:
    return x


def _shape(x: Any, **_: Any) -> Any:
    import torch

    return torch.tensor(x.shape, dtype=torch.int32)


def _fill(shape: Any, value: Any = 0.0, **_: Any) -> Any:
    import torch

    return torch.full(ints(shape), value if not torch.is_tensor(value) else value.item())


SHAPES: dict[str, Function] = {
    "concat": _concat, "stack": _stack, "split": _split, "reshape": _reshape, "transpose": _transpose,
    "expand_dims": _expand_dims, "squeeze": _squeeze, "pad": _pad, "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size, "gather": _gather, "tile": _tile, "reverse": _reverse, "identity": _identity,
    "shape": _shape, "fill": _fill,
}  # fmt: skip
