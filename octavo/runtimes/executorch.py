"""ExecuTorch: one .pte file with program, codes, scales, labels and Octavo's manifest, delegated to XNNPACK.

`pte/` holds the pieces: container and xnnpack (the file as it lies on disk), places (how a tensor lies), dynamic
(weight-only schemes), lowering (what runs in the worker), write, read, session. Static models carry int8 codes and
int8 activations; weight-only schemes hold linear layers, with activations quantised to int8 as they run.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from octavo.core.carriage import carriage
from octavo.core.manifest import Carried, Manifest, manifest_for
from octavo.core.model import CompressedModel, TensorRecord
from octavo.core.scheme import SCHEMES
from octavo.errors import BadInput, Missing, Refused
from octavo.runtimes.base import Availability, Programs, Progress, ReadBack, Session

DYNAMIC = (
    "The inputs of weight-only layers are quantised to int8 as the program runs (per row, asymmetric): "
    "XNNPACK multiplies integer weights with nothing else."
)


class ExecuTorch:
    """The Runtime of ExecuTorch with the XNNPACK delegate, on the CPU."""

    name = "executorch"
    suffix = ".pte"

    def carry(self, model: CompressedModel) -> Manifest:
        """Decide how each tensor is held. Where it lies is ExecuTorch's choice: `lower` finds and records it.

        Raises Refused for language models, and for a scheme that XNNPACK cannot hold exactly.
        """
        if model.program.kind != "graph":
            raise Refused(
                "Octavo does not export language models to ExecuTorch yet.", "Export to llamacpp or onnxruntime."
            )
        carried = tuple(self._carried(record) for record in model.tensors)
        notes = (DYNAMIC,) if any(_dynamic(item) for item in carried) else ()
        return manifest_for(model, self.name, carried, notes=notes)

    def lower(
        self, model: CompressedModel, manifest: Manifest, path: Path, programs: Programs, progress: Progress
    ) -> None:
        """Write the file to `path`, through ExecuTorch's exporter in a worker process.

        Raises Missing without ExecuTorch, OctavoError when it cannot lower the program, Refused when what it wrote
        does not hold every tensor code for code.
        """
        from importlib.util import find_spec

        lacking = [name for name in ("torch", "executorch") if find_spec(name) is None]
        if lacking:
            raise Missing(f"Exporting to ExecuTorch needs {', '.join(lacking)}.", "pip install 'octavo[executorch]'")
        from octavo.runtimes.pte.write import write

        write(model, manifest, path, programs, progress)

    def read_back(self, path: Path) -> ReadBack:
        """Open the file, without ExecuTorch. Raises BadInput when it is damaged."""
        from octavo.runtimes.pte.read import PteReadBack

        return PteReadBack(path)

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        units: tuple[str, ...] = ("cpu",),
        context: int | None = None,
        kv: str | None = None,
    ) -> Session:
        """Load the file in ExecuTorch's runtime; see PteSession. Raises BadInput for a KV cache: there is none."""
        if kv is not None:
            raise BadInput(f"{path}: a network without a KV cache.", "Leave --kv out.")
        from octavo.runtimes.pte.session import PteSession

        return PteSession(path, threads=threads, units=units)

    def discard(self, path: Path) -> None:
        """Nothing lies beside the file."""

    def files(self, path: Path) -> list[Path]:
        """The file itself: it is whole."""
        return [path]

    def run_line(self, path: Path) -> str:
        """The command that runs the file."""
        return f"octavo run {shlex.quote(str(path))} --input X.npz"

    def doctor(self) -> Availability:
        """Whether ExecuTorch lowers, loads and runs a net of one addition, in a worker."""
        from importlib.metadata import PackageNotFoundError, version

        from octavo.runtimes.pte.selfcheck import check

        install = "pip install 'octavo[executorch]'"
        try:
            versions = f"executorch {version('executorch')}, torch {version('torch')}"
        except PackageNotFoundError as error:
            return Availability(False, reason=f"{error.name} is not installed.", remedy=install)
        wrong = check()
        if wrong:
            return Availability(False, versions, (), wrong, f"{install} --force-reinstall")
        return Availability(True, versions, ("cpu",), "XNNPACK; operators it lacks run on portable kernels")

    def _carried(self, record: TensorRecord) -> Carried:
        cell = carriage(self.name, record)
        return Carried(
            name=record.name,
            shape=record.shape,
            role=record.role,
            scheme=record.scheme,
            digest=record.digest,
            stored_as=cell.stored_as,
            at=(),
            moves=(f"widened to {cell.stored_as}",) if cell.how == "widened" else (),
            why=cell.why,
        )


def _dynamic(item: Carried) -> bool:
    grid = SCHEMES.get(item.scheme)
    return grid is not None and not grid.is_float and grid.activation is None
