"""Facts of a GGUF file, from its header: metadata, tensors with their types and exact bytes. No tensor is read.

The header is walked here because gguf-py's reader makes an object of every token of the vocabulary (seconds for 128k).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from octavo.core.architecture import Role
from octavo.core.decoder_facts import decoder_facts
from octavo.core.decoder_shape import DecoderShape, Experts
from octavo.core.facts import ModelFacts, WeightFacts
from octavo.errors import BadInput

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
KEPT_ARRAY = 4096  # longer arrays are vocabularies: their length is enough
MAX_AXES = 8
FLOATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}
EVERY_NTH_FULL = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4}  # llama.cpp's code
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
NOT_PARAMETERS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
NAMES = {  # llama's names → GGUF's, within a layer
    "input_layernorm": "attn_norm", "self_attn.qkv_proj": "attn_qkv", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
ENDS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.embed_positions": "position_embd", "model.embed_norm": "token_embd_norm",
}  # fmt: skip


def gguf_facts(path: Path) -> ModelFacts:
    """Facts of a GGUF, all its shards together.

    Raises BadInput when it is cut short, damaged, of an unknown tensor type, or a shard is missing. A file that is no
    decoder gives its weights only, and says so.
    """
    metadata, stored = _read(path)
    for shard in _others(path, metadata):
        stored |= _read(shard)[1]
    architecture = str(metadata.get("general.architecture", "?"))
    origin = f"the header of {path.name} ({architecture}, {len(stored)} tensors)"
    weights = {name: weight for name, weight in stored.items() if name not in NOT_PARAMETERS}
    try:
        shape, missing = _decoder(architecture, metadata, weights)
    except KeyError as error:
        return _weights_only(path.stem, weights, f"'{architecture}' is no decoder Octavo knows (no {error})", origin)
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise BadInput(f"{path}: its metadata makes no sense ({type(error).__name__}: {error}).") from error
    facts = decoder_facts(
        shape, path.stem, weights=weights, naming=_naming(shape), missing=missing, origin=origin
    )  # fmt: skip
    return replace(facts, weights=tuple(stored.values()))


def _weights_only(name: str, weights: dict[str, WeightFacts], why: str, origin: str) -> ModelFacts:
    parameters = sum(weight.parameters for weight in weights.values())
    missing = (f"{why}: its weights are known, its operators and activations are not.",)
    return ModelFacts(name, "size", parameters, parameters, tuple(weights.values()), missing=missing, origin=origin)


def _decoder(
    architecture: str, metadata: dict[str, Any], weights: dict[str, WeightFacts]
) -> tuple[DecoderShape, tuple[str, ...]]:
    """The shape that metadata and tensor names tell. Raises KeyError for a key that every decoder has."""

    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"{architecture}.{key}", default)
        if found is None:
            raise KeyError(f"{architecture}.{key}")
        return found

    def has(name: str) -> bool:
        return f"blk.0.{name}" in weights

    missing: list[str] = []
    layers, hidden = int(value("block_count")), int(value("embedding_length"))
    heads = _uniform(value("attention.head_count"), "heads", missing)
    kv_heads = _uniform(value("attention.head_count_kv", heads), "key/value heads", missing)
    if min(layers, hidden, heads, kv_heads) < 1 or layers > len(weights):
        raise BadInput(f"GGUF: {layers} layers of width {hidden} with {heads} heads, {kv_heads} of them key/value, "
                       f"in {len(weights)} tensors.")  # fmt: skip
    head_dim = int(value("attention.key_length", hidden // heads))
    if "token_embd.weight" not in weights:
        raise KeyError("token_embd.weight")
    if metadata.get(f"{architecture}.attention.kv_lora_rank"):
        missing.append("Latent attention: the cache is planned as if keys and values were kept whole.")
    context = int(value("context_length", 0))
    if not context:
        missing.append("The file states no context limit.")
    fused = has("attn_qkv.weight")
    shape = DecoderShape(
        family=architecture,
        vocab_size=weights["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=_uniform(value("feed_forward_length", 4 * hidden), "feed-forward widths", missing),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        tied="output.weight" not in weights,
        windows=_windows(architecture, metadata, layers),
        caches=(True,) * layers,
        gated=has("ffn_gate.weight") or has("ffn_gate_exps.weight") or architecture == "phi3",
        fused=fused,
        qkv_bias=has("attn_qkv.bias" if fused else "attn_q.bias"),
        output_bias=has("attn_output.bias"),
        mlp_bias=has("ffn_down.bias"),
        norm_bias=has("attn_norm.bias"),
        norms=4 if has("post_ffw_norm.weight") else 2 if has("ffn_norm.weight") else 1,
        qk_norm="head" if has("attn_q_norm.weight") else "",
        positions=weights["position_embd.weight"].shape[0] if "position_embd.weight" in weights else 0,
        embedding_norm="token_embd_norm.weight" in weights,
        rope="position_embd.weight" not in weights,
        embedding_scaled=architecture.startswith("gemma"),
        softcapped=bool(metadata.get(f"{architecture}.final_logit_softcapping")),
        experts=_experts(architecture, metadata, weights, layers),
    )
    return shape, tuple(missing)


def _experts(
    architecture: str, metadata: dict[str, Any], weights: dict[str, WeightFacts], layers: int
) -> Experts | None:
    count = int(metadata.get(f"{architecture}.expert_count") or 0)
    used = int(metadata.get(f"{architecture}.expert_used_count") or 0)
    if not count or not used:
        return None
    has = tuple(f"blk.{layer}.ffn_up_exps.weight" in weights for layer in range(layers))
    first = has.index(True) if any(has) else 0
    rows = weights[f"blk.{first}.ffn_up_exps.weight"].shape[0] // count if any(has) else 1
    shared = weights.get(f"blk.{first}.ffn_up_shexp.weight")
    gate = f"blk.{first}.ffn_gate_inp_shexp.weight" in weights
    return Experts(count, used, rows, has, shared.shape[0] if shared else 0, gate)


def _windows(architecture: str, metadata: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    """llama.cpp's sliding layers: every n-th is full; architectures for which it has no such code keep everything."""
    window = metadata.get(f"{architecture}.attention.sliding_window")
    nth = EVERY_NTH_FULL.get(architecture)
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if not window or nth is None:
        return (None,) * layers
    if isinstance(pattern, list) and len(pattern) == layers:
        return tuple(int(window) if slides else None for slides in pattern)
    nth = pattern if isinstance(pattern, int) and pattern > 0 else nth
    return tuple(int(window) if layer % nth < nth - 1 else None for layer in range(layers))


def _uniform(value: Any, what: str, missing: list[str]) -> int:
    """One number for all layers; where they differ, the largest, and that is said."""
    if not isinstance(value, list):
        return int(value)
    if len(set(value)) > 1:
        missing.append(f"Layers have {min(value)} to {max(value)} {what}; planned with the most.")
    return int(max(value, default=0))


def _naming(shape: DecoderShape) -> Any:
    within = NAMES | (FOUR_NORMS if shape.norms == 4 else {})

    def name(key: str) -> str:
        stem, _, suffix = key.rpartition(".")
        if stem in ENDS:
            return f"{ENDS[stem]}.{suffix}"
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{within.get(part, part)}.{suffix}"

    return name


def _others(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """The further shards of a split file."""
    count, found = int(metadata.get("split.count") or 1), SHARD.search(path.name)
    if count < 2 or not found:
        return []
    stem = path.name[: found.start()]
    paths = [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    absent = [other.name for other in paths if not other.is_file()]
    if absent:
        raise BadInput(f"{path}: {len(absent)} of {count} shards missing: {', '.join(absent)}.")
    return [other for other in paths if other.name != path.name]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, WeightFacts]]:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data).read()
    except (OSError, ValueError, struct.error, KeyError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise BadInput(
            f"{path}: not a GGUF, or its header is damaged ({type(error).__name__}: {error}).", "Download it again."
        ) from error


class _Header:
    """Walks a header; every count is bounded by the file's size before it is believed."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.order = data, 0, "<"

    def read(self) -> tuple[dict[str, Any], dict[str, WeightFacts]]:
        if self.data[:4] != b"GGUF":
            raise ValueError(f"it begins with {self.data[:4]!r}")
        if int.from_bytes(self.data[4:8], "little") & 0xFFFF == 0:
            self.order = ">"
        self.at = 4
        version = self.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are known")
        tensors, keys = self.count(24), self.count(12)
        metadata = {}
        for _ in range(keys):
            key = self.text()
            metadata[key] = self.value(self.scalar("I"))
        infos = [self.tensor() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", 32)) or 32
        base = -(-self.at // alignment) * alignment
        end = max((base + offset + weight.stored_bytes for weight, offset in infos), default=0)
        if end > len(self.data):
            raise ValueError(f"its tensors end at byte {end}, the file at {len(self.data)}")
        return metadata, {weight.name: weight for weight, _ in infos}

    def tensor(self) -> tuple[WeightFacts, int]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, axes = self.text(), self.scalar("I")
        if axes > MAX_AXES:
            raise ValueError(f"{name} has {axes} axes")
        sizes = [self.scalar("Q") for _ in range(axes)]
        kind, offset = GGMLQuantizationType(self.scalar("I")), self.scalar("Q")
        block, size = GGML_QUANT_SIZES[kind]
        elements = prod(sizes)
        if elements % block:
            raise ValueError(f"{name} {sizes[::-1]} is not whole blocks of {block}")
        shape = tuple(reversed(sizes))
        shape = shape if len(shape) < 3 else (prod(shape[:-1]), shape[-1])  # experts, stacked along their rows
        stored = FLOATS.get(kind.name, kind.name.lower())
        return WeightFacts(name, shape, _role(name, shape), stored, elements // block * size), offset

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(self.order + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def count(self, least: int) -> int:
        """A number of things of which each takes `least` bytes at the least."""
        value: int = self.scalar("Q")
        if value * least > len(self.data) - self.at:
            raise ValueError(f"{value} items cannot lie in the {len(self.data) - self.at} bytes left")
        return value

    def text(self) -> str:
        length = self.count(1)
        value = self.data[self.at : self.at + length].decode("utf-8", "replace")
        self.at += length
        return value

    def skip_texts(self, length: int) -> int:
        """Walk past a vocabulary, which may be half a million strings: nothing here but the additions."""
        unpack, data, at, end = struct.Struct(f"{self.order}Q").unpack_from, self.data, self.at, len(self.data)
        for _ in range(length):
            at += unpack(data, at)[0] + 8
            if at > end:
                raise ValueError(f"a string ends at byte {at}, the file at {end}")
        self.at = at
        return length

    def value(self, kind: int) -> Any:
        """A scalar or string; an array as a list, a long one as None, a long list of strings as its length."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        of = self.scalar("I")
        if of == STRING:
            return self.skip_texts(self.count(8))
        if of == ARRAY:
            return [self.value(ARRAY) for _ in range(self.count(12))]
        size = struct.calcsize(SCALARS[of])
        length = self.count(size)
        start, self.at = self.at, self.at + length * size
        if length > KEPT_ARRAY:
            return None
        return list(struct.unpack_from(f"{self.order}{length}{SCALARS[of]}", self.data, start))


def _role(name: str, shape: tuple[int, ...]) -> Role:
    if name in ("token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    if name == "output.weight":
        return "head"
    return "matmul" if len(shape) == 2 and name.startswith("blk.") else "other"
