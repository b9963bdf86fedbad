"""Files that can run code when they are opened (.pt, .pth, .pt2): only after --trust, and only in a worker process.

What comes out is open: `weights.safetensors`, and `program.json` for a .pt2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from octavo.errors import BadInput


def convert(
    params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Worker target. params: {"path": a .pt, .pth or .pt2, "directory": where to write, "trust": True}.

    Result: {"weights": path, "program": path or None, "roles": {name: role}}. Raises BadInput without trust, for
    another suffix, for a file torch cannot read, and for a .pt that holds anything but a dictionary of tensors.
    """
    path, directory = Path(params["path"]), Path(params["directory"])
    if params.get("trust") is not True:
        raise BadInput(f"{path}: opening a {path.suffix} file can run code that is in it.", "Say --trust if you do.")
    if path.suffix not in (".pt", ".pth", ".pt2"):
        raise BadInput(f"{path}: not a .pt, .pth or .pt2 file.")
    directory.mkdir(parents=True, exist_ok=True)
    result = _exported(path, directory) if path.suffix == ".pt2" else _state_dict(path, directory)
    return result, {}


def _exported(path: Path, directory: Path) -> dict[str, Any]:
    import torch
    from safetensors.numpy import save_file

    from octavo.sources.torch import describe

    try:
        exported = torch.export.load(path)
    except Exception as error:
        raise BadInput(f"{path}: torch.export.load cannot read it ({type(error).__name__}: {error}).") from error
    program, tensors = describe(exported)
    (directory / "program.json").write_text(json.dumps({"kind": program.kind, "body": program.body}), "utf-8")
    save_file({name: values for name, values, _ in tensors}, directory / "weights.safetensors")
    return {
        "weights": str(directory / "weights.safetensors"),
        "program": str(directory / "program.json"),
        "roles": {name: role for name, _, role in tensors},
    }


def _state_dict(path: Path, directory: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise BadInput(f"{path}: torch.load cannot read it ({type(error).__name__}: {error}).") from error
    if isinstance(loaded, torch.nn.Module):
        loaded = loaded.state_dict()
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BadInput(f"{path}: holds a {type(loaded).__name__}, not a dictionary of tensors.", "Save state_dict().")
    tensors = {str(name): value.detach().clone().contiguous() for name, value in loaded.items()}
    save_file(tensors, directory / "weights.safetensors")
    return {"weights": str(directory / "weights.safetensors"), "program": None, "roles": {}}
