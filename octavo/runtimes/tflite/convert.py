"""A torch program as a .tflite file: litert-torch, in a worker.

In a worker, because it brings jax and half a gigabyte with it, writes a flood of remarks, and its passes are C++ that
may abort. What goes over is a file of our own in a private directory.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from octavo.errors import OctavoError, WorkerDied, WorkerTimeout
from octavo.runtimes.base import Programs
from octavo.workers.local import Worker

SECONDS = 900
QUIET = {
    "LITERT_TORCH_SHOW_PROGRESS": "n", "PYTHONWARNINGS": "ignore", "TF_ENABLE_ONEDNN_OPTS": "0", "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}  # fmt: skip
WRAPPERS = ("Exception", "RuntimeError")


def converted(programs: Programs, *, static: bool) -> tuple[bytes, list[str]]:
    """(the file as litert-torch makes it, the names of its outputs).

    `static`: with quantise → dequantise on the edges, which become integers; inputs and outputs with them.
    Raises OctavoError when litert-torch cannot convert the program, with its reason; Missing without it.
    """
    import torch

    module, examples = programs.static("fake") if static else programs.valued()
    if static:
        _dequantise_apart(module)
    with tempfile.TemporaryDirectory(prefix="octavo-") as directory:
        before, after = Path(directory, "program.pt2"), Path(directory, "model.tflite")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, examples, strict=False)
            torch.export.save(exported, before)
        del module
        params = {"program": str(before), "file": str(after), "static": static}
        with Worker(env=QUIET) as worker:
            try:
                worker.call("octavo.runtimes.tflite.convert:convert_file", params, timeout=SECONDS)
            except (WorkerDied, WorkerTimeout):
                raise
            except OctavoError as error:
                if type(error) is not OctavoError:
                    raise
                reason = error.message.partition(" failed: ")[2] or error.message
                raise OctavoError(
                    f"litert-torch cannot convert this program: {_first_line(reason)}",
                    "Another runtime may take it: onnxruntime takes most.",
                ) from error
        return after.read_bytes(), output_names(exported)


def convert_file(
    params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A worker's target: `program` (an ExportedProgram that `converted` saved) becomes the .tflite `file`."""
    from octavo.errors import Missing

    try:
        import litert_torch
        import torch
    except ImportError as error:
        raise Missing(f"Exporting to LiteRT needs {error.name}.", "pip install 'octavo[compress,litert]'") from error
    import torch.ao.quantization.fx._decomposed
    from litert_torch.quantize import pt2e_quantizer, quant_config

    exported = torch.export.load(params["program"])
    arguments, keywords = exported.example_inputs
    config = None
    if params["static"]:  # only says that quantise → dequantise is to become integers: nothing is chosen here
        made = pt2e_quantizer.PT2EQuantizer()
        made.set_global(pt2e_quantizer.get_symmetric_quantization_config())
        config = quant_config.QuantConfig(pt2e_quantizer=made)
    with torch.no_grad():
        model = litert_torch.convert(exported.module(), arguments, keywords or None, quant_config=config)
    model.export(params["file"])
    return {}, {}


def _dequantise_apart(module: Any) -> None:
    """Give every user of a quantised value a dequantise of its own.

    litert-torch 0.10 forgets the shape of a shared one when its users want channels in different places, and fails.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and "dequantize" in str(node.target):
            for user in list(node.users)[1:]:
                with module.graph.inserting_after(node):
                    user.replace_input_with(node, module.graph.node_copy(node))
    module.recompile()


def output_names(exported: Any) -> list[str]:
    """The keys of a returned dictionary; else `output`, or `output.0`, `output.1`, …"""
    spec = exported.call_spec.out_spec
    count = len(exported.graph_signature.user_outputs)
    if spec is not None and spec.type is dict and len(spec.context) == count:
        return [str(key) for key in spec.context]
    return ["output"] if count == 1 else [f"output.{index}" for index in range(count)]


def _first_line(text: str) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "it gives no reason"
