"""What the phone builds of ONNX Runtime would hand to an NPU: the vendor's static tables for NNAPI and Core ML.

No phone was asked: a node is counted as taken when its operator is in the table and its shapes are fixed. The caveats
of the tables (kernel sizes, axes) are sentences that nothing here checks, and the record says whose word it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.core.placement import TABLE, Placement
from octavo.errors import BadInput, Missing

TABLES = {"NNAPI": "nnapi_supported_ops.md", "Core ML": "coreml_supported_mlprogram_ops.md"}


def mobile_placement(path: Path) -> tuple[Placement, ...]:
    """Each node of an .onnx on `npu` (in NNAPI's table) or `cpu`; the reason names both tables where they differ.

    Raises Missing where the package came without its tables, BadInput for a damaged file.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise BadInput(f"{path}: not an .onnx, or damaged ({error}).", "Export it again.") from error
    tables = {name: _operators(file) for name, file in TABLES.items()}
    free = [item.name for item in model.graph.input if _is_free(item)]
    found = []
    for node in model.graph.node:
        kind = f"{node.domain or 'ai.onnx'}:{node.op_type}"
        taken = {name: kind in table for name, table in tables.items()}
        shown = f"{node.name or node.op_type} ({node.op_type})"
        if free:
            found.append(Placement(shown, "cpu", f"dynamic shape of {', '.join(free)}", source=TABLE))
            continue
        said = ", ".join(f"{'in' if yes else 'not in'} the table for {name}" for name, yes in taken.items())
        reason = "" if all(taken.values()) else said
        found.append(Placement(shown, "npu" if taken["NNAPI"] else "cpu", reason, source=TABLE))
    return tuple(found)


def _operators(name: str) -> set[str]:
    """`domain:Operator` of every row of a table: `|domain:Operator|caveats|`."""
    try:
        from onnxruntime.tools import mobile_helpers

        text = Path(mobile_helpers.__file__).with_name(name).read_text("utf-8")
    except (ImportError, OSError) as error:
        raise Missing(f"ONNX Runtime's table {name} is not here ({error}).", "pip install onnxruntime") from error
    rows = (line.split("|") for line in text.splitlines() if line.startswith("|"))
    return {row[1].strip() for row in rows if len(row) >= 3 and ":" in row[1]}


def _is_free(value: Any) -> bool:
    shape = value.type.tensor_type.shape
    return any(not size.HasField("dim_value") or size.dim_value <= 0 for size in shape.dim)
