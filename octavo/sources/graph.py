"""A torch graph as a source: captured from a module, or opened from a trusted file in a worker."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import Role, TensorSpec
from octavo.core.model import Program, State
from octavo.core.safetensors import SafetensorsFile
from octavo.errors import BadInput, nearest

if TYPE_CHECKING:
    from torch import nn

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class GraphSource:
    """A graph program with its float32 tensors in memory."""

    program: Program
    tensors: dict[str, TensorSpec]
    arrays: dict[str, NDArray[np.float32]] = field(repr=False)
    assets: dict[str, bytes] = field(default_factory=dict)
    state: tuple[State, ...] = ()
    notes: tuple[str, ...] = ()  # what is not as one would expect of the model as it was trained

    def dtype(self, name: str) -> str:
        """Always fp32: capture refuses other types."""
        return "fp32"

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) as float32; a scalar is its one row."""
        values = self.arrays[name]
        return values[start:stop] if values.ndim else values

    def close(self) -> None:
        """Nothing is open."""


def open_module(module: nn.Module, example_inputs: tuple[Any, ...]) -> GraphSource:
    """Capture `module` with torch.export. Raises BadInput when it cannot be captured."""
    from octavo.sources.torch import capture, describe

    program, tensors = describe(capture(module, example_inputs))
    return _source(program, {name: (values, role) for name, values, role in tensors})


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a .safetensors into `module`. Raises BadInput naming missing, unknown and misshapen tensors."""
    import torch

    if path.suffix != ".safetensors":
        raise BadInput(f"{path}: weights must be .safetensors.", "Save them with safetensors.torch.save_model.")
    own = module.state_dict()
    with SafetensorsFile(path) as file:
        missing = sorted(set(own) - set(file.entries))
        unknown = sorted(set(file.entries) - set(own))
        tied = [name for name in missing if _shares(own, name, set(file.entries))]
        missing = [name for name in missing if name not in tied]
        if missing or unknown:
            what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not a tensor of the module"
            hint = nearest(missing[0], unknown) if missing and unknown else nearest((missing + unknown)[0], own)
            raise BadInput(f"{path}: {len(missing)} tensors missing, {len(unknown)} unknown; {what}.", hint)
        for name, entry in file.entries.items():
            if tuple(own[name].shape) != entry.shape:
                raise BadInput(f"{path}: {name} is {list(entry.shape)}, the module's is {list(own[name].shape)}.")
            if own[name].is_floating_point() != (entry.dtype in FLOATS):
                raise BadInput(
                    f"{path}: {name} is {entry.dtype}, the module's is {own[name].dtype}.", "Give the float weights."
                )
            rows = file.floats(name) if entry.dtype == "BF16" else file.rows(name)
            with torch.no_grad():
                own[name].copy_(torch.from_numpy(np.ascontiguousarray(rows)))


def open_trusted(path: Path, worker: Any) -> GraphSource:
    """Convert a .pt2 inside `worker` (it may run code) and read the open form that it wrote.

    Raises BadInput for a file that holds weights only: those go with --module.
    """
    with tempfile.TemporaryDirectory(prefix="octavo-") as directory:
        params = {"path": str(path.resolve()), "directory": directory, "trust": True}
        reply = worker.call("octavo.sources.trusted:convert", params, timeout=600)
        if reply.result["program"] is None:
            raise BadInput(
                f"{path}: holds weights and no program.",
                "Save them as safetensors and give --module pkg.file:factory --weights W.safetensors.",
            )
        program = json.loads(Path(reply.result["program"]).read_text("utf-8"))
        roles = reply.result["roles"]
        with SafetensorsFile(Path(reply.result["weights"])) as file:
            arrays = {name: (file.floats(name), roles[name]) for name in roles}
    return _source(Program(program["kind"], program["body"]), arrays)


def _source(program: Program, tensors: dict[str, tuple[NDArray[np.float32], Role]]) -> GraphSource:
    specs = {name: TensorSpec(values.shape, role) for name, (values, role) in tensors.items()}
    return GraphSource(program, specs, {name: values for name, (values, _) in tensors.items()})


def _shares(own: dict[str, Any], name: str, present: set[str]) -> bool:
    """Whether `name` is another name of a tensor that is present (tied weights are saved once)."""
    pointer, shape = own[name].data_ptr(), own[name].shape
    same = (other for other in own if own[other].data_ptr() == pointer and own[other].shape == shape)
    return any(other in present and other != name for other in same)
