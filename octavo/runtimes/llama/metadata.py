"""What llama.cpp must know beside the tensors: the architecture's numbers under the keys it reads them from.

`check` refuses a config that llama.cpp would compute differently, since its programs fix some choices in code
(src/models/*.cpp); `context` shortens the stated context where a sliding window is not computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import DecoderSpec
from octavo.core.model import TensorRecord
from octavo.errors import Refused
from octavo.runtimes.llama.names import ARCHITECTURES

WINDOWED = ("gemma2", "gemma3")  # the architectures here whose sliding window llama.cpp computes
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models: attention scale from hidden size / heads
SMOLLM3_ROPE_INTERVAL = 4
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32, "TQ2_0": 37}  # llama_ftype


def check(spec: DecoderSpec) -> None:
    """Raise Refused, with what llama.cpp does instead, when it would not compute this config."""
    arch = ARCHITECTURES[spec.family]
    reasons = []
    gemma = arch.startswith("gemma")
    if spec.activation not in (("gelu_pytorch_tanh",) if gemma else ("silu", "swish")):
        reasons.append(f"activation '{spec.activation}' (it has {'tanh GELU' if gemma else 'SiLU'})")
    rope = [arch != "smollm3" or bool((layer + 1) % SMOLLM3_ROPE_INTERVAL) for layer in range(spec.layers)]
    if list(spec.layer_rope) != rope:
        without = [layer for layer, on in enumerate(spec.layer_rope) if not on]
        theirs = "every fourth" if arch == "smollm3" else "none"
        reasons.append(f"layers {without} without RoPE (it leaves it out of {theirs})")
    width = spec.layers == SCALED_BY_WIDTH.get(arch)
    scale = (spec.hidden_size // spec.heads if width else spec.head_dim) ** -0.5
    if not math.isclose(spec.attention_scale, scale, rel_tol=1e-6):
        reasons.append(f"attention scale {spec.attention_scale:g} (it has {scale:g} for this shape)")
    if arch == "gemma2" and not (spec.attention_softcap and spec.final_softcap):
        reasons.append("Gemma 2 without both soft caps (it applies both)")
    if arch == "phi3" and spec.heads * spec.head_dim != spec.hidden_size:
        reasons.append(f"heads·head_dim {spec.heads * spec.head_dim} beside hidden size {spec.hidden_size}")
    if spec.rope_scaling and spec.rope_scaling["rope_type"] == "llama3" and arch != "llama":
        reasons.append("llama3 RoPE scaling (it has that for llama and mistral only)")
    if arch in WINDOWED and spec.sliding_window and swa_period(spec) is None:
        reasons.append(f"sliding layers {list(spec.layer_sliding)} (it has every n-th layer full)")
    if arch == "gemma3" and spec.rope_scaling and not spec.sliding_window:
        reasons.append("RoPE scaling without sliding layers (it scales the full layers only, and wants some to slide)")
    if reasons:
        raise Refused(
            f"config.json: llama.cpp's '{arch}' cannot compute {'; '.join(reasons)}.",
            "Export this model to another runtime.",
        )


def context(spec: DecoderSpec) -> tuple[int, str]:
    """The context length to state, and a note when it is shorter than the model's."""
    window = spec.sliding_window
    arch = ARCHITECTURES[spec.family]
    if window is None or arch in WINDOWED or window >= spec.context:
        return spec.context, ""
    return window, (
        f"llama.cpp's '{arch}' has no sliding window: the file states a context of {window} instead of {spec.context}, "
        "within which full attention is the same."
    )


def swa_period(spec: DecoderSpec) -> int | None:
    """n such that every n-th layer is full and the others slide; None when no n gives these layers."""
    for n in range(1, spec.layers + 2):
        if list(spec.layer_sliding) == [layer % n < n - 1 for layer in range(spec.layers)]:
            return n
    return None


def architecture(spec: DecoderSpec) -> dict[str, Any]:
    """The keys of the architecture; an int is written as uint32, a float as float32."""
    arch = ARCHITECTURES[spec.family]
    found: dict[str, Any] = {
        "context_length": context(spec)[0],
        "embedding_length": spec.hidden_size,
        "block_count": spec.layers,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": float(spec.norm_eps),
        "rope.dimension_count": spec.rotary_dim,
        "rope.freq_base": float(spec.rope_theta),
        "vocab_size": spec.vocab_size,
    }
    if arch in WINDOWED and spec.sliding_window:
        found["attention.sliding_window"] = spec.sliding_window
        found["attention.sliding_window_pattern"] = swa_period(spec)
    elif arch in WINDOWED:  # llama.cpp dies of a file in which no layer slides: some do, over the whole context
        found["attention.sliding_window"] = spec.context
        found["attention.sliding_window_pattern"] = 2
    elif arch == "phi3":
        found["attention.sliding_window"] = spec.sliding_window or 0
    if spec.rope_local_theta is not None:
        found["rope.freq_base_swa"] = float(spec.rope_local_theta if spec.sliding_window else spec.rope_theta)
    if spec.attention_softcap:
        found["attn_logit_softcapping"] = float(spec.attention_softcap)
    if spec.final_softcap:
        found["final_logit_softcapping"] = float(spec.final_softcap)
    if spec.rope_scaling and spec.rope_scaling["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(spec.rope_scaling["factor"])}
    return {f"{arch}.{key}": value for key, value in found.items()}


def rope_factors(spec: DecoderSpec) -> NDArray[np.float32] | None:
    """What each RoPE frequency is divided by (float32 [rotary_dim / 2], the tensor `rope_freqs.weight`), or None.

    Llama 3.1's scaling: long wavelengths by `factor`, short ones by 1, smoothly between (as transformers'
    `_compute_llama3_parameters` and llama.cpp's converter have it).
    """
    if not spec.rope_scaling or spec.rope_scaling["rope_type"] != "llama3":
        return None
    scaling = spec.rope_scaling
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    exponents = np.arange(0, spec.rotary_dim, 2, dtype=np.float32) / np.float32(spec.rotary_dim)
    wavelength = 2 * np.pi * np.float64(spec.rope_theta) ** exponents.astype(np.float64)
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def file_type(stored: dict[str, str], records: tuple[TensorRecord, ...]) -> int:
    """llama_ftype: the type that most of the parameters are stored as. `stored`: {tensor name: type}."""
    totals: dict[str, int] = {}
    for record in records:
        totals[stored[record.name]] = totals.get(stored[record.name], 0) + record.parameters
    return FILE_TYPES[max(totals, key=lambda kind: totals[kind])]
