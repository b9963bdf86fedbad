"""Small Llama-shaped GGUFs that measure llama.cpp rather than a model: random weights, no tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.runtimes.base import Arrays

OPERATORS = 21  # that compute, per layer of llama.cpp's graph of a Llama without flash attention
HEAD = 64
VOCABULARY = 64
BLOCKS = {"Q8_0": 34, "Q4_0": 18}  # bytes per 32 weights, the first two an fp16 scale (ggml-common.h)


def write_chain(path: Path, length: int) -> Arrays:
    """Write `length` layers of one head, 64 wide; returns a prompt of one token."""
    write_decoder(path, length, HEAD, HEAD)
    return {"ids": np.ones((1, 1), np.int64)}


def write_decoder(path: Path, layers: int, width: int, inner: int, number: str = "F32") -> int:
    """Write a Llama of `layers`, `width` and `inner` (the MLP's) with matrices in F32, Q8_0 or Q4_0.

    Returns the weights that one token is multiplied with, the head left out.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(width // HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    rng = np.random.default_rng(0)
    shapes = {f"attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    for layer in range(layers):
        for name, shape in shapes.items():
            _add(writer, f"blk.{layer}.{name}.weight", shape, number, rng)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((VOCABULARY, width)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return layers * sum(rows * columns for rows, columns in shapes.values())


def _add(writer: object, name: str, shape: tuple[int, int], number: str, rng: np.random.Generator) -> None:
    import gguf

    assert isinstance(writer, gguf.GGUFWriter)
    if number == "F32":
        writer.add_tensor(name, (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32))
        return
    rows, columns = shape
    blocks: NDArray[np.uint8] = rng.integers(0, 256, (rows, columns // 32, BLOCKS[number]), np.uint8)
    blocks[:, :, :2] = np.array([2.0**-10], "<f2").view(np.uint8)
    writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType[number])
