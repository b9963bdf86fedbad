"""Tiny random language models as Hugging Face writes them: directories made by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(family: str, **changes: Any) -> Any:
    """A transformers config of `family` with SIZES; `changes` are keys of config.json."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **SIZES | changes)


def tiny_model(path: Path, family: str = "llama", *, dtype: str = "float32", shards: int = 1, **changes: Any) -> Path:
    """Save a random model of `family` to `path`, in `shards` files or a few more, and return `path`.

    dtype: float32, float16 or bfloat16. The weights are the same for the same sizes (seed 0), norms are not ones.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, **changes)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    finally:
        torch.random.set_rng_state(state)
    nbytes = sum(value.numel() * value.element_size() for value in model.parameters())
    model.save_pretrained(path, max_shard_size=-(-nbytes // shards) if shards > 1 else "1GB")
    return path


def tiny_llama(path: Path, *, dtype: str = "float32", shards: int = 1, **changes: Any) -> Path:
    """`tiny_model` of the llama family."""
    return tiny_model(path, "llama", dtype=dtype, shards=shards, **changes)


def edit_config(directory: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    """Rewrite keys of config.json."""
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}), "utf-8")


def rewrite(file: Path, change: Any) -> None:
    """Load a .safetensors with the reference library, let `change(tensors)` edit the dictionary, save it again."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
