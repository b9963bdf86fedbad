"""Core ML: one .mlpackage (a directory) with an ML program, codes, scales and Octavo's manifest in its metadata.

`mlpackage/` holds the pieces. coremltools converts, writes and decodes on any system, in a worker process; predicting
needs macOS. Elsewhere a package is run by Octavo's own interpreter, and whatever comes of that says so.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.carriage import carriage
from octavo.core.manifest import Carried, Manifest, manifest_for
from octavo.core.model import CompressedModel, TensorRecord
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput, OctavoError, Refused
from octavo.runtimes.base import Availability, Programs, Progress, ReadBack, Session
from octavo.runtimes.mlpackage.layout import OPERATIONS, Compute, is_affine, layout_of, names_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class CoreMl:
    """The Runtime of Core ML. `compute`: the type that the program computes in; fp16 is never chosen silently."""

    name = "coreml"
    suffix = ".mlpackage"
    directory = True  # an artifact is a directory

    def __init__(self, compute: Compute = "fp32") -> None:
        self.compute: Compute = compute

    def for_units(self, units: tuple[str, ...]) -> CoreMl:
        """The same runtime, for the units asked for: the Neural Engine takes programs that compute in fp16."""
        return CoreMl("fp16" if "npu" in units else self.compute)

    def carry(self, model: CompressedModel) -> Manifest:
        """Decide which operation holds each tensor. Raises Refused for what an ML program cannot hold exactly."""
        if model.program.kind != "graph":
            raise Refused(
                "Core ML: Octavo does not write language models to it.",
                "Octavo exports them to llamacpp and onnxruntime.",
            )
        wide = sorted({edge.dtype for edge in model.edges} - {"int8"})
        if wide:
            raise Refused(f"Core ML quantises activations to int8, not {', '.join(wide)}.", "Use w8a8.")
        if self.compute == "fp16":
            _check_half(model)
        affine, names = is_affine({record.scheme for record in model.tensors}, self.compute), names_of(model)
        carried = tuple(self._carried(record, names[record.name], affine) for record in model.tensors)
        extra: dict[str, Any] = {
            "compute": self.compute,
            "target": "iOS17" if affine else "iOS18",
            "state": {state.name: f"present.{state.name}" for state in model.state},
        }
        return manifest_for(model, self.name, carried, extra=extra, notes=self._notes(model, affine))

    def lower(
        self, model: CompressedModel, manifest: Manifest, path: Path, programs: Programs, progress: Progress
    ) -> None:
        """Write the package into the directory `path`.

        Raises Missing without coremltools or torch, OctavoError when the program cannot be converted (or took longer
        than half an hour).
        """
        from dataclasses import replace

        from octavo.runtimes.mlpackage import service
        from octavo.runtimes.mlpackage.package import write_package
        from octavo.runtimes.onnx.session import asset_entries

        progress("tracing the program", 0, 3)
        with tempfile.TemporaryDirectory(prefix="octavo-coreml-") as folder:
            exported = _exported(programs.static("codes") if model.edges else programs.valued())
            inputs, outputs = list(exported.graph_signature.user_inputs), _output_names(model, exported)
            ready = replace(manifest, extra=manifest.extra | {"inputs": inputs, "outputs": outputs})
            saved = Path(folder) / "program.pt2"
            _save(exported, saved)
            del exported
            progress("converting it", 1, 3)
            params = {
                "program": str(saved),
                "out": folder,
                "tensors": self._items(model, manifest),
                "edges": manifest.parts["edges"],
                "target": manifest.extra["target"],
                "compute": self.compute,
                "outputs": outputs,
                "assets": asset_entries(model.assets),
                "manifest": ready.to_json(),
            }
            made = service.call("convert:convert", params, _arrays(model), timeout=service.CONVERT_SECONDS)
            progress("writing it", 2, 3)
            write_package(path, Path(folder) / "model.mlmodel", Path(made.result["weights"]), model.digest)

    def discard(self, path: Path) -> None:
        """Nothing lies beside the package."""

    def read_back(self, path: Path) -> ReadBack:
        """Open the package with coremltools' reader. Raises BadInput when it is damaged."""
        from octavo.runtimes.mlpackage.read import CoreMlReadBack

        return CoreMlReadBack(path)

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        units: tuple[str, ...] = ("cpu",),
        context: int | None = None,
        kv: str | None = None,
    ) -> Session:
        """Core ML itself on macOS, elsewhere Octavo's interpreter (mlpackage/session.py). Raises BadInput, Missing."""
        if kv is not None:
            raise BadInput(f"{path}: an ML program of Octavo's has no KV cache.", "Leave --kv out.")
        from octavo.runtimes.mlpackage.session import open_session

        return open_session(path, units)

    def files(self, path: Path) -> list[Path]:
        """Every file in the package, Manifest.json first. Raises BadInput when it is incomplete."""
        from octavo.runtimes.mlpackage.package import package_files

        return package_files(path)

    def run_line(self, path: Path) -> str:
        """The command that runs the package; its inputs are the reader's to put in."""
        return f"octavo run {shlex.quote(str(path))} --input X.npz"

    def doctor(self) -> Availability:
        """Whether coremltools converts and decodes here, tried in a worker; predicting needs macOS."""
        import sys
        from importlib.metadata import PackageNotFoundError, version

        from octavo.runtimes.mlpackage.selfcheck import check

        try:
            versions = f"coremltools {version('coremltools')}, torch {version('torch')}"
        except PackageNotFoundError as error:
            return Availability(False, reason=f"{error.name} is not installed.", remedy="pip install 'octavo[coreml]'")
        wrong = check()
        if wrong:
            return Availability(False, versions, (), wrong, "pip install --force-reinstall coremltools")
        if sys.platform == "darwin":
            return Availability(True, versions, ("cpu", "gpu", "npu"))
        reason = "converts, verifies, and runs in Octavo's interpreter; Core ML itself needs macOS"
        return Availability(True, versions, ("cpu",), reason)

    def _carried(self, record: TensorRecord, at: str, affine: bool) -> Carried:
        cell = carriage(self.name, record)
        layout = layout_of(record.scheme, affine=affine, compute=self.compute)
        grid = SCHEMES.get(record.scheme)
        quantized = grid is not None and grid.range is not None
        stored_as = (
            f"{OPERATIONS[layout.kind]} {layout.bits}-bit"
            if quantized
            else f"{OPERATIONS[layout.kind]} fp{layout.bits}"
        )
        return Carried(
            name=record.name,
            shape=record.shape,
            role=record.role,
            scheme=record.scheme,
            digest=record.digest,
            stored_as=stored_as,
            at=(at,),
            moves=("widened to fp32",) if record.scheme == "bf16" else (),
            why=cell.why,
        )

    def _items(self, model: CompressedModel, manifest: Manifest) -> list[dict[str, Any]]:
        """What the worker is told of each tensor (see mlpackage/settle.py)."""
        affine, aliases = manifest.extra["target"] == "iOS17", model.program.body["aliases"]
        found = []
        for carried in manifest.tensors:
            layout = layout_of(carried.scheme, affine=affine, compute=self.compute)
            grid = SCHEMES.get(carried.scheme)
            found.append({
                "name": carried.name,
                "names": [carried.name, *(name for name, same in aliases.items() if same == carried.name)],
                "at": carried.at[0],
                "kind": layout.kind,
                "bits": layout.bits,
                "static": bool(model.edges) and grid is not None and grid.activation is not None,
            })  # fmt: skip
        return found

    def _notes(self, model: CompressedModel, affine: bool) -> tuple[str, ...]:
        where = "iOS 17 or macOS 14" if affine else "iOS 18 or macOS 15"
        if self.compute == "fp16":
            wide = sum(record.scheme in ("fp32", "bf16") for record in model.tensors)
            note = f"It computes in fp16, which the Neural Engine takes, and needs {where}."
            kept = f"{wide} tensors lie there in fp32, rounded when read: documented, and not tried on a device."
            return (note, kept) if wide else (note,)
        return (
            f"It computes in fp32, and needs {where}. Apple documents fp32 operations for CPU and GPU, not for the "
            "Neural Engine.",
        )


def _check_half(model: CompressedModel) -> None:
    """Raise Refused for an edge whose scale a program that computes in fp16 cannot hold."""
    with np.errstate(over="ignore"):
        wrong = [edge for edge in model.edges if float(np.float16(edge.scale)) != float(np.float32(edge.scale))]
    if wrong:
        raise Refused(
            f"The scales of {len(wrong)} of {len(model.edges)} edges are not exact in fp16, the first {wrong[0].name}: "
            f"{wrong[0].scale}.",
            "Core ML holds them in a program that computes in fp32: leave --unit npu out.",
        )


def _exported(made: tuple[Any, tuple[Any, ...]]) -> ExportedProgram:
    """torch.export of what `programs` made."""
    import warnings

    import torch

    module, inputs = made
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(module, inputs, strict=False)
        except Exception as error:  # torch raises classes of its own
            raise OctavoError(f"torch cannot export this program: {str(error).splitlines()[0]}") from error
    return exported


def _save(exported: ExportedProgram, path: Path) -> None:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(exported, path)


def _output_names(model: CompressedModel, exported: ExportedProgram) -> list[str]:
    """As onnx/graph.py names them: a dictionary's keys, or output, output.0, …; state comes last."""
    from octavo.runtimes.onnx.graph import output_names

    count = len(exported.graph_signature.user_outputs)
    plain = count - len(model.state)
    names = ["output"] if plain == 1 and model.state else output_names(exported, count)[:plain]
    return [*names, *(f"present.{state.name}" for state in model.state)]


def _arrays(model: CompressedModel) -> dict[str, NDArray[Any]]:
    """NAME.codes and NAME.scale of every quantised tensor, NAME of every float."""
    found: dict[str, NDArray[Any]] = {}
    for record in model.tensors:
        value = model.tensor(record.name)
        if isinstance(value, QuantizedTensor):
            if value.zero_point is not None:
                raise BadInput(
                    f"{record.name}: zero points, and {record.scheme} has none.", "Compress the model again."
                )
            found[f"{record.name}.codes"], found[f"{record.name}.scale"] = value.codes, value.scale
        else:
            found[record.name] = np.asarray(value, np.float32)
    return found
