"""A .tflite file opened in LiteRT, in this process.

In this process, because a pipe would cost more than many a network. What makes that safe: LiteRT trusts what a file
says of itself, so only files whose every byte but the weights is proved by the digest in their manifest are opened at
once. Any other file is first opened and run in a worker, whose death is an ordinary error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import EditedManifest, Manifest
from octavo.errors import BadInput, Missing, OctavoError, WorkerDied, WorkerTimeout
from octavo.runtimes.base import Arrays, Placement
from octavo.runtimes.tflite.ends import FIRST, LAST
from octavo.runtimes.tflite.file import AGAIN, DAMAGE, TfliteFile, is_intact, manifest_of
from octavo.runtimes.tflite.write import assets_of
from octavo.workers.local import Worker

PROBE_SECONDS = 300
WORDS = {"float32": "float", "float16": "float16", "float64": "double", "bool_": "bool"}


class TfliteSession:
    """One file, its interpreter and views of its inputs. XNNPACK runs what it can, LiteRT's own kernels the rest.

    Raises BadInput for a damaged file, Missing when no unit asked for exists here or LiteRT is not installed,
    OctavoError when LiteRT refuses the file (with its reason).
    """

    def __init__(self, path: Path, *, threads: int | None = None, units: tuple[str, ...] = ("cpu",)) -> None:
        self.absent = [unit for unit in units if unit != "cpu"]
        if len(self.absent) == len(units):
            raise Missing(f"LiteRT has no delegate here for {', '.join(units)}.", "Ask for cpu.")
        self._path, self._threads = path, threads or _cores()
        self._placed: list[Placement] | None = None
        self._into: list[_End] = []
        self._out: list[_End] = []
        file = TfliteFile(path)
        self.manifest, intact = _inspected(file)
        self.assets = assets_of(file)
        if not intact:
            _probe(path)
        try:
            self._ends = _ends(file, self.manifest)
        except DAMAGE as error:
            raise file.damaged(error) from error
        try:
            self._interpreter, self._refused = allocated(path, self._threads)
        except (RuntimeError, ValueError) as error:
            raise OctavoError(f"{path}: LiteRT cannot load it ({_said(error)}).", AGAIN) from error
        self._prepare()

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        """What `step` takes: {name: (shape, type)}; a free length is named."""
        return dict(self._taken)

    def step(self, inputs: Arrays, state: Any = None) -> tuple[Arrays, Any]:
        """Run once; `state` None starts afresh.

        Where the file's inputs are integers with a scale, floats may be given: they are quantised, and outputs are then
        dequantised, in the program's own layout. Raises BadInput for inputs that are missing, unknown or do not fit;
        OctavoError when the run fails.
        """
        if inputs.keys() != self._taken.keys():
            raise BadInput(f"Inputs {sorted(inputs)} given; the model takes {sorted(self._taken)}.")
        floats = False
        for end in self._into:
            given = inputs.get(end.name)
            if given is None:
                end.view[...] = 0 if state is None else state[end.name]
            elif type(given) is np.ndarray and given.dtype == end.dtype and given.shape == end.shape:
                end.view[...] = given
            else:
                floats |= self._put(end, np.asarray(given))
        try:
            self._invoke()
        except (RuntimeError, ValueError) as error:
            raise OctavoError(f"LiteRT failed: {_said(error)}") from error
        found = {end.name: end.floats() if floats else end.held().copy() for end in self._out}
        if not self._carried:
            return found, {}
        return found, {name: found.pop(output) for name, output in self._carried.items()}

    def placement(self) -> list[Placement]:
        """The kernels that run each operator of the file: XNNPACK's or LiteRT's own, all on the CPU."""
        if self._placed is None:
            self._placed = _placed(self._path, self._threads, self.absent, self._refused)
        return list(self._placed)

    def close(self) -> None:
        """Free the interpreter."""
        self._into = self._out = []
        del self._invoke, self._interpreter

    def _prepare(self) -> None:
        """Views of inputs and outputs; they hold until the next resize."""
        self._carried = dict(self.manifest.extra.get("state", {})) if self.manifest is not None else {}
        for end in (*self._ends[0], *self._ends[1]):
            end.look(self._interpreter)
        self._into, self._out = self._ends
        self._invoke = self._interpreter._interpreter.Invoke
        taken = [end for end in self._into if end.name not in self._carried]
        self._taken = {end.name: (end.sizes, f"tensor({end.word})") for end in taken}

    def _put(self, end: _End, given: NDArray[Any]) -> bool:
        """Copy an input that is of another type or shape; whether it was floats for an integer input."""
        quantise = given.dtype.kind == "f" and end.scale is not None
        value = end.quantised(given) if quantise else given
        if value.shape != end.shape:
            self._resize(end, value.shape)
        if not np.can_cast(value.dtype, end.dtype, "same_kind"):
            raise BadInput(f"Input {end.name} is {value.dtype}; the model takes {end.dtype}.")
        end.view[...] = value
        return quantise

    def _resize(self, end: _End, shape: tuple[int, ...]) -> None:
        """Give a free length another size. Raises BadInput where none is free."""
        fits = len(shape) == len(end.sizes) and all(
            not isinstance(size, int) or size == new for size, new in zip(end.sizes, shape, strict=True)
        )
        if not fits or 0 in shape:
            raise BadInput(f"Input {end.name} is {list(shape)}; the model takes {list(end.sizes)} {end.word}.")
        held = {other.name: other.view.copy() for other in self._into if other is not end}
        for other in (*self._into, *self._out):
            other.view = np.zeros(0)
        self._interpreter.resize_tensor_input(end.index, shape, strict=False)
        self._interpreter.allocate_tensors()
        for other in (*self._into, *self._out):
            other.look(self._interpreter)
        for other in self._into:
            if other.name in held and held[other.name].shape == other.shape:
                other.view[...] = held[other.name]


class _End:
    """An input or output: its tensor, name, sizes (a free one is named), scale, and a view of its memory."""

    view: NDArray[Any]
    dynamic = False  # an output whose memory is only known after a run

    def __init__(self, file: TfliteFile, index: int, name: str, layout: str) -> None:
        self.index, self.name, self.layout = index, name, layout
        held = file.quantization(index)
        integer = held is not None and held[0].size == 1 and file.type(index) in ("INT8", "UINT8", "INT16")
        self.scale = (held[0][0], int(held[1][0])) if integer and held is not None else None
        self.sizes: tuple[int | str, ...] = _sizes(file, index, name)

    def look(self, interpreter: Any) -> None:
        """Take a view of the tensor's memory, which holds until the next resize."""
        self._interpreter = interpreter
        try:
            self.view = interpreter.tensor(self.index)()
        except ValueError:  # no memory yet
            self.dynamic, self.view = True, np.zeros(0, interpreter._get_tensor_details(self.index, 0)["dtype"])
        self.dtype, self.shape = self.view.dtype, self.view.shape
        self.word = WORDS.get(self.dtype.type.__name__, self.dtype.type.__name__)

    def held(self) -> NDArray[Any]:
        """What lies in the tensor now; not to be kept."""
        found: NDArray[Any] = self._interpreter.get_tensor(self.index) if self.dynamic else self.view
        return found

    def quantised(self, given: NDArray[Any]) -> NDArray[Any]:
        """Floats in the program's layout as the file's integers."""
        assert self.scale is not None
        info = np.iinfo(self.dtype)
        if self.layout == "NHWC" and given.ndim == 4:
            given = given.transpose(LAST)
        codes = np.rint(given / self.scale[0]) + self.scale[1]
        found: NDArray[Any] = np.clip(codes, info.min, info.max).astype(self.dtype)
        return found

    def floats(self) -> NDArray[Any]:
        """What lies there, as floats in the program's layout where it is integers with a scale."""
        if self.scale is None:
            return self.held().copy()
        values: NDArray[Any] = (self.held().astype(np.float32) - np.float32(self.scale[1])) * self.scale[0]
        return values.transpose(FIRST) if self.layout == "NHWC" else values


def interpreter(path: Path, threads: int, **options: Any) -> Any:
    """LiteRT's interpreter for a file. Raises Missing without LiteRT."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise Missing(f"Running .tflite files needs {error.name}.", "pip install 'octavo[litert]'") from error
    return Interpreter(model_path=str(path), num_threads=threads, **options)


def allocated(path: Path, threads: int) -> tuple[Any, str]:
    """(an interpreter that is ready to run, why XNNPACK does not take part: nothing where it does).

    XNNPACK may claim an operator and then refuse it; LiteRT's own kernels run such a file. Raises RuntimeError or
    ValueError for a file that those cannot run either.
    """
    found = interpreter(path, threads)
    try:
        found.allocate_tensors()
    except RuntimeError as error:
        if "XNNPackDelegate" not in str(error):
            raise
        from ai_edge_litert.interpreter import OpResolverType

        own = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        found = interpreter(path, threads, experimental_op_resolver_type=own)
        found.allocate_tensors()
        return found, _said(error)
    return found, ""


def probe(params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Any) -> tuple[dict[str, Any], Arrays]:
    """A worker's target: open `path` and run it once on zeros. It may die of it."""
    found, _ = allocated(Path(params["path"]), 1)
    found.invoke()
    return {}, {}


def _probe(path: Path) -> None:
    """Raise BadInput for a file that LiteRT does not survive, or refuses."""
    with Worker(threads=1) as worker:
        try:
            worker.call("octavo.runtimes.tflite.session:probe", {"path": str(path)}, timeout=PROBE_SECONDS)
        except (WorkerDied, WorkerTimeout) as error:
            raise BadInput(
                f"{path}: LiteRT did not survive opening it ({error.message.splitlines()[0]})", AGAIN
            ) from error
        except Missing:
            raise
        except OctavoError as error:
            reason = error.message.partition(" failed: ")[2] or error.message
            raise BadInput(f"{path}: LiteRT cannot run it ({reason.strip().splitlines()[0][:300]}).", AGAIN) from error


def _inspected(file: TfliteFile) -> tuple[Manifest | None, bool]:
    """The manifest, and whether all but the weights is as Octavo wrote it."""
    try:
        manifest = manifest_of(file)
        return manifest, manifest is not None and is_intact(file, manifest)
    except EditedManifest:
        return None, False


def _ends(file: TfliteFile, manifest: Manifest | None) -> tuple[list[_End], list[_End]]:
    """Inputs and outputs, under the names of the signature where there is one, else of the tensors."""
    names: tuple[dict[int, str], dict[int, str]] = ({}, {})
    if file.model.SignatureDefsLength() and not file.model.SignatureDefs(0).SubgraphIndex():
        signature = file.model.SignatureDefs(0)
        for which, count, entry in (
            (0, signature.InputsLength(), signature.Inputs), (1, signature.OutputsLength(), signature.Outputs),
        ):  # fmt: skip
            for place in range(count):
                names[which].setdefault(int(entry(place).TensorIndex()), (entry(place).Name() or b"").decode())
    io = manifest.extra.get("io", {}) if manifest is not None else {}
    listed = (file.body.InputsAsNumpy, file.body.OutputsAsNumpy), (file.body.InputsIsNone(), file.body.OutputsIsNone())
    made: tuple[list[_End], list[_End]] = ([], [])
    for which, key in enumerate(("inputs", "outputs")):
        own = manifest.extra.get(key, []) if manifest is not None else []
        indices = [] if listed[1][which] else [int(index) for index in listed[0][which]()]
        for place, index in enumerate(indices):
            name = own[place] if place < len(own) else names[which].get(index) or file.name(index) or f"{key}.{place}"
            layout = io.get(key, {}).get(name, {}).get("layout", "")
            made[which].append(_End(file, index, name, layout))
    return made


def _sizes(file: TfliteFile, index: int, name: str) -> tuple[int | str, ...]:
    tensor, shape = file.body.Tensors(index), file.shape(index)
    if tensor.ShapeSignatureIsNone() or tensor.ShapeSignatureLength() != len(shape):
        return shape
    signed = [int(size) for size in tensor.ShapeSignatureAsNumpy()]
    return tuple(
        size if sign >= 0 else f"{name}.{axis}" for axis, (size, sign) in enumerate(zip(shape, signed, strict=True))
    )


def _placed(path: Path, threads: int, absent: list[str], refused: str) -> list[Placement]:
    """Match the nodes that a delegate took, in an interpreter that fuses none of them, with the file's operators."""
    taken: set[int] = set()
    nodes = [] if refused else _apart(path, threads)
    for node in nodes:
        if node["op_name"] == "DELEGATE":
            taken |= {int(index) for index in node["outputs"]}
    file = TfliteFile(path)
    missing = f"no delegate here for {', '.join(absent)}; " if absent else ""
    own = f"LiteRT kernel (XNNPACK gave up: {refused})" if refused else "LiteRT kernel"
    return [
        Placement(
            f"{file.name(outputs[0]) if outputs else place} ({kind})", "cpu",
            f"{missing}{'XNNPACK' if outputs and taken.issuperset(outputs) else own}",
        )
        for place, (kind, _, outputs) in enumerate(file.operators())
    ]  # fmt: skip


def _apart(path: Path, threads: int) -> list[Any]:
    """The nodes of an interpreter whose delegate takes every operator by itself."""
    found = interpreter(path, threads, experimental_disable_delegate_node_fusion=True)
    found.allocate_tensors()
    return list(found._get_ops_details())


def _cores() -> int:
    """Physical cores that this process may use: what ONNX Runtime takes by default, too."""
    import psutil

    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or mine, mine))


def _said(error: Exception) -> str:
    """LiteRT's reason in one line."""
    return " ".join(str(error).split())[:300]
