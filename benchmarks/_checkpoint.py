"""A synthetic bf16 checkpoint shaped like a Llama, written tensor by tensor: never more than a few MiB in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

VOCABULARY = 128_256
SHARD_BYTES = 1 << 30
CHUNK = 1 << 20  # weights written at once


@dataclass(frozen=True)
class Shape:
    """A Llama by its sizes; tied embedding, head dimension 64, a quarter as many key-value heads as heads."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int = VOCABULARY

    def tensors(self) -> dict[str, tuple[int, ...]]:
        keys = self.hidden // 4
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            found[f"{at}.self_attn.q_proj.weight"] = (self.hidden, self.hidden)
            found[f"{at}.self_attn.k_proj.weight"] = (keys, self.hidden)
            found[f"{at}.self_attn.v_proj.weight"] = (keys, self.hidden)
            found[f"{at}.self_attn.o_proj.weight"] = (self.hidden, self.hidden)
            found[f"{at}.mlp.gate_proj.weight"] = (self.intermediate, self.hidden)
            found[f"{at}.mlp.up_proj.weight"] = (self.intermediate, self.hidden)
            found[f"{at}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            found[f"{at}.input_layernorm.weight"] = (self.hidden,)
            found[f"{at}.post_attention_layernorm.weight"] = (self.hidden,)
        return found | {"model.norm.weight": (self.hidden,)}

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 256,
            "head_dim": 64,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": self.vocabulary - 256,
            "eos_token_id": self.vocabulary - 255,
            "torch_dtype": "bfloat16",
        }


# 1B is Llama-3.2-1B's shape (1.24 billion weights, 0.26 of them in the embedding).
SIZES = {"0.25B": Shape(1024, 4096, 8), "0.5B": Shape(2048, 8192, 4), "1B": Shape(2048, 8192, 16)}


def write(folder: Path, shape: Shape, seed: int = 0) -> int:
    """Write config, shards and index into `folder`. Returns the bytes of the shards."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    normal = np.random.default_rng(seed).standard_normal(2 * CHUNK, dtype=np.float32) * np.float32(0.02)
    pool = (normal.view(np.uint32) >> 16).astype("<u2")
    shards = _shards(shape.tensors())
    index: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        index |= dict.fromkeys(tensors, name)
        total += _write_shard(folder / name, tensors, pool)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def _shards(tensors: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in tensors.items():
        if shards[-1] and filled + 2 * prod(shape) > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += 2 * prod(shape)
    return shards


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], pool: np.ndarray) -> int:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            left = prod(shape)
            while left:  # another window of the same random numbers each time
                start = (left * 2654435761) % CHUNK
                count = min(left, CHUNK)
                file.write(pool[start : start + count].data)
                left -= count
    return path.stat().st_size
