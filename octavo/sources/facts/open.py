"""Which reader a model goes to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from octavo.core.facts import ModelFacts
from octavo.errors import BadInput, Missing

TRUSTED = (".pt", ".pth", ".pt2")
Shapes = Mapping[str, tuple[int, ...] | int]


def read_facts(
    model: str | Path | None, params: str | None = None, trust: bool = False, shapes: Shapes | None = None
) -> ModelFacts:
    """Facts of `model`, or of a bare size (`params`, like "7B").

    `shapes`: of an ONNX model's free sizes, {input name: shape} or {dimension name: size}. `trust`: a .pt2 may be
    opened (in a worker: it can run code). Raises BadInput for what cannot be read, saying what to give instead.
    """
    if (model is None) == (params is None):
        raise BadInput("Give a model or --params, one of the two.")
    if params is not None:
        from octavo.sources.facts.params import bare_size

        return bare_size(params)
    path = Path(str(model))
    if not path.exists():
        raise _absent(path)
    return _of_directory(path) if path.is_dir() else _of_file(path, trust, shapes)


def _of_directory(path: Path) -> ModelFacts:
    if (path / "octavo.json").is_file():
        from octavo.sources.facts.compressed import compressed_facts

        return compressed_facts(path)
    if (path / "saved_model.pb").is_file():
        raise BadInput(
            f"{path}: a TensorFlow SavedModel.",
            f"Make a float .tflite of it: python -c \"import tensorflow as tf; open('{path.name}.tflite', 'wb').write("
            f"tf.lite.TFLiteConverter.from_saved_model('{path}').convert())\"",
        )
    if (path / "config.json").is_file():
        from octavo.sources.facts.huggingface import huggingface_facts

        return huggingface_facts(path)
    raise BadInput(f"{path}: neither a config.json nor an octavo.json in it.", "Give a Hugging Face or octavo model.")


def _of_file(path: Path, trust: bool, shapes: Shapes | None) -> ModelFacts:
    suffix = path.suffix.lower()
    if suffix == ".json":
        from octavo.sources.facts.huggingface import huggingface_facts

        return huggingface_facts(path)
    if suffix == ".gguf":
        from octavo.sources.facts.gguf import gguf_facts

        return gguf_facts(path)
    if suffix == ".onnx":
        from octavo.sources.facts.onnx import onnx_facts

        return onnx_facts(path, shapes)
    if suffix == ".tflite":
        from octavo.sources.facts.tflite import tflite_facts

        return tflite_facts(path)
    if suffix in TRUSTED:
        if not trust:
            raise BadInput(f"{path}: opening a {suffix} file can run code that is in it.", "Say --trust if you do.")
        from octavo.sources.facts.pt2 import pt2_facts

        return pt2_facts(path)
    if suffix in (".h5", ".keras"):
        raise BadInput(
            f"{path}: a Keras model.",
            f"Make a float .tflite of it: python -c \"import tensorflow as tf; open('{path.stem}.tflite', 'wb').write("
            f"tf.lite.TFLiteConverter.from_keras_model(tf.keras.models.load_model('{path}')).convert())\"",
        )
    if suffix == ".safetensors":
        raise BadInput(f"{path}: weights without their config.", "Give the directory, with its config.json.")
    raise BadInput(
        f"{path}: '{suffix or path.name}' is no format Octavo plans for.",
        "Give a Hugging Face directory or config.json, .gguf, .onnx, .tflite, .pt2, or a compressed model.",
    )


def _absent(path: Path) -> BadInput | Missing:
    text = str(path)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.suffix:
        return Missing(
            f"{path}: no such file or directory.", "A hub name is not fetched yet: download it and give the folder."
        )
    return BadInput(f"{path}: no such file or directory.", "Check the path, or give a bare size with --params 7B.")
