"""An imported program, a list of recorded steps, as an nn.Module that torch.export can trace."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Step = Callable[..., Any]  # tensors (None where an input is absent or was needed at import only) → one or a tuple


class Entry(Protocol):
    """A value of an importer's graph: its key among the steps, what the file calls it, its shape and type on `meta`."""

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def meta(self) -> Tensor: ...


@dataclass(frozen=True)
class Run:
    """One step of the program: `step(*values)`, whose arguments and results are named by key; None is absent."""

    step: Step
    arguments: tuple[str | None, ...]
    results: tuple[str, ...]
    node: str


class Imported(nn.Module):
    """forward(*inputs, in the graph's order) → {output: tensor}. Its parameters have the initializers' names."""

    def __init__(
        self, inputs: Sequence[Entry], outputs: Sequence[tuple[str, Entry]], runs: list[Run], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self._places = {f"tensor:{name}": _hold(self, name, value) for name, value in tensors.items()}
        self._runs, self._last = runs, _last_use(runs, [value.key for _, value in outputs])
        self._entries = [value.key for value in inputs]
        self._exits = [(name, value.key) for name, value in outputs]
        names: list[str] = []
        for value in inputs:
            names.append(identifier(value.name, names))
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.forward = self._named_forward(inspect.Signature([inspect.Parameter(name, kind) for name in names]))
        self.eval()

    def _named_forward(self, signature: inspect.Signature) -> Any:
        """torch.export calls inputs what the signature calls them."""

        def forward(*given: Tensor) -> dict[str, Tensor]:
            return self._compute(given)

        forward.__signature__ = signature  # type: ignore[attr-defined]
        return forward

    def _compute(self, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
        values: dict[str, Any] = dict(zip(self._entries, given, strict=True))
        for index, run in enumerate(self._runs):
            found = run.step(*(self._value(values, key) for key in run.arguments))
            values.update(zip(run.results, found if isinstance(found, tuple | list) else (found,), strict=False))
            for key in self._last.get(index, ()):
                values.pop(key, None)
        return {name: self._value(values, key) for name, key in self._exits}

    def _value(self, values: dict[str, Any], key: str | None) -> Any:
        if key is None or key in values:
            return None if key is None else values[key]
        owner, leaf = self._places[key]
        return getattr(owner, leaf)


def identifier(name: str, taken: Sequence[str]) -> str:
    """`name` as Python and torch.export can call an input."""
    made = re.sub(r"\W", "_", name, flags=re.ASCII) or "input"
    made = f"_{made}" if made[0].isdigit() else made
    made = f"{made}_" if keyword.iskeyword(made) else made
    number, base = 1, made
    while made in taken:
        number, made = number + 1, f"{base}_{number}"
    return made


def _hold(root: nn.Module, name: str, value: Tensor) -> tuple[nn.Module, str]:
    """Register `value` under its dotted name; under one with dashes where a part of it is empty or taken."""
    *parts, leaf = name.split(".")
    owner = root
    if not all((*parts, leaf)) or _blocked(root, parts, leaf):
        parts, leaf = [], name.replace(".", "-")
        while hasattr(root, leaf):
            leaf += "-"
    for part in parts:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if value.is_floating_point():
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        owner.register_buffer(leaf, value)
    return owner, leaf


def _blocked(root: nn.Module, parts: list[str], leaf: str) -> bool:
    """Whether a part of the path is a tensor or one of torch's own attributes."""
    owner: Any = root
    for number, part in enumerate(parts):
        if not hasattr(owner, part):
            return any(hasattr(nn.Module(), name) for name in (*parts[number:], leaf))
        owner = getattr(owner, part)
        if not isinstance(owner, nn.Module):
            return True
    return hasattr(owner, leaf)


def _last_use(runs: list[Run], kept: list[str]) -> dict[int, list[str]]:
    """Which values end with which step, so that memory is given back as soon as it can be."""
    last: dict[str, int] = {}
    for index, run in enumerate(runs):
        last.update({key: index for key in (*run.arguments, *run.results) if key is not None})
    ends: dict[int, list[str]] = {}
    for key, index in last.items():
        if key not in kept and not key.startswith("tensor:"):
            ends.setdefault(index, []).append(key)
    return ends


def blank(value: Entry) -> Tensor:
    """An example of a model input: zeros of its shape."""
    return torch.zeros(tuple(value.meta.shape), dtype=value.meta.dtype)
