"""Open what a user names: a float model as a source, a compressed model, the torch program of either."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.architecture import TensorSpec
from octavo.core.model import CompressedModel, Program
from octavo.core.source import Source
from octavo.core.store import INDEX
from octavo.core.store import load as load_store
from octavo.errors import BadInput, Missing

if TYPE_CHECKING:
    from torch import nn

Fixed = Mapping[str, Any] | Sequence[str] | None  # what is said of an .onnx file's inputs
TORCH_HINT = "Install it with `pip install 'octavo[compress]'`."
GIVE = "a Hugging Face directory, an .onnx or .tflite file, or --module pkg.file:factory"
KERAS = "from_keras_model(tf.keras.models.load_model({path!r}))"
REFUSED_KINDS = {".h5": ("Keras", KERAS), ".keras": ("Keras", KERAS)}
SAVED_MODEL = "SavedModel", "from_saved_model({path!r})"


def load(directory: str | Path) -> CompressedModel:
    """Open a compressed model's directory. Raises BadInput when it is none, or damaged."""
    return load_store(Path(directory))


def open_source(
    model: str | Path | nn.Module | None,
    *,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    fix: Fixed = None,
) -> Source:
    """Open a float model: a Hugging Face directory, an .onnx file (with what `fix` says of its inputs), a .tflite file,
    an nn.Module with example inputs, `module` = pkg.file:factory with `weights`, or (only with `trust`, in a worker) a
    .pt2 file.

    `fix`: of an .onnx file's inputs, as {name: value, size or whole shape} or as "NAME=VALUE" texts.
    Batch normalisations are folded into the layers before them: no runtime has them in integers.
    Raises BadInput with what was found and what can be given instead; Missing when torch is needed and absent.
    """
    source = _opened(
        model, module=module, weights=weights, trust=trust, example_inputs=example_inputs, fix=fix
    )  # fmt: skip
    return _without_normalisations(source)


def _opened(
    model: str | Path | nn.Module | None,
    *,
    module: str | None,
    weights: str | Path | None,
    trust: bool,
    example_inputs: tuple[Any, ...] | None,
    fix: Fixed,
) -> Source:
    """The model as its file or module has it."""
    if fix and not (isinstance(model, str | Path) and Path(model).suffix.lower() == ".onnx"):
        raise BadInput("--fix is for the inputs of an .onnx file.", "Leave it out.")
    if module is not None:
        if model is not None:
            raise BadInput(f"Both a model ({model}) and --module {module} were given.", "Give one of them.")
        return _from_factory(module, Path(weights) if weights else None, trust)
    if weights is not None:
        raise BadInput(f"--weights {weights} without --module.", "Weights need a program: --module pkg.file:factory.")
    if model is None:
        raise BadInput(
            "No model given.", "Give a Hugging Face directory, an .onnx or .tflite file, or --module pkg.file:factory."
        )
    if not isinstance(model, str | Path):
        if example_inputs is None:
            raise BadInput("A torch module needs example_inputs, from which its graph is traced.")
        return _captured(model, example_inputs)
    path = Path(model)
    if not path.exists():
        raise BadInput(f"{path}: no such file or directory.", _hub_hint(str(model)))
    if path.is_dir():
        if (path / INDEX).is_file():
            raise BadInput(f"{path} is a compressed model already.", "Give the float model it was made from.")
        if (path / "saved_model.pb").is_file():
            raise _tensorflow(path, *SAVED_MODEL)
        from octavo.sources.huggingface import open_huggingface

        return open_huggingface(path)
    if path.suffix in (".pt", ".pth", ".pt2"):
        return _from_pickle(path, trust)
    if path.suffix.lower() == ".onnx":
        require_torch()
        from octavo.sources.onnx.fix import parse_fix
        from octavo.sources.onnx.open import open_onnx

        return open_onnx(path, parse_fix(fix))
    if path.suffix.lower() == ".tflite":
        require_torch()
        from octavo.sources.tflite.open import open_tflite

        return open_tflite(path)
    if path.suffix in REFUSED_KINDS:
        raise _tensorflow(path, *REFUSED_KINDS[path.suffix])
    raise BadInput(
        f"{path}: not a float model that Octavo folds.",
        f"Give {GIVE} --weights W.safetensors.",
    )


def _without_normalisations(source: Source) -> Source:
    """A graph whose batch normalisations are in the weights before them; any other source as it is."""
    from octavo.sources.graph import GraphSource

    if not isinstance(source, GraphSource) or not any("batch_norm" in name for name in targets(source.program)):
        return source
    from octavo.compress.batchnorm import fold_batchnorm
    from octavo.sources.torch import describe, rebuild

    program, described = describe(fold_batchnorm(rebuild(source.program, source.arrays)))
    return replace(
        source,
        program=program,
        tensors={name: TensorSpec(values.shape, role) for name, values, role in described},
        arrays={name: values for name, values, _ in described},
        notes=(*source.notes, "batch normalisations folded into the layers before them"),
    )


def targets(program: Program) -> set[str]:
    """The operators that a graph calls, by their names in torch."""
    return {node["target"] for node in program.body["exported"]["graph_module"]["graph"]["nodes"]}


def require_torch() -> None:
    """Raises Missing when torch is not installed."""
    try:
        import_module("torch")
    except ImportError as error:
        raise Missing(f"This step needs torch, which is not installed ({error}).", TORCH_HINT) from error


def _captured(module: Any, example_inputs: tuple[Any, ...]) -> Source:
    require_torch()
    from octavo.sources.graph import open_module

    return open_module(module, example_inputs)


def _from_factory(target: str, weights: Path | None, trust: bool) -> Source:
    """Import pkg.file, call the factory, load the weights: the file is run, which --module asks for."""
    require_torch()
    from octavo.sources.graph import load_weights

    module, example_inputs = call_factory(target)
    if weights is not None:
        with _as_safetensors(weights, trust) as path:
            load_weights(module, path)
    return _captured(module, example_inputs)


@contextmanager
def _as_safetensors(weights: Path, trust: bool) -> Iterator[Path]:
    """The weights themselves, or what a trusted .pt or .pth was converted to in a worker."""
    if weights.suffix not in (".pt", ".pth"):
        yield weights
        return
    _check_trust(weights, trust)
    from octavo.workers.local import Worker

    with Worker() as worker, tempfile.TemporaryDirectory(prefix="octavo-") as directory:
        params = {"path": str(weights.resolve()), "directory": directory, "trust": True}
        yield Path(worker.call("octavo.sources.trusted:convert", params, timeout=600).result["weights"])


def call_factory(target: str) -> tuple[Any, tuple[Any, ...]]:
    """Call `pkg.file:factory`; it returns (module, example_inputs). Raises BadInput when it does not."""
    import sys

    name, _, attribute = target.partition(":")
    if not attribute:
        raise BadInput(f"--module {target}: expected pkg.file:factory.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        made = getattr(import_module(name), attribute)()
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"--module {target}: {error}.", "Is the current directory the one it is imported from?"
        ) from error
    except Exception as error:  # the user's own code, of which anything may come
        raise BadInput(
            f"--module {target}: {type(error).__name__}: {error}.", "See where it comes from with --debug."
        ) from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], tuple)):
        raise BadInput(
            f"--module {target}: returned {type(made).__name__}, expected (module, example_inputs).",
            "Return the nn.Module and a tuple of example tensors.",
        )
    return made


def _check_trust(path: Path, trust: bool) -> None:
    if not trust:
        raise BadInput(
            f"{path}: a {path.suffix} file can run code when it is opened.",
            "If you trust it, add --trust: it is then opened in a process of its own. Safer: save safetensors and use "
            "--module pkg.file:factory --weights W.safetensors.",
        )


def _from_pickle(path: Path, trust: bool) -> Source:
    _check_trust(path, trust)
    require_torch()
    from octavo.sources.graph import open_trusted
    from octavo.workers.local import Worker

    with Worker() as worker:
        return open_trusted(path, worker)


def _tensorflow(path: Path, what: str, converter: str) -> BadInput:
    """The refusal of a TensorFlow model, with the command that makes a float .tflite of it."""
    target = str(path.with_suffix(".tflite"))
    convert = f"tf.lite.TFLiteConverter.{converter.format(path=str(path))}.convert()"
    code = f"import tensorflow as tf; open({target!r}, 'wb').write({convert})"
    return BadInput(
        f"{path}: a {what} model of TensorFlow, which Octavo does not open.",
        f"Make a float .tflite of it: python -c {shlex.quote(code)}",
    )


def _hub_hint(name: str) -> str:
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return f"If {name} is a model of the hub, download it first: `hf download {name} --local-dir DIR`."
    return "Check the path."
