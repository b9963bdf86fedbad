"""Compressed models made in memory, for tests: from arrays, from a Hugging Face directory, or with random codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import Role, decoder_spec
from octavo.core.grid import portable_scale
from octavo.core.model import CompressedModel, Program, TensorRecord, TensorValue
from octavo.core.safetensors import SafetensorsFile
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor, float_digest

Floats = NDArray[np.float32]


class MemoryReader:
    """Serves rows of tensors that are held in memory."""

    def __init__(self, values: dict[str, TensorValue]) -> None:
        self.values = values

    def tensor(self, record: TensorRecord, start: int = 0, stop: int | None = None) -> TensorValue:
        value = self.values[record.name]
        if not isinstance(value, QuantizedTensor):
            return value[start:stop]
        codes = value.codes[start:stop]
        scheme = SCHEMES[record.scheme]
        scale = value.scale if scheme.granularity == "tensor" else value.scale[start:stop]
        return QuantizedTensor(codes, scale, scheme.block(codes.shape), value.range)


def model_of(
    config: dict[str, Any],
    values: dict[str, TensorValue],
    *,
    float_type: str = "fp32",
    schemes: dict[str, str] | None = None,
    assets: dict[str, bytes] | None = None,
) -> CompressedModel:
    """A CompressedModel of `config` with these tensors; `schemes`: {name: scheme} for the quantised ones."""
    roles: dict[str, Role] = {name: spec.role for name, spec in decoder_spec(config).tensors().items()}
    records = []
    for name, value in values.items():
        quantized = isinstance(value, QuantizedTensor)
        scheme = (schemes or {})[name] if quantized else float_type
        digest = value.digest() if isinstance(value, QuantizedTensor) else float_digest(value)
        records.append(TensorRecord(name, value.shape, roles.get(name, "other"), scheme, digest))
    program = Program("huggingface", config)
    return CompressedModel(program, tuple(records), MemoryReader(values), assets=assets or {})


def from_directory(directory: Path) -> CompressedModel:
    """The float model of a Hugging Face directory, whole, in fp32."""
    config = json.loads((directory / "config.json").read_text())
    with SafetensorsFile(directory / "model.safetensors") as file:
        held = {name: file.floats(name) for name in file.entries}
    values: dict[str, TensorValue] = {name: held[name] for name in decoder_spec(config).tensors()}
    return model_of(config, values, assets=assets_of(directory))


def assets_of(directory: Path) -> dict[str, bytes]:
    """The tokenizer files of a Hugging Face directory, by name."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def random_codes(shape: tuple[int, ...], scheme: str, seed: int = 0) -> QuantizedTensor:
    """A tensor of random codes over the whole range and random portable scales, an all-zero group among them."""
    rng = np.random.default_rng(seed)
    grid = SCHEMES[scheme]
    assert grid.range is not None
    codes = rng.integers(grid.range.low, grid.range.high + 1, shape, dtype=np.int8)
    codes[0, : grid.group or shape[1]] = 0
    groups = tuple(s // b for s, b in zip(shape, grid.block(shape), strict=True))
    scale = portable_scale(rng.uniform(1e-3, 2e-2, groups).astype(np.float32))
    if grid.native == "llamacpp":  # either sign
        scale = np.where(rng.random(groups) < 0.5, -scale, scale).astype(np.float32)
    return QuantizedTensor(codes, scale, grid.block(shape), grid.range)
