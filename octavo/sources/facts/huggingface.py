"""Facts of a Hugging Face model: its config, and the headers of its .safetensors where they are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.core.architecture import Role, TensorSpec, read_config
from octavo.core.decoder_facts import decoder_facts
from octavo.core.facts import ModelFacts, WeightFacts
from octavo.errors import BadInput
from octavo.sources.facts.config import Read, is_decoder, read_decoder

INDEX = "model.safetensors.index.json"
FLOATS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
VISION = ("vision", "visual", "multi_modal", "audio", "mm_", "image_", "patch_merge")


def huggingface_facts(source: Path | Mapping[str, Any], name: str = "") -> ModelFacts:
    """Facts of a model directory, of a config.json by itself, or of a config as a dictionary.

    Raises BadInput when the config is missing, no JSON, has impossible values or is no decoder's (without weights), or
    when a .safetensors is damaged or a shard missing.
    """
    if not isinstance(source, Path):
        return _facts(dict(source), {}, name or "config")
    directory = source if source.is_dir() else source.parent
    config = read_config(source / "config.json" if source.is_dir() else source)
    stored = _headers(directory) if source.is_dir() else {}
    return _facts(config, stored, name or directory.resolve().name)


def _facts(config: dict[str, Any], stored: dict[str, WeightFacts], name: str) -> ModelFacts:
    what = f"config.json and the headers of {len(stored)} tensors" if stored else "config.json without weights"
    if not is_decoder(config):
        return _weights_only(config, stored, name)
    read = read_decoder(config)
    missing = read.missing
    if stored and config.get("quantization_config"):
        total = sum(weight.stored_bytes for weight in stored.values())
        missing += (f"The checkpoint is quantised already ({total:,} bytes); planned from the shapes of its config.",)
        stored = {}
    if not stored:
        missing += ("Stored sizes: the config came without weights.",)
        return decoder_facts(read.spec or read.shape, name, missing=missing, origin=what)
    return _with_headers(read, stored, name, missing, what)


def _with_headers(
    read: Read, stored: dict[str, WeightFacts], name: str, missing: tuple[str, ...], origin: str
) -> ModelFacts:
    """The stored tensors are what there is; the config's shapes say what they do."""
    tensors = (read.spec or read.shape).tensors()
    text = {key: weight for key, weight in stored.items() if not any(word in key for word in VISION)}
    if len(text) < len(stored):
        left = sum(weight.stored_bytes for key, weight in stored.items() if key not in text)
        missing += (f"{len(stored) - len(text)} tensors of other parts, {left:,} bytes, are left out.",)
    if read.shape.tied:
        text = {key: weight for key, weight in text.items() if _canonical(key) != "lm_head.weight"}
    actual = {_canonical(key): key for key in text}
    weights = {key: _role(weight, tensors.get(_canonical(key))) for key, weight in text.items()}
    absent = [key for key in tensors if key not in actual]
    odd = [key for key, spec in tensors.items() if key in actual and text[actual[key]].shape != spec.shape]
    if read.spec and (absent or odd):
        first = (odd or absent)[0]
        found = list(text[actual[first]].shape) if odd else "absent"
        missing += (
            f"The files do not hold what the config says ({len(odd)} tensors of another shape, {len(absent)} absent; "
            f"{first} is {found}, not {list(tensors[first].shape)}).",
        )
    elif absent and (whole := _as_planned(tensors, text)):
        return decoder_facts(read.shape, name, weights=whole, missing=missing, origin=origin)
    elif absent:
        missing += (f"Which operator reads which stored tensor is known for {len(tensors) - len(absent)} of them.",)
    return decoder_facts(
        read.spec or read.shape, name, weights=weights, naming=lambda key: actual.get(key, key), missing=missing,
        origin=origin,
    )  # fmt: skip


def _as_planned(tensors: dict[str, TensorSpec], stored: dict[str, WeightFacts]) -> dict[str, WeightFacts] | None:
    """The tensors under llama's names, where the files hold as many parameters, all of one type: then the same weights
    are only named or cut otherwise (each expert by itself, the queries with the keys), and operators can be told what
    they read."""
    types = {weight.stored for weight in stored.values()}
    planned = {key: WeightFacts(key, spec.shape, spec.role, "".join(types), 0) for key, spec in tensors.items()}
    count, size = (sum(getattr(w, what) for w in stored.values()) for what in ("parameters", "stored_bytes"))
    if len(types) != 1 or count != sum(weight.parameters for weight in planned.values()):
        return None
    return {key: replace(weight, stored_bytes=weight.parameters * size // count) for key, weight in planned.items()}


def _weights_only(config: dict[str, Any], stored: dict[str, WeightFacts], name: str) -> ModelFacts:
    family = str(config.get("model_type", "?"))
    if not stored:
        raise BadInput(
            f"config.json: '{family}' is no decoder-only language model; its config alone does not tell its graph.",
            "Give the .onnx or .tflite of it, the directory with its .safetensors, or a size with --params.",
        )
    weights = tuple(_role(weight, None) for weight in stored.values())
    parameters = sum(weight.parameters for weight in weights)
    return ModelFacts(
        name=name,
        kind="size",
        parameters=parameters,
        active_parameters=parameters,
        weights=weights,
        missing=(f"'{family}' is no decoder: its weights are known, its operators and activations are not.",),
        origin=f"the headers of {len(stored)} tensors",
    )


def _role(weight: WeightFacts, known: TensorSpec | None) -> WeightFacts:
    role: Role
    if known is not None:
        role = known.role
    elif len(weight.shape) < 2:
        role = "other"
    elif any(word in weight.name for word in ("embed", "wte", "wpe")):
        role = "embedding"
    elif "lm_head" in weight.name or "embed_out" in weight.name:
        role = "head"
    else:
        role = "matmul" if len(weight.shape) == 2 else "conv" if "conv" in weight.name else "matmul"
    return WeightFacts(weight.name, weight.shape, role, weight.stored, weight.stored_bytes)


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Causal masks and rotary frequencies that older checkpoints hold beside their parameters."""
    return name.endswith((".rotary_emb.inv_freq", ".masked_bias")) or (name.endswith(".bias") and len(shape) == 4)


def _canonical(name: str) -> str:
    """The name without the wrappings that multimodal and headless checkpoints put around it."""
    name = name.replace("language_model.", "")
    return f"model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.")) else name


def _headers(directory: Path) -> dict[str, WeightFacts]:
    """Every stored tensor by name, in the order of the files; empty when the directory holds no .safetensors."""
    found: dict[str, WeightFacts] = {}
    if not (shards := _shards(directory)):
        return found
    from octavo.core.safetensors import SafetensorsFile  # numpy: a config alone is read without it

    for path in shards:
        with SafetensorsFile(path) as file:
            for name, entry in sorted(file.entries.items(), key=lambda item: item[1].offset):
                if name in found:
                    raise BadInput(f"{name} stands in more than one file of {directory}, last in {path.name}.")
                if not _is_buffer(name, entry.shape):
                    stored = FLOATS.get(entry.dtype, entry.dtype.lower())
                    found[name] = WeightFacts(name, entry.shape, "other", stored, entry.nbytes)
    return found


def _shards(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        paths = sorted({directory / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{index}: damaged ({type(error).__name__}: {error}).") from error
    missing = [path.name for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        return []  # a config with its index, fetched without the weights
    if missing:
        raise BadInput(f"{directory}: {len(missing)} of {len(paths)} shards missing: {', '.join(missing)}.")
    return paths
