"""A GGUF of a small Llama written with nothing but gguf-py: these tests must not lean on Octavo's own writer."""

import json
from pathlib import Path

import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(source: Path, path: Path, tokenizer: bool = True) -> None:
    """Write a Hugging Face Llama directory with a SentencePiece-like tokenizer.json as F32 GGUF."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    if tokenizer:
        add_tokenizer(writer, json.loads((source / "tokenizer.json").read_text())["model"])
    else:
        writer.add_tokenizer_model("none")
    for name, array in load_file(source / "model.safetensors").items():
        layer = name.split(".")
        kind = ".".join(layer[3:-1])
        if kind.endswith(("q_proj", "k_proj")):  # llama.cpp rotates neighbours, transformers halves
            array = interleave(array, heads if kind.endswith("q_proj") else kv_heads)
        top = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}.get(name)
        writer.add_tensor(f"{top or f'blk.{layer[2]}.{NAMES[kind]}'}.weight", np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(array: np.ndarray, heads: int) -> np.ndarray:
    return array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)


def add_tokenizer(writer, model) -> None:
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    ranks = {
        "".join(merge.split(" ") if isinstance(merge, str) else merge): i for i, merge in enumerate(model["merges"])
    }
    special = {"<unk>": 2, "<s>": 3, "</s>": 3}
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(ranks.get(token, 1e6)) for token in tokens])
    writer.add_token_types([special.get(token, 6 if token.startswith("<0x") else 1) for token in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
