"""Which GGUF tensor each Hugging Face tensor becomes, and which exact moves its rows make on the way.

A move is one word, written into the manifest and undone by the reader:

    interleave=H    the rows of H heads go from halves (x0 … x15 | x16 … x31, Hugging Face's RoPE) to pairs
                    (x0 x16 x1 x17 …, the RoPE of llama.cpp's llama and smollm3)
    repeat_scale    a scale that covered more weights is repeated per block of the file's type
    widen           narrower codes in wider fields; narrower floats in F32
    plus_one        Gemma multiplies by 1 + w; the file holds fp32(w + 1)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import DecoderSpec
from octavo.core.model import TensorRecord
from octavo.core.scheme import SCHEMES
from octavo.errors import Refused
from octavo.runtimes.llama.blocks import BLOCKS

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "smollm3": "smollm3",
}
PAIRED_ROPE = ("llama", "smollm3")
BIASES = {  # those that llama.cpp adds; a file with any other does not load
    "llama": ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "qwen2": ("attn_q", "attn_k", "attn_v"),
}


def gguf_name(spec: DecoderSpec, name: str) -> str:
    """The tensor's name in the file. Raises Refused when llama.cpp's architecture has no place for it."""
    architecture = ARCHITECTURES[spec.family]
    found: str | None = _name_map(architecture, spec.layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if found and found.endswith(".bias") and found.split(".")[-2] not in BIASES.get(architecture, ()):
        found = None
    if found is None:
        raise Refused(
            f"{name}: llama.cpp's '{architecture}' architecture has no such tensor.",
            "Export this model to another runtime.",
        )
    return found


@cache
def _name_map(architecture: str, layers: int) -> Any:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    return get_tensor_name_map(arch, layers)


def moves(spec: DecoderSpec, record: TensorRecord, stored_as: str) -> tuple[str, ...]:
    """The exact moves that a tensor makes into the file, in order."""
    made: list[str] = []
    part = record.name.rsplit(".", 2)[-2]
    if ARCHITECTURES[spec.family] in PAIRED_ROPE and part in ("q_proj", "k_proj"):
        made.append(f"interleave={spec.heads if part == 'q_proj' else spec.kv_heads}")
    if spec.norm_offset and part.endswith("norm"):
        made.append("plus_one")
    if record.quantized:
        scheme, block = SCHEMES[record.scheme], BLOCKS[stored_as]
        if scheme.block(record.shape) != (1, block.weights):
            made.append("repeat_scale")
        if scheme.range is not None and scheme.range.bits != block.range.bits:
            made.append("widen")
    elif stored_as == "F32" and record.scheme != "fp32":
        made.append("widen")
    return tuple(made)


def heads_interleaved(made: tuple[str, ...]) -> int:
    """How many heads the `interleave` move names; 0 without one."""
    return next((int(move.partition("=")[2]) for move in made if move.startswith("interleave=")), 0)


def interleaved_rows(rows: int, heads: int) -> NDArray[np.int64]:
    """Which source row lies at each row of the file: index [rows]; `np.argsort` of it undoes the move."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
