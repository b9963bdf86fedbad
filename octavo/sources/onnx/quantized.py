"""Quantize and dequantize, as the float arithmetic that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.sources.onnx.node import Node, Step, operator, torch_type

RANGES = {2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 21: (0, 15), 22: (-8, 7)}
BY_TYPE = {torch.uint8: 2, torch.int8: 3, torch.int16: 5, torch.int32: 4}


def _spread(node: Node, scale: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point in the shape that it multiplies: one, one per slice of `axis`, or one per block of it."""
    shape = node.shape()
    if block:
        return scale.repeat_interleave(block, axis).narrow(axis, 0, shape[axis])
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


@operator("DequantizeLinear")
def dequantize(node: Node) -> Step:
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        value = x.to(torch.float32)
        if zero is not None:
            value = value - _spread(node, zero, axis, block).to(torch.float32)
        return value * _spread(node, scale, axis, block)

    return run


@operator("QuantizeLinear")
def quantize(node: Node) -> Step:
    """Round half to even, add the zero point, saturate."""
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)
    number = node.attr("output_dtype", 0)
    if node.has(2):
        number = node.value(2).onnx_type or BY_TYPE.get(node.value(2).meta.dtype, 0)
    number = number or 2
    if number not in RANGES:
        node.refuse(f"quantizes to type {number}", "8- and 16-bit integers are imported.")
    low, high = RANGES[number]

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        code = torch.round(x / _spread(node, scale, axis, block))
        if zero is not None:
            code = code + _spread(node, zero, axis, block).to(torch.float32)
        return torch.clamp(code, low, high).to(torch_type(number))

    return run


@operator("com.microsoft.MatMulNBits")
def matmul_n_bits(node: Node) -> Step:
    """A linear layer whose codes are packed, lowest bits first: decoded at import to float [out, in]."""
    packed, scales, zeros = (node.known(index) for index in (1, 2, 3))
    assert packed is not None
    assert scales is not None
    bits, block, rows, columns = (int(node.attr(name)) for name in ("bits", "block_size", "N", "K"))
    if bits not in (2, 4, 8) or node.has(4):
        node.refuse(f"{bits} bits, or a group index", "2, 4 and 8 bits in order are imported.")
    blocks = -(-columns // block)
    codes = _unpack(packed.reshape(rows, blocks, -1), bits).to(torch.float32)
    middle: Tensor | float = float(1 << (bits - 1))
    if zeros is not None:
        wide = _unpack(zeros.reshape(rows, -1), bits) if zeros.dtype == torch.uint8 else zeros.reshape(rows, -1)
        middle = wide[:, :blocks].to(torch.float32)[..., None]
    weight = ((codes - middle) * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :columns]
    node.append(1, "", weight)
    if node.has(5):
        return lambda x, *rest: F.linear(x, rest[-1], rest[4])
    return lambda x, *rest: F.linear(x, rest[-1])


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] → uint8 [..., n · 8 / bits]."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)
