"""Does coremltools work here? Codes are written by its own writer and read by its reader, in the worker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OctavoError
from octavo.runtimes.mlpackage import service

SECONDS = 120  # a cold start of a slow disk, no more


def check() -> str:
    """Run `one_program` in the worker. Returns what is wrong, nothing if all is well."""
    try:
        found = service.call("selfcheck:one_program", timeout=SECONDS).arrays["y"].tolist()
    except OctavoError as error:
        return f"It cannot convert and decode a program of one operation: {error.message}"
    expected = [[4.0, -6.0]]
    return "" if found == expected else f"A program of one operation gives {found}, not {expected}."


def one_program(
    params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A worker's target: [1, 1] times int8 codes with scale 0.5, converted, written, read and run. Returns y [1, 2]."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import Builder as mb

    from octavo.runtimes.mlpackage.interpret import Interpreter

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 6))], opset_version=ct.target.iOS17)  # type: ignore[untyped-decorator]
    def one(x: Any) -> Any:
        codes = np.array([[1, 1, 1, 1, 2, 2], [-2] * 6], np.int8)
        weight = mb.constexpr_affine_dequantize(
            quantized_data=codes, zero_point=np.int8(0), scale=np.float32(0.5), axis=np.int32(0)
        )
        return mb.linear(x=x, weight=weight, name="y")

    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        made = ct.convert(
            one, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, skip_model_load=True,
            compute_precision=ct.precision.FLOAT32, package_dir=str(Path(folder) / "one.mlpackage"),
        )  # fmt: skip
        spec = made.get_spec()
        program = load(spec, spec.specificationVersion, made.weights_dir)
        return {}, Interpreter(program).run({"x": np.ones((1, 6), np.float32)})
