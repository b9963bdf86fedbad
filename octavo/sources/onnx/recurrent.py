"""LSTM, GRU and RNN, unrolled over a length known at import; the state goes in and comes out as tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.onnx.node import Node, Step, operator

LONGEST = 1024  # steps: beyond it the unrolled program is no use to any runtime
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
BIASES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Cell = Callable[..., tuple[Tensor, ...]]


def _lstm(x: Tensor, h: Tensor, c: Tensor, r: Tensor, rb: Tensor | None, reset_after: bool) -> tuple[Tensor, ...]:
    """One step; x is W·x with its bias. Gates in ONNX's order: input, output, forget, cell."""
    i, o, f, g = torch.chunk(x + F.linear(h, r, rb), 4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, c: Tensor, r: Tensor, rb: Tensor | None, reset_after: bool) -> tuple[Tensor, ...]:
    """One step. Gates in ONNX's order: update, reset, hidden."""
    xz, xr, xh = torch.chunk(x, 3, -1)
    if reset_after:
        rz, rr, rh = torch.chunk(F.linear(h, r, rb), 3, -1)
        update, reset = torch.sigmoid(xz + rz), torch.sigmoid(xr + rr)
        new = torch.tanh(xh + reset * rh)
    else:
        size = h.shape[-1]
        bias, last = (None, None) if rb is None else (rb[: 2 * size], rb[2 * size :])
        rz, rr = torch.chunk(F.linear(h, r[: 2 * size], bias), 2, -1)
        update, reset = torch.sigmoid(xz + rz), torch.sigmoid(xr + rr)
        new = torch.tanh(xh + F.linear(reset * h, r[2 * size :], last))
    return (1 - update) * new + update * h, c


def _rnn(x: Tensor, h: Tensor, c: Tensor, r: Tensor, rb: Tensor | None, reset_after: bool) -> tuple[Tensor, ...]:
    return torch.tanh(x + F.linear(h, r, rb)), c


CELLS: dict[str, Cell] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node) -> Step:
    """Weights become linear layers, one per direction; names keep the initializers', plus the direction if two."""
    direction = node.attr("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    _check(node, len(ways))
    first = bool(node.attr("layout", 0))
    length = node.shape()[1 if first else 0]
    if length > LONGEST:
        node.refuse(f"{length} steps would be unrolled, the limit is {LONGEST}", "Fix the length to a shorter one.")
    cell, both = CELLS[node.op], node.op == "LSTM"
    reset_after, hidden = bool(node.attr("linear_before_reset", 0)), node.attr("hidden_size")
    names = _weights(node, len(ways))
    inputs = len(node.inputs)

    def run(x: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        h0, c0 = (rest[i - 1] if inputs > i else None for i in (5, 6))
        x = x.transpose(0, 1) if first else x
        h0, c0 = (s.transpose(0, 1) if s is not None and first else s for s in (h0, c0))
        extra = list(rest[inputs - 1 :])
        lines: list[Tensor] = []
        ends: list[Tensor] = []
        cells: list[Tensor] = []
        for way, backward in enumerate(ways):
            w, r, wb, rb = (extra.pop(0) if there else None for there in names)
            assert w is not None
            assert r is not None
            zero = x.new_zeros(x.shape[1], hidden)
            h = zero if h0 is None else h0[way]
            c = zero if c0 is None else c0[way]
            line, h, c = _unroll(cell, F.linear(x, w, wb), h, c, r, rb, backward, reset_after)
            lines, ends, cells = [*lines, line], [*ends, h], [*cells, c]
        out = torch.stack(lines, 1), torch.stack(ends, 0), *([torch.stack(cells, 0)] if both else [])
        if first:
            return out[0].permute(2, 0, 1, 3), *(item.transpose(0, 1) for item in out[1:])
        return out

    return run


def _unroll(
    cell: Cell, x: Tensor, h: Tensor, c: Tensor, r: Tensor, rb: Tensor | None, backward: bool, reset_after: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x [steps, batch, gates] → ([steps, batch, hidden], last h, last c)."""
    steps = range(x.shape[0])
    line = []
    for t in reversed(steps) if backward else steps:
        h, c = cell(x[t], h, c, r, rb, reset_after)
        line.append(h)
    return torch.stack(line[::-1] if backward else line, 0), h, c


def _check(node: Node, ways: int) -> None:
    """Refuse the variants that no exporter writes."""
    given = [name.lower() for name in node.attr("activations") or ACTIVATIONS[node.op] * ways]
    if given != [name.lower() for name in ACTIVATIONS[node.op] * ways]:
        node.refuse(f"activations {given}", "The usual ones are imported (sigmoid, tanh).")
    node.allow(clip=(None,), input_forget=(0,))
    if node.has(7):
        node.refuse("it has peephole weights", "Train or export it without.")
    lengths = node.ints(4)
    steps = node.shape()[1 if node.attr("layout", 0) else 0]
    if lengths is not None and any(length != steps for length in lengths):
        node.refuse(f"sequence_lens {lengths} differ from the {steps} steps", "Export it for whole sequences.")


def _weights(node: Node, ways: int) -> list[bool]:
    """Per direction W, R and biases as extra constants; whether each of (W, R, Wb, Rb) is there.

    Where nothing comes between the two biases they are one, with the input's product.
    """
    found = [node.known(index) for index in (1, 2, 3)]
    w, r, b = found
    assert w is not None
    assert r is not None
    apart = node.op == "GRU"
    for way in range(ways):
        suffix = "" if ways == 1 else ("_forward", "_reverse")[way]
        node.append(1, suffix, w[way])
        node.append(2, suffix, r[way])
        if b is not None:
            half = BIASES[node.op] * int(node.attr("hidden_size"))
            wb, rb = b[way][:half], b[way][half:]
            node.append(3, f"{suffix}.input" if apart else suffix, wb if apart else wb + rb)
            if apart:
                node.append(3, f"{suffix}.hidden", rb)
    return [True, True, b is not None, b is not None and apart]
