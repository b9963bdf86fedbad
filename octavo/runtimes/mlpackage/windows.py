"""MIL's convolutions, pools, normalisations over channels and resizing in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.runtimes.mlpackage.arithmetic import Function, ints, number


def _padding(
    x: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], kind: str, pad: Any
) -> list[int]:
    """(before, after) of every spatial axis, in one list."""
    if kind == "custom":
        return ints(pad)
    if kind == "valid":
        return [0] * 2 * len(kernel)
    found = []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        found += [small, large] if kind == "same" else [large, small]
    return found


def _padded(x: Any, pads: Sequence[int], value: float = 0.0) -> Any:
    """`x` with (before, after) of its last axes, first of them first."""
    import torch.nn.functional

    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    return torch.nn.functional.pad(x, [n for pair in reversed(pairs) for n in pair], value=value) if any(pads) else x


def _conv(
    x: Any, weight: Any, bias: Any = None, strides: Any = None, pad_type: str = "valid", pad: Any = None,
    dilations: Any = None, groups: Any = 1, **_: Any,
) -> Any:  # fmt: skip
    import torch.nn.functional

    axes = weight.ndim - 2
    steps, spread = (
        ints(strides) if strides is not None else [1] * axes,
        ints(dilations) if dilations is not None else [1] * axes,
    )
    wide = _padded(x, _padding(x, weight.shape[2:], steps, spread, pad_type, pad))
    convolve: Any = getattr(torch.nn.functional, f"conv{axes}d")
    return convolve(wide, weight, bias, stride=steps, dilation=spread, groups=int(groups))


def _conv_transpose(
    x: Any, weight: Any, bias: Any = None, strides: Any = None, pad_type: str = "valid", pad: Any = None,
    output_shape: Any = None, dilations: Any = None, groups: Any = 1, **_: Any,
) -> Any:  # fmt: skip
    """The full result, then as much cut off as was padded."""
    import torch.nn.functional

    axes = weight.ndim - 2
    steps, spread = (
        ints(strides) if strides is not None else [1] * axes,
        ints(dilations) if dilations is not None else [1] * axes,
    )
    if pad_type not in ("valid", "custom"):
        raise NotImplementedError(f"padding {pad_type}")
    convolve: Any = getattr(torch.nn.functional, f"conv_transpose{axes}d")
    full = convolve(x, weight, bias, stride=steps, dilation=spread, groups=int(groups))
    cut = ints(pad) if pad_type == "custom" else [0] * 2 * axes
    sizes = ints(output_shape)[2:] if output_shape is not None else None
    for axis in range(axes):
        before, after = cut[2 * axis : 2 * axis + 2]
        size = sizes[axis] if sizes else full.shape[2 + axis] - before - after
        lacking = before + size - full.shape[2 + axis]
        if lacking > 0:  # output padding: positions that nothing was added to but the bias
            raise NotImplementedError("an output beyond the convolution's own")
        full = full.narrow(2 + axis, before, size)
    return full


def _pool(
    kind: str, x: Any, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None,
    ceil_mode: Any = False, exclude_padding_from_average: Any = False,
) -> Any:  # fmt: skip
    import torch
    import torch.nn.functional

    kernel = ints(kernel_sizes)
    axes = len(kernel)
    steps = ints(strides) if strides is not None else [1] * axes
    pads = _padding(x, kernel, steps, [1] * axes, pad_type, pad)
    pooled: Any = getattr(torch.nn.functional, f"{'max' if kind == 'max' else 'avg'}_pool{axes}d")
    extra = [0] * 2 * axes
    if ceil_mode:
        for axis in range(axes):
            left = (x.shape[2 + axis] + pads[2 * axis] + pads[2 * axis + 1] - kernel[axis]) % steps[axis]
            extra[2 * axis + 1] = (steps[axis] - left) % steps[axis]
    whole = [a + b for a, b in zip(pads, extra, strict=True)]
    if kind == "max":
        return pooled(_padded(x, whole, float("-inf")), kernel, steps)
    total = pooled(_padded(x, whole), kernel, steps)
    seen = torch.ones_like(x)
    counted = seen if exclude_padding_from_average else _padded(seen, pads, 1.0)
    share = pooled(_padded(counted, whole if exclude_padding_from_average else extra), kernel, steps)
    return total / share


def _max_pool(**given: Any) -> Any:
    return _pool("max", **given)


def _avg_pool(**given: Any) -> Any:
    return _pool("avg", **given)


def _batch_norm(
    x: Any, mean: Any, variance: Any, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5, **_: Any
) -> Any:
    import torch.nn.functional

    return torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, number(epsilon))


def _instance_norm(x: Any, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.instance_norm(x, weight=gamma, bias=beta, eps=number(epsilon))


def _local_response_norm(x: Any, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.local_response_norm(x, int(size), number(alpha), number(beta), number(k))


def _nearest(x: Any, scale_factor_height: Any = 1, scale_factor_width: Any = 1, **_: Any) -> Any:
    import torch.nn.functional

    factors = (float(scale_factor_height), float(scale_factor_width))
    return torch.nn.functional.interpolate(x, scale_factor=factors, mode="nearest")


def _bilinear(
    x: Any, scale_factor_height: Any = 1, scale_factor_width: Any = 1, align_corners: Any = True,
    half_pixel_centers: Any = None, **_: Any,
) -> Any:  # fmt: skip
    import torch.nn.functional

    if not align_corners and half_pixel_centers is False:
        raise NotImplementedError("bilinear upsampling with neither aligned corners nor half pixels")
    sizes = [round(n * float(f)) for n, f in zip(x.shape[2:], (scale_factor_height, scale_factor_width), strict=True)]
    return torch.nn.functional.interpolate(x, size=sizes, mode="bilinear", align_corners=bool(align_corners))


def _pixel_shuffle(x: Any, upscale_factor: Any, **_: Any) -> Any:
    import torch.nn.functional

    return torch.nn.functional.pixel_shuffle(x, int(upscale_factor))


def _crop(x: Any, crop_height: Any, crop_width: Any, **_: Any) -> Any:
    """Rows and columns off the edges of the last two axes."""
    for axis, (before, after) in ((-2, ints(crop_height)), (-1, ints(crop_width))):
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


WINDOWS: dict[str, Function] = {
    "conv": _conv, "conv_transpose": _conv_transpose, "max_pool": _max_pool, "avg_pool": _avg_pool,
    "batch_norm": _batch_norm, "instance_norm": _instance_norm, "local_response_norm": _local_response_norm,
    "upsample_nearest_neighbor": _nearest, "upsample_bilinear": _bilinear, "pixel_shuffle": _pixel_shuffle,
    "crop": _crop,
}  # fmt: skip
