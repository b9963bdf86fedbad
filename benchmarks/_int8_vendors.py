"""The runtimes' own int8 quantisers, as their documentation says to use them. They run in a worker: each is a target.

`params`: {"model": the float file, "file": where the int8 file goes, "name": the model's input, …}; `arrays`:
{"samples": calibration samples [n, …]}. Nothing here is of Octavo's making but the calls.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Answer = tuple[dict[str, Any], Arrays]
Emit = Callable[[dict[str, Any]], None]


def quantize_static(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """ONNX Runtime's QDQ form on its pre-processed model, weights per channel; types by its guide for x86 with VNNI.

    `params["method"]`: MinMax, Entropy or Percentile; `params["activations"]`: QUInt8 or QInt8."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(params["model"], str(prepared))
        quantize(
            str(prepared), params["file"], _Reader(params["name"], arrays["samples"]), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=QuantType[params["activations"]], weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[params["method"]],
        )  # fmt: skip
    return {}, {}


def ai_edge_quantizer(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """ai-edge-quantizer's recipe static_wi8_ai8 on a float .tflite."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    signatures = Interpreter(model_path=params["model"]).get_signature_list()
    key = next(iter(signatures))
    name = signatures[key]["inputs"][0]
    made = quantizer.Quantizer(params["model"])
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    ranges = made.calibrate({key: [{name: sample[None]} for sample in arrays["samples"]]}, num_threads=1)
    made.quantize(ranges, enable_progress_report=False).export_model(params["file"], overwrite=True)
    return {}, {}


def xnnpack_recipe(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """The PT2E recipe of ExecuTorch's XNNPACK page: XNNPACKQuantizer, weights per channel, then the partitioner.

    `params["model"]`: a .pt2 that `torch.export.save` wrote."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.set_num_threads(1)
    exported = torch.export.load(params["model"])
    examples, _ = exported.example_inputs
    config = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(exported.module(), config)
    with torch.no_grad():
        for sample in arrays["samples"]:
            prepared(torch.from_numpy(sample[None].copy()))
        whole = torch.export.export(convert_pt2e(prepared), examples)
        made = to_edge_transform_and_lower(whole, partitioner=[XnnpackPartitioner()]).to_executorch()
    Path(params["file"]).write_bytes(made.buffer)
    return {}, {}


class _Reader:
    """ONNX Runtime's CalibrationDataReader over samples in memory."""

    def __init__(self, name: str, samples: NDArray[Any]) -> None:
        self._left: Iterator[dict[str, Any]] = iter([{name: sample[None]} for sample in samples])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)
