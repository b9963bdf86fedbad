"""A Hugging Face directory: config.json, one or more .safetensors, a tokenizer. Read in row blocks; no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import DecoderSpec, TensorSpec, decoder_spec, read_config
from octavo.core.model import Program, State
from octavo.core.safetensors import SafetensorsFile, widen
from octavo.errors import BadInput, nearest

FLOAT_SCHEMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
INDEX = "model.safetensors.index.json"
ASSETS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class HuggingFaceSource:
    """A causal language model as it arrives. `tensors` holds, by name, what the architecture says must be there."""

    directory: Path
    program: Program
    spec: DecoderSpec
    tensors: dict[str, TensorSpec]
    assets: dict[str, bytes]
    files: dict[str, SafetensorsFile]

    @property
    def state(self) -> tuple[State, ...]:
        """The KV cache: keys and values of each layer, [1, key/value heads, positions so far, head size]."""
        shape = (1, self.spec.kv_heads, -1, self.spec.head_dim)
        names = [f"past_key_values.{layer}.{part}" for layer in range(self.spec.layers) for part in ("key", "value")]
        return tuple(State(name, shape, "fp32") for name in names)

    def dtype(self, name: str) -> str:
        """The float type a tensor is stored in: fp32, fp16 or bf16."""
        return FLOAT_SCHEMES[self.files[name].entries[name].dtype]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows as stored: float32, float16, or bfloat16 as its bits in uint16."""
        return self.files[name].rows(name, start, stop)

    def floats(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows as float32."""
        return widen(self.rows(name, start, stop), self.files[name].entries[name].dtype)

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def open_huggingface(directory: Path) -> HuggingFaceSource:
    """Open a model directory.

    Raises BadInput when the config is missing, of an unknown family or contradicts the shapes in the files, when
    tensors are missing or unknown, or when a file is damaged; the message names them.
    """
    config = read_config(directory / "config.json")
    spec = decoder_spec(config)
    files = _open_files(directory)
    expected = spec.tensors()
    _check_names(directory, set(files), expected, spec)
    for name, tensor in expected.items():
        entry = files[name].entries[name]
        if entry.shape != tensor.shape:
            raise BadInput(
                f"{files[name].path.name}: {name} is {list(entry.shape)}, but config.json says {list(tensor.shape)}.",
                "The config belongs to another model, or the file does.",
            )
        if entry.dtype not in FLOAT_SCHEMES:
            raise BadInput(
                f"{files[name].path.name}: {name} has dtype {entry.dtype}; Octavo folds {', '.join(FLOAT_SCHEMES)}.",
                "Save it as float32."
                if entry.dtype == "F64"
                else "Give the original model: one that is quantised already cannot be folded again.",
            )
    assets = {name: (directory / name).read_bytes() for name in ASSETS if (directory / name).is_file()}
    source = HuggingFaceSource(directory, Program("huggingface", config), spec, expected, assets, files)
    if spec.tied and HEAD in files:
        _check_tied(source)
    return source


def _open_files(directory: Path) -> dict[str, SafetensorsFile]:
    """Every tensor's open file by tensor name; shards through their index, so that a missing shard is named."""
    index = directory / INDEX
    if index.is_file():
        try:
            paths = sorted({directory / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"{index}: damaged ({type(error).__name__}: {error}).") from error
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise BadInput(f"{directory}: {len(missing)} of {len(paths)} shards missing: {', '.join(missing)}.")
    else:
        paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"{pickles[0]} is a pickle and is not opened; save it as safetensors" if pickles else "Download it again"
        raise BadInput(f"{directory}: no .safetensors file.", f"{hint}.")
    found: dict[str, SafetensorsFile] = {}
    for path in paths:
        file = SafetensorsFile(path)
        for name in file.entries:
            if name in found:
                raise BadInput(f"{name} stands in both {found[name].path.name} and {path.name}.")
            found[name] = file
    return found


def _check_names(directory: Path, found: set[str], expected: dict[str, TensorSpec], spec: DecoderSpec) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        extra = sorted(found - set(expected))
        hint = nearest(missing[0], extra) if extra else "The download is not complete."
        raise BadInput(f"{directory}: {len(missing)} tensors missing, first {missing[0]}.", hint)
    allowed = {HEAD} if spec.tied else set()
    unknown = sorted(name for name in found - set(expected) - allowed if not name.endswith(".rotary_emb.inv_freq"))
    if unknown:
        raise BadInput(
            f"{directory}: {len(unknown)} tensors that a {spec.family} does not have, first {unknown[0]}.",
            nearest(unknown[0], expected),
        )


def _check_tied(source: HuggingFaceSource) -> None:
    """A tied model may store its head as well, but then it must be the embedding."""
    step = max(1, (8 << 20) // source.spec.hidden_size)
    for start in range(0, source.spec.vocab_size, step):
        head, embedding = (source.floats(name, start, start + step) for name in (HEAD, EMBEDDING))
        if not np.array_equal(head, embedding):
            raise BadInput(
                f"{source.directory}: config.json ties {HEAD} to {EMBEDDING}, but they differ from row {start} on.",
                'Set "tie_word_embeddings": false if the head is meant to be its own.',
            )
