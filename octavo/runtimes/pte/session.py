"""A .pte opened in ExecuTorch's runtime, in this process.

In this process, because every step would otherwise pass its inputs and outputs through a pipe. What makes that safe:
ExecuTorch trusts a file's structure, so it is only given files whose structure was checked first: ours by its digest in
the manifest (damage in the weights is only ever wrong numbers, or a refusal to load); others are opened and run once
in a worker before.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import Manifest
from octavo.errors import BadInput, Missing, OctavoError, WorkerDied, WorkerTimeout
from octavo.runtimes.base import Arrays, Placement
from octavo.runtimes.pte.container import AGAIN, SCALARS, Container, Tensor
from octavo.runtimes.pte.places import graphs, places
from octavo.runtimes.pte.read import ASSET, checked_manifest
from octavo.runtimes.pte.xnnpack import BACKEND, Graph
from octavo.workers.local import Worker

FALLBACK = "portable kernel, not XNNPACK"
TRIAL_SECONDS = 300
LARGEST = 1 << 33  # bytes of an input of zeros that a trial makes


class PteSession:
    """One file, its first method. State (an LSTM's) goes in and comes back as arrays.

    Raises BadInput for a damaged file, Missing when no unit asked for exists here or ExecuTorch is not installed,
    OctavoError when ExecuTorch refuses the file (with its reason).
    """

    def __init__(self, path: Path, *, threads: int | None = None, units: tuple[str, ...] = ("cpu",)) -> None:
        self.absent = [unit for unit in units if unit != "cpu"]
        if "cpu" not in units:
            raise Missing(f"ExecuTorch runs on no {', '.join(units)} here.", "Ask for cpu.")
        container = Container(path)
        try:
            held = graphs(container)
            self.manifest = checked_manifest(container, held, places(container, held))
            self.assets = {
                name.removeprefix(ASSET): container.bytes(span)
                for name, span in container.named.items()
                if name.startswith(ASSET)
            }
            self._ends(container)
            self._placed = _placed(container, held, self.manifest, self.absent)
            method = container.method
        finally:
            container.close()
        if self.manifest is None:
            _try_out(path)
        self._program, self._method = _load(path, method, threads)

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        """What `step` takes: {name: (shape, type)}, without the state."""
        return dict(self._taken)

    def step(self, inputs: Arrays, state: Any = None) -> tuple[Arrays, Any]:
        """Run once; `state` None starts with zeros.

        Raises BadInput for inputs that are missing, unknown, or of another shape; OctavoError when the run fails.
        """
        feeds = self._feeds(inputs, state)
        try:
            found = self._method(feeds)
        except RuntimeError as error:
            raise OctavoError(f"ExecuTorch failed: {error}") from error
        values = {name: value.numpy() for name, value in zip(self._outputs, found, strict=True)}
        if not self._state:
            return values, {}
        following = {name: values.pop(output) for name, output in self._state.items()}
        return values, following

    def placement(self) -> list[Placement]:
        """The unit of each operator; operators outside XNNPACK run on slow portable kernels, and it says so."""
        return list(self._placed)

    def close(self) -> None:
        """Free the program."""
        del self._method, self._program

    def _ends(self, container: Container) -> None:
        """Names, shapes and types of what goes in and comes out."""
        extra = self.manifest.extra if self.manifest else {}
        given = [_tensor(container, index) for index in container.inputs]
        self._order = _names(extra.get("inputs"), "input", len(given))
        self._outputs = _names(extra.get("outputs"), "output", len(container.outputs))
        self._state = {str(name): str(output) for name, output in extra.get("state", {}).items()}
        ends = {name: (item.shape, SCALARS[item.kind]) for name, item in zip(self._order, given, strict=True)}
        self._kinds = {name: np.dtype(kind[0]) for name, (_, kind) in ends.items()}
        self._fresh = {
            name: np.zeros(ends[name][0], self._kinds[name]) for name in self._state if prod(ends[name][0]) < LARGEST
        }
        self._taken: dict[str, tuple[tuple[int | str, ...], str]] = {
            name: (shape, kind[1]) for name, (shape, kind) in ends.items() if name not in self._state
        }

    def _feeds(self, inputs: Arrays, state: Any) -> list[Any]:
        import torch

        if inputs.keys() != self._taken.keys():
            raise BadInput(f"Inputs {sorted(inputs)} given; the model takes {sorted(self._taken)}.")
        given = inputs if not self._state else {**inputs, **(self._fresh if state is None else state)}
        feeds: list[Any] = []
        for name in self._order:
            array, wanted = np.asarray(given[name], order="C"), self._kinds[name]
            shape = self._taken[name][0] if name in self._taken else self._fresh[name].shape
            if array.shape != shape:
                raise BadInput(f"Input {name} is {list(array.shape)}; the model takes {list(shape)} {wanted}.")
            if array.dtype != wanted:
                if not np.can_cast(array.dtype, wanted, "same_kind"):
                    raise BadInput(f"Input {name} is {array.dtype}; the model takes {wanted}.")
                array = array.astype(wanted)
            feeds.append(torch.from_numpy(array if array.flags.writeable else array.copy()))
        return feeds


def _tensor(container: Container, index: int) -> Tensor:
    found = container.values[index]
    if not isinstance(found, Tensor) or found.kind not in SCALARS:
        raise BadInput(f"{container.path}: an input is no tensor of numbers.", "Octavo runs programs of tensors.")
    return found


def _names(given: Any, what: str, count: int) -> list[str]:
    if isinstance(given, list) and len(given) == count:
        return [str(name) for name in given]
    return [what] if count == 1 else [f"{what}.{index}" for index in range(count)]


def _placed(
    container: Container, held: dict[int, Graph], manifest: Manifest | None, absent: list[str]
) -> list[Placement]:
    """As noted at the export; of a foreign file what its instructions say."""
    lacking = f"no delegate here for {', '.join(absent)}" if absent else ""
    if manifest is not None and "placement" in manifest.extra:
        noted = [Placement(item["op"], item["unit"], item["reason"]) for item in manifest.extra["placement"]]
    else:
        noted = list(_from_calls(container, held))
    return [Placement(item.op, item.unit, "; ".join(filter(None, (item.reason, lacking)))) for item in noted]


def _from_calls(container: Container, held: dict[int, Graph]) -> Iterator[Placement]:
    for call in container.calls:
        if call.kernel:
            yield Placement(call.kernel, "cpu", FALLBACK)
        elif call.delegate in held:
            yield from (Placement(f"XNN{node}", "cpu") for node in held[call.delegate].nodes)
        elif call.delegate >= 0:
            name = container.delegates[call.delegate].backend
            yield Placement(name, name, "" if name == BACKEND else "its operators are known to that backend only")


def _load(path: Path, method: str, threads: int | None) -> Any:
    """The runtime's program and its method. Raises Missing without ExecuTorch, OctavoError when it refuses the file."""
    try:
        with _quoted() as said:
            from executorch.extension.pybindings import portable_lib as runtime

            if threads is not None and runtime._threadpool_get_thread_count() != threads:
                runtime._unsafe_reset_threadpool(threads)  # the pool is the process's: other sessions follow
            program = runtime._load_program(str(path))
            loaded = program.load_method(method)  # here XNNPACK packs the weights, and refuses what it cannot take
    except ImportError as error:
        raise Missing(f"Running .pte files needs executorch ({error}).", "pip install 'octavo[executorch]'") from error
    except RuntimeError as error:
        reason = said[0].strip().splitlines()[-1:] if said else []
        raise OctavoError(f"{path}: ExecuTorch cannot load it ({'; '.join([str(error), *reason])}).", AGAIN) from error
    return program, loaded


@contextmanager
def _quoted() -> Iterator[list[str]]:
    """Keep the runtime's remarks (about /proc/cpuinfo, about why it fails) off the screen; the list has them after."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode("utf-8", "replace"))


def _try_out(path: Path) -> None:
    """Open and run a foreign file in a worker. Raises BadInput when that kills the worker, or what it raised."""
    try:
        with Worker() as worker:
            worker.call("octavo.runtimes.pte.session:trial", {"path": str(path)}, timeout=TRIAL_SECONDS)
    except (WorkerDied, WorkerTimeout) as error:
        raise BadInput(f"{path}: ExecuTorch does not survive it ({error.message.splitlines()[0]}).", AGAIN) from error


def trial(
    params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A worker's target: load the file and run it once on zeros."""
    import torch

    container = Container(Path(params["path"]))
    given = [_tensor(container, index) for index in container.inputs]
    if sum(prod(item.shape) for item in given) > LARGEST:
        raise BadInput(f"{params['path']}: its inputs are {[list(item.shape) for item in given]}.", AGAIN)
    _program, method = _load(Path(params["path"]), container.method, None)
    zeros = [torch.from_numpy(np.zeros(item.shape, SCALARS[item.kind][0])) for item in given]
    try:
        method(zeros)
    except RuntimeError as error:
        raise OctavoError(f"{params['path']}: ExecuTorch cannot run it ({error}).", AGAIN) from error
    return {}, {}
