"""The converter, called in a worker: a saved torch.export program in, an ML program and its weights out.

Codes enter by two doors of coremltools: int8 constants that the graph dequantises (static models), and the `_COREML_`
entries of a state dictionary (weight-only schemes). `settle` then puts them where the manifest says, as our arrays.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.manifest import KEY, Manifest
from octavo.errors import OctavoError
from octavo.runtimes.mlpackage.program import operations, program_digest

Emit = Callable[[dict[str, Any]], None]
Answer = tuple[dict[str, Any], dict[str, NDArray[Any]]]
# These compute new constants out of the model's own, or new scales out of the edges', or drop edges: a package has then
# other numbers than the model.
CHANGE_NUMBERS = {
    "common::const_deduplication",  # two equal tensors stay two: each is read back under its own name
    "common::dequantize_quantize_pair_elimination",  # an edge with the numbers of the edge before it stays, to be read
    "common::divide_to_multiply",
    "common::distributive_quantized_binary_op_scale_normalization",
    "common::fuse_conv_batchnorm",
    "common::fuse_conv_bias",
    "common::fuse_conv_scale",
    "common::fuse_elementwise_to_batchnorm",
    "common::fuse_linear_bias",
    "common::fuse_matmul_weight_bias",
    "common::int_op_canonicalization",  # likewise around a reshape, which it would do to the codes
    "common::merge_affine_dequantize_with_consecutive_ops",
    "common::prelu_to_lrelu",  # a PReLU whose slopes are equal keeps them
    "common::noop_elimination",  # a bias of zeros is a tensor all the same
}


def convert(params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Emit) -> Answer:
    """A worker's target. params: program (a .pt2 of ours), out (a folder), tensors and edges (see settle), target,
    compute, outputs, assets, manifest. arrays: NAME.codes and NAME.scale of quantised tensors, NAME of floats.

    Writes out/model.mlmodel and out/weights/weight.bin. Raises OctavoError when coremltools cannot convert.
    """
    import coremltools as ct
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the operators that static programs call

    from octavo.runtimes.mlpackage.prepare import prepare
    from octavo.runtimes.mlpackage.settle import Settle

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    exported = torch.export.load(params["program"]).run_decompositions({})
    prepare(exported)
    _announce(exported, params["tensors"], arrays)
    settle = Settle(params["tensors"], params["edges"], arrays, params["compute"])
    half = params["compute"] == "fp16"
    out = Path(params["out"])
    try:
        made = ct.convert(
            exported,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, params["target"]),
            outputs=[ct.TensorType(dtype=np.float32) for _ in params["outputs"]] if half else None,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            skip_model_load=True,
            pass_pipeline=_pipeline(settle),
            package_dir=str(out / "made.mlpackage"),
        )
    except OctavoError:
        raise
    except Exception as error:  # whatever its operators raise
        raise OctavoError(f"coremltools cannot convert this program: {_reason(error)}") from error
    spec = made.get_spec()
    _name_outputs(spec, params["outputs"])
    _describe(spec, params["assets"])
    manifest = _sealed(params["manifest"], spec, out / "made.mlpackage", settle)
    spec.description.metadata.userDefined[KEY] = manifest
    (out / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    return {"weights": str(made.weights_dir)}, {}


def _announce(exported: Any, tensors: list[dict[str, Any]], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Say in the state dictionary which float weights are codes times scales: coremltools then keeps them apart."""
    import torch

    state = exported.state_dict
    state["_COREML_/metadata_version"] = torch.tensor(1)
    for item in tensors:
        if item["kind"] not in ("affine", "blockwise", "table") or item["static"]:
            continue
        scale = torch.from_numpy(np.ascontiguousarray(arrays[f"{item['name']}.scale"]))
        for name in item["names"]:
            if name in state and state[name].is_floating_point():
                owner, _, leaf = name.rpartition(".")
                prefix = f"{owner}._COREML_/{leaf}/" if owner else f"_COREML_/{leaf}/"
                state[prefix + "compression_type"] = torch.tensor([3])
                state[prefix + "quantization_n_bits"] = torch.tensor(max(4, item["bits"]))
                state[prefix + "quantization_scale"] = scale


class Nothing:
    """A pass that does nothing."""

    def __call__(self, program: Any) -> None: ...

    def set_options(self, options: Any) -> None: ...


def _pipeline(settle: Any) -> Any:
    """coremltools' own passes without those that change numbers, and ours at the end."""
    import coremltools as ct
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    pipeline = ct.PassPipeline()
    pipeline.remove_passes(CHANGE_NUMBERS)
    PASS_REGISTRY.passes["octavo::settle"] = settle
    PASS_REGISTRY.passes["common::const_deduplication"] = Nothing()  # the backend's own list of passes has it again
    pipeline.append_pass("octavo::settle")
    return pipeline


def _name_outputs(spec: Any, names: list[str]) -> None:
    """Outputs under names that do not depend on the converter's counting (`output.0` becomes `output_0`)."""
    taken = {output.name for operation in operations(spec) for output in operation.outputs}
    taken |= {item.name for item in spec.description.input}
    renamed: dict[str, str] = {}
    for item, name in zip(spec.description.output, names, strict=True):
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        while plain in taken or plain in renamed.values():
            plain += "_"
        renamed[item.name] = plain
        item.name = plain
    for block in spec.mlProgram.functions["main"].block_specializations.values():
        for index, name in enumerate(block.outputs):
            block.outputs[index] = renamed.get(name, name)
    for operation in operations(spec):
        for output in operation.outputs:
            output.name = renamed.get(output.name, output.name)
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = renamed.get(binding.name, binding.name)


def _describe(spec: Any, assets: Mapping[str, str]) -> None:
    """Metadata: the assets go in, the day of conversion comes out (equal models are equal files)."""
    metadata = spec.description.metadata.userDefined
    metadata.pop("com.github.apple.coremltools.conversion_date", None)
    for key, value in assets.items():
        metadata[key] = value


def _sealed(text: str, spec: Any, package: Path, settle: Any) -> str:
    """The manifest with where each tensor lies and the digest of everything else in the program."""
    manifest = Manifest.from_json(text)
    tensors = tuple(replace(item, moves=(*item.moves, *settle.moves[item.name])) for item in manifest.tensors)
    weights = package / "Data/com.apple.CoreML/weights"
    digest = program_digest(spec, weights, {at for item in tensors for at in item.at})
    return replace(
        manifest, tensors=tensors, extra=manifest.extra | {"edges": settle.places, "graph": digest}
    ).to_json()


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
