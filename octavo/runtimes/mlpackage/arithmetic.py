"""MIL's elementwise operations, reductions and products in torch (coremltools' operation reference, iOS 15 to 18)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Function = Callable[..., Any]


def ints(value: Any) -> list[int]:
    """A list of numbers, whatever it came as."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [int(item) for item in (value if isinstance(value, list | tuple) else [value])]


def tensor(value: Any, like: Any = None) -> Any:
    """A tensor of a number, in the type of `like`."""
    import torch

    if torch.is_tensor(value):
        return value
    return torch.tensor(value, dtype=None if like is None else like.dtype)


def number(value: Any) -> float:
    return float(value)


def _unary(name: str, x: Any, **_: Any) -> Any:
    import torch

    return getattr(torch, name)(x)


def _binary(name: str, x: Any, y: Any, **_: Any) -> Any:
    import torch

    x, y = (tensor(x, y if torch.is_tensor(y) else None), tensor(y, x if torch.is_tensor(x) else None))
    return getattr(torch, name)(x, y)


def _functional(name: str, x: Any, **_: Any) -> Any:
    import torch.nn.functional

    return getattr(torch.nn.functional, name)(x)


def _clip(x: Any, alpha: Any, beta: Any, **_: Any) -> Any:
    return x.clamp(number(alpha), number(beta))


def _leaky_relu(x: Any, alpha: Any, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.leaky_relu(x, number(alpha))


def _elu(x: Any, alpha: Any = 1.0, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.elu(x, number(alpha))


def _prelu(x: Any, alpha: Any, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.prelu(x, alpha)


def _gelu(x: Any, mode: str = "EXACT", **_: Any) -> Any:
    import torch
    import torch.nn.functional

    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return torch.nn.functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def _hard_sigmoid(x: Any, alpha: Any = 0.2, beta: Any = 0.5, **_: Any) -> Any:
    return (x * number(alpha) + number(beta)).clamp(0, 1)


def _log(x: Any, epsilon: Any = 1e-45, **_: Any) -> Any:
    return (x + number(epsilon)).log()


def _inverse(x: Any, epsilon: Any = 1e-4, **_: Any) -> Any:
    return 1 / (x + number(epsilon))


def _rsqrt(x: Any, epsilon: Any = 1e-12, **_: Any) -> Any:
    return (x + number(epsilon)).rsqrt()


def _threshold(x: Any, alpha: Any, **_: Any) -> Any:
    return x.clamp(min=number(alpha))


def _thresholded_relu(x: Any, alpha: Any = 1.0, **_: Any) -> Any:
    return x * (x >= number(alpha))


def _linear_activation(x: Any, alpha: Any, beta: Any = 0.0, **_: Any) -> Any:
    return x * number(alpha) + number(beta)


def _scaled_tanh(x: Any, alpha: Any = 1.0, beta: Any = 1.0, **_: Any) -> Any:
    return number(alpha) * (x * number(beta)).tanh()


def _cast(x: Any, dtype: str, **_: Any) -> Any:
    import torch

    kinds = {
        "fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "int64": torch.int64, "bool": torch.bool,
        "int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "uint16": torch.uint16,
    }  # fmt: skip
    return tensor(x).to(kinds[dtype])


def _softmax(x: Any, axis: Any = -1, **_: Any) -> Any:
    return x.softmax(int(axis))


def _reduce(name: str, x: Any, axes: Any = None, keep_dims: Any = False, **_: Any) -> Any:
    import torch

    over = list(range(x.ndim)) if axes is None else ints(axes)
    result: Any = getattr(torch, name)(x, dim=over, keepdim=bool(keep_dims))
    return result


def _reduce_argmax(x: Any, axis: Any = -1, keep_dims: Any = False, **_: Any) -> Any:
    import torch

    return x.argmax(int(axis), keepdim=bool(keep_dims)).to(torch.int32)


def _linear(x: Any, weight: Any, bias: Any = None, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.linear(x, weight, bias)


def _matmul(x: Any, y: Any, transpose_x: Any = False, transpose_y: Any = False, **_: Any) -> Any:
    return (x.transpose(-1, -2) if transpose_x else x) @ (y.transpose(-1, -2) if transpose_y else y)


def _einsum(values: Any, equation: str, **_: Any) -> Any:
    import torch

    return torch.einsum(equation, *values)


def _select(cond: Any, a: Any, b: Any, **_: Any) -> Any:
    import torch

    return torch.where(tensor(cond).bool(), tensor(a), tensor(b))


def _layer_norm(x: Any, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5, **_: Any) -> Any:
    over = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in ints(axes)]
    centred = x - x.mean(over, keepdim=True)
    scaled = centred / (centred.square().mean(over, keepdim=True) + number(epsilon)).sqrt()
    scaled = scaled if gamma is None else scaled * gamma
    return scaled if beta is None else scaled + beta


def _l2_norm(x: Any, epsilon: Any = 1e-6, **_: Any) -> Any:
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + number(epsilon)).sqrt()


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


def _cumsum(x: Any, axis: Any = 0, **_: Any) -> Any:
    return x.cumsum(int(axis))


ARITHMETIC: dict[str, Function] = {
    **{name: partial(_unary, name) for name in (
        "relu", "sigmoid", "tanh", "exp", "exp2", "sqrt", "square", "abs", "erf", "floor", "ceil", "round", "sign",
        "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "logical_not",
    )},
    **{mil: partial(_binary, name) for mil, name in {
        "add": "add", "sub": "sub", "mul": "mul", "real_div": "true_divide", "pow": "pow", "maximum": "maximum",
        "minimum": "minimum", "floor_div": "floor_divide", "mod": "remainder", "equal": "eq", "not_equal": "ne",
        "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "logical_and": "logical_and",
        "logical_or": "logical_or", "logical_xor": "logical_xor",
    }.items()},
    **{mil: partial(_reduce, name) for mil, name in {
        "reduce_mean": "mean", "reduce_sum": "sum", "reduce_max": "amax", "reduce_min": "amin",
        "reduce_log_sum_exp": "logsumexp",
    }.items()},
    **{name: partial(_functional, name) for name in ("relu6", "silu", "softsign")},
    "softplus": partial(_functional, "softplus"),
    "clip": _clip, "leaky_relu": _leaky_relu, "elu": _elu, "prelu": _prelu, "gelu": _gelu, "log": _log,
    "sigmoid_hard": _hard_sigmoid, "inverse": _inverse, "rsqrt": _rsqrt, "threshold": _threshold, "cast": _cast,
    "softmax": _softmax, "reduce_argmax": _reduce_argmax, "linear": _linear, "matmul": _matmul, "einsum": _einsum,
    "select": _select, "layer_norm": _layer_norm, "l2_norm": _l2_norm, "scaled_dot_product_attention": _attention,
    "thresholded_relu": _thresholded_relu, "linear_activation": _linear_activation,
    "scaled_tanh": _scaled_tanh, "cumsum": _cumsum,
}  # fmt: skip
