"""Whether data have the shape of a model's input, and how to say it when they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.errors import BadInput


def only_input(inputs: Mapping[str, tuple[int, ...]] | None, what: str) -> tuple[str, tuple[int, ...] | None]:
    """The name and shape of the one input that files feed. Raises BadInput for a model with several."""
    if not inputs:
        return "x", None
    if len(inputs) > 1:
        raise BadInput(
            f"The model has {len(inputs)} inputs ({', '.join(inputs)}), and {what} feed one.",
            "Give an .npz with one array per input name.",
        )
    return next(iter(inputs.items()))


def shown(shape: Sequence[int]) -> str:
    """[batch, 3, 224, any]"""
    return str(["batch", *(n if n >= 0 else "any" for n in shape[1:])]).replace("'", "")


def fits(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether an array [batch, …] has a model's shape behind the batch axis."""
    return len(have) == len(want) and all(w in (-1, h) for h, w in zip(have[1:], want[1:], strict=True))


def turned(have: tuple[int, ...], want: tuple[int, ...]) -> str:
    """What to do about images whose channels are at the other end; '' when that is not it."""
    if len(have) == len(want) == 4:
        for axes, name in (((0, 3, 1, 2), "last"), ((0, 2, 3, 1), "first")):
            if fits(tuple(have[axis] for axis in axes), want):
                return f"The channels are {name}: turn them with numpy.transpose(x, {axes})."
    return ""
