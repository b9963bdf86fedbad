"""An .onnx file opened in ONNX Runtime, in this process.

In this process, because every step would otherwise pass its logits (and a network's inputs) through a pipe. What makes
that safe: ONNX Runtime trusts a file's structure, so it is only given files whose structure was checked first: ours by
the graph's digest in the manifest, others by onnx's checker. Damage in the weights is only ever wrong numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.manifest import EditedManifest, Manifest
from octavo.errors import BadInput, Missing, OctavoError
from octavo.runtimes.base import Arrays, Placement
from octavo.runtimes.onnx.read import AGAIN, checked_manifest, parse
from octavo.runtimes.profile import OpTime

PROVIDERS = {"cpu": "CPUExecutionProvider"}
EMPTY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


class OnnxSession:
    """One file. State (a KV cache, an LSTM's state) stays in ONNX Runtime's own memory between steps.

    Raises BadInput for a damaged file, Missing when no unit asked for exists here, OctavoError when ONNX Runtime
    refuses the file (with its reason).
    """

    def __init__(self, path: Path, *, threads: int | None = None, units: tuple[str, ...] = ("cpu",)) -> None:
        self.absent = [unit for unit in units if unit not in PROVIDERS]
        if len(self.absent) == len(units):
            raise Missing(f"ONNX Runtime has no provider here for {', '.join(units)}.", "Ask for cpu.")
        self.manifest, self.assets, quantized = _inspect(path)
        self._path, self._options = path, (threads, quantized)
        try:
            self._session = self._open(_options(threads, quantized))
        except Exception as error:  # pybind raises a dozen classes without a common base
            raise OctavoError(f"{path}: ONNX Runtime cannot load it ({error}).", AGAIN) from error
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._state = self._carried_state()
        self._fitting: dict[str, tuple[int, ...]] = {}
        self._run = self._session.run
        self._taken = {name: (tuple(i.shape), i.type) for name, i in self._inputs.items() if name not in self._state}

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        """What `step` takes: {name: (shape, type)}; a free length is named."""
        return dict(self._taken)

    def step(self, inputs: Arrays, state: Any = None) -> tuple[Arrays, Any]:
        """Run once; `state` None starts afresh. Language models: {"ids": int64 [1, n]} → {"logits": [1, n, vocab]}.

        Raises BadInput for inputs that are missing, unknown, or of another rank; OctavoError when the run fails.
        """
        if (
            not self._state
        ):  # flat, and short of checks: behind a network that emptied the caches, a line is a µs or two
            try:
                for name, value in inputs.items():
                    if value.shape != self._fitting[name]:
                        break
                else:
                    return dict(zip(self._outputs, self._run(self._outputs, inputs))), {}  # noqa: B905
            except Exception:  # whatever it is, what follows finds it and says what it is
                pass
            return self._step_checked(inputs), {}
        feeds = self._feeds(inputs)
        try:
            return self._step_bound(feeds, self._fresh() if state is None else state)
        except Exception as error:
            raise OctavoError(f"ONNX Runtime failed: {error}") from error

    def _step_checked(self, inputs: Arrays) -> Arrays:
        """A run without state on inputs of which nothing is known. Their shapes are remembered: the next ones that have
        them need no looking at, since ONNX Runtime itself refuses other names and types before it runs."""
        feeds = self._feeds(inputs)
        try:
            outputs = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        except Exception as error:
            raise OctavoError(f"ONNX Runtime failed: {error}") from error
        self._fitting = {name: value.shape for name, value in feeds.items()}
        return outputs

    def _open(self, options: Any) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])

    def _step_bound(self, feeds: Arrays, state: Any) -> tuple[Arrays, Any]:
        """A run whose state never leaves ONNX Runtime's memory; slower than a plain run where there is none."""
        import onnxruntime

        binding = self._session.io_binding()
        for name, value in (feeds | state).items():
            held = onnxruntime.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
            binding.bind_ortvalue_input(name, held)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        following = {name: values.pop(output) for name, output in self._state.items()}
        return {name: value.numpy() for name, value in values.items()}, following

    def placement(self) -> list[Placement]:
        """The unit that each operator of the optimised graph was given to."""
        reason = f"no provider here for {', '.join(self.absent)}" if self.absent else ""
        units = {provider: unit for unit, provider in PROVIDERS.items()}
        return [
            Placement(f"{node.name or node.op_type} ({node.op_type})", units.get(part.ep_name, part.ep_name), reason)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]

    def profile(self, inputs: Arrays, state: Any = None, runs: int = 10) -> list[OpTime]:
        """Time per operator in a second session of the same file (runtimes/profile.py has the contract)."""
        from octavo.runtimes.onnx.profile import profile_runs

        held = self._fresh() if state is None else state
        feeds = self._feeds(inputs) | {n: v if isinstance(v, np.ndarray) else v.numpy() for n, v in held.items()}
        units = {provider: unit for unit, provider in PROVIDERS.items()}
        return profile_runs(
            self._open, _options(*self._options), lambda session: session.run(self._outputs, feeds), runs, units
        )  # fmt: skip

    def close(self) -> None:
        """Free the session."""
        del self._run, self._session

    def _carried_state(self) -> dict[str, str]:
        """{input: output} of what goes around."""
        if self.manifest is not None and "state" in self.manifest.extra:
            return dict(self.manifest.extra["state"])
        names = {name: name.replace("past_key_values", "present") for name in self._inputs if "past_key_values" in name}
        return {name: output for name, output in names.items() if output in self._outputs}

    def _fresh(self) -> Arrays:
        """State before the first step: zeros, and nothing along a free length."""
        fresh: Arrays = {}
        for name in self._state:
            item = self._inputs[name]
            fresh[name] = np.zeros([n if isinstance(n, int) else 0 for n in item.shape], EMPTY[item.type])
        return fresh

    def _feeds(self, inputs: Arrays) -> Arrays:
        """The inputs as contiguous arrays of the graph's types. Raises BadInput where they do not fit."""
        if inputs.keys() != self._taken.keys():
            raise BadInput(f"Inputs {sorted(inputs)} given; the model takes {sorted(self._taken)}.")
        feeds: Arrays = {}
        for name, (shape, kind) in self._taken.items():
            array = np.asarray(inputs[name], order="C")
            given = array.shape
            if given != shape:
                fits = len(given) == len(shape) and all(
                    not isinstance(n, int) or n == m for n, m in zip(shape, given, strict=True)
                )
                if not fits or 0 in given:
                    raise BadInput(f"Input {name} is {list(given)}; the model takes {list(shape)} {kind}.")
            wanted = EMPTY.get(kind)
            if wanted is not None and array.dtype != wanted and np.can_cast(array.dtype, wanted, "same_kind"):
                array = array.astype(wanted)
            feeds[name] = array
        return feeds


def _options(threads: int | None, quantized: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not quantized:
        # Weight-only files: unpack convolution weights once, at load, instead of at every run.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _inspect(path: Path) -> tuple[Manifest | None, dict[str, bytes], bool]:
    """Manifest, assets, and whether activations are quantised; after the structure has been checked."""
    import onnx

    model = parse(path, headers=True)
    try:
        manifest = checked_manifest(model)
    except EditedManifest:  # or a large tensor that is no weight, whose data is part of the program
        manifest = checked_manifest(parse(path))
    if manifest is None:
        try:
            onnx.checker.check_model(str(path))
        except Exception as error:
            raise BadInput(f"{path}: onnx's checker refuses it ({error}).", AGAIN) from error
    return manifest, assets_of(model), any(node.op_type == "QuantizeLinear" for node in model.graph.node)


ASSET, ASSET64 = "octavo.asset.", "octavo.asset64."  # as text, or base64 where it is no UTF-8


def assets_of(model: Any) -> dict[str, bytes]:
    """Tokenizer and other files that travel in the metadata."""
    import base64

    found: dict[str, bytes] = {}
    for item in model.metadata_props:
        if item.key.startswith(ASSET):
            found[item.key.removeprefix(ASSET)] = item.value.encode()
        elif item.key.startswith(ASSET64):
            found[item.key.removeprefix(ASSET64)] = base64.b64decode(item.value)
    return found


def asset_entries(assets: dict[str, bytes]) -> dict[str, str]:
    """The metadata that `assets_of` reads."""
    import base64

    entries: dict[str, str] = {}
    for name, data in sorted(assets.items()):
        try:
            entries[ASSET + name] = data.decode()
        except UnicodeDecodeError:
            entries[ASSET64 + name] = base64.b64encode(data).decode()
    return entries
