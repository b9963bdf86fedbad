"""Models and devices for tests of the planner: public config values, and a device whose every figure is given."""

from __future__ import annotations

from typing import Any

from octavo.core.facts import EdgeFacts, ModelFacts, OperatorFacts, WeightFacts
from octavo.core.quantity import Kind, Quantity
from octavo.plan.device import Device, Unit
from octavo.sources.facts.huggingface import huggingface_facts

# config.json of meta-llama/Llama-3.2-3B and meta-llama/Llama-3.1-8B, as published
_LLAMA_3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "max_position_embeddings": 131072,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}  # fmt: skip
_ROPE: dict[str, Any] = {
    "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
LLAMA_3B: dict[str, Any] = _LLAMA_3 | {
    "head_dim": 128, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
    "num_hidden_layers": 28, "tie_word_embeddings": True, "rope_scaling": _ROPE | {"factor": 32.0},
}  # fmt: skip
LLAMA_8B: dict[str, Any] = _LLAMA_3 | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
    "tie_word_embeddings": False, "rope_scaling": _ROPE | {"factor": 8.0},
}  # fmt: skip
SMALL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip


def llama(config: dict[str, Any], **changes: Any) -> ModelFacts:
    return huggingface_facts(config | changes, "llama")


def network(channels: int = 32, size: int = 56) -> ModelFacts:
    """Two convolutions and a classifier, of which every number can be worked out by hand."""
    weights = (
        WeightFacts("a.weight", (channels, 3, 3, 3), "conv", "fp32", channels * 27 * 4),
        WeightFacts("a.bias", (channels,), "other", "fp32", channels * 4),
        WeightFacts("b.weight", (channels, channels, 3, 3), "conv", "fp32", channels * channels * 9 * 4),
        WeightFacts("fc.weight", (10, channels), "matmul", "fp32", 10 * channels * 4),
    )
    edges = (
        EdgeFacts("x", (1, 3, size, size), 4.0),
        EdgeFacts("a", (1, channels, size, size), 4.0),
        EdgeFacts("b", (1, channels, size, size), 4.0),
        EdgeFacts("p", (1, channels), 4.0),
        EdgeFacts("y", (1, 10), 4.0),
    )
    area = size * size
    operators = (
        OperatorFacts("a", "Conv", "conv", channels * 27 * area, ("a.weight", "a.bias"), ("x",), ("a",)),
        OperatorFacts("b", "Conv", "conv", channels * channels * 9 * area, ("b.weight",), ("a",), ("b",)),
        OperatorFacts("pool", "GlobalAveragePool", "pool", 0, (), ("b",), ("p",)),
        OperatorFacts("fc", "Gemm", "matmul", 10 * channels, ("fc.weight",), ("p",), ("y",)),
    )
    count = sum(weight.parameters for weight in weights)
    return ModelFacts("net", "network", count, count, weights, operators, edges, ("x",), ("y",))


def known(value: float, unit: str, low: float | None = None, high: float | None = None) -> Quantity:
    return Quantity(value, unit, Kind.DATASHEET, low, high, source="test", date="2026-11-22")


def device(**changes: Any) -> Device:
    """A phone with a CPU, a GPU and an NPU; every figure is known and none has an interval."""
    rates = {"fp32": known(50e9, "op/s"), "fp16": known(100e9, "op/s"), "int8": known(200e9, "op/s")}
    joules = {"fp32": known(10e-12, "J/op"), "fp16": known(5e-12, "J/op"), "int8": known(2e-12, "J/op")}
    every = {"litert": "XNNPACK", "onnxruntime": "CPU", "llamacpp": "CPU"}
    fields: dict[str, Any] = {
        "name": "test-phone", "title": "Test Phone", "year": 2026, "kind": "phone", "soc": "", "aliases": (),
        "ram": known(8e9, "B"), "slice_bytes": known(4e9, "B"), "bandwidth": known(50e9, "B/s"),
        "dram_energy": known(40e-12, "J/B"), "battery": known(15.0, "Wh"), "sustained_power": known(3.0, "W"),
        "peak_power": known(9.0, "W"), "thermal_tau": known(100.0, "s"),
        "units": (
            Unit("cpu", "Cores", rates, joules, every, ("fp32", "fp16", "int8")),
            Unit("gpu", "Shaders", rates, joules, {"litert": "GPU"}, ("fp32", "fp16")),
            Unit("npu", "Matrix", rates, joules, {"litert": "NPU", "qnn": "QNN"}, ("fp16", "int8")),
        ),
        "cliff": "", "runtime_memory": {name: known(20e6, "B") for name in (*every, "qnn")},
    }  # fmt: skip
    return Device(**fields | changes)
